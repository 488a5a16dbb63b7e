"""Genes by name: identifiers and how they translate into one another."""

from scgalore.genes.identifiers import ensembl_id, looks_like_mouse, other_names, standardise

__all__ = ["ensembl_id", "looks_like_mouse", "other_names", "standardise"]
