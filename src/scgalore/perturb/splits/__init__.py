"""Splits of perturbations into training, validation and test."""
