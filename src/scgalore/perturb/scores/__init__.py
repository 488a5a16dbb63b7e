"""Scores of predicted effects, with baselines and the noise ceiling."""
