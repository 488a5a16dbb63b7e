"""Preprocessing: what is decided about the cells before a model sees them."""

from scgalore.pp._split_perturbations import split_perturbations

__all__ = ["split_perturbations"]
