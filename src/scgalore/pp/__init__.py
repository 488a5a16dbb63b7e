"""Preprocessing of perturbation screens: guides and splits."""

from scgalore.pp._collapse_guides import collapse_guides
from scgalore.pp._split_perturbations import split_perturbations

__all__ = ["collapse_guides", "split_perturbations"]
