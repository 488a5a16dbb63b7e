"""Genes by name: identifiers and how they translate into one another."""

from scgalore.genes.identifiers import OtherNames, ensembl_id, looks_like_mouse, other_names, standardise

__all__ = ["OtherNames", "ensembl_id", "looks_like_mouse", "other_names", "standardise"]
