"""Predicted effects: simulated cells, ranked genes, embedding in a plane, submissions and model cards."""
