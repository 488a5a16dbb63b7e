"""Perturbations: conditions, splits, profiles, baselines, predicted cells and scores. Plain NumPy, without a network."""

from scgalore.perturb.challenge import write_vcc

__all__ = [
    "write_vcc",
]
