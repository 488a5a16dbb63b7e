"""Perturbation screens: conditions parsed from labels, cells with their conditions, and mean profiles."""
