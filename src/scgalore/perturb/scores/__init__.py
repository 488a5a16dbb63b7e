"""Scores of predicted effects, with their baselines and the ceiling of the data."""
