"""Predicted effects: as cells, ranked genes, places in a plane, submissions and a model card."""
