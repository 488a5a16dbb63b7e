"""Prediction of expression after perturbations."""
