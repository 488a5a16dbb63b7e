"""Genes of an AnnData ranked in one list, and the ranking that a curriculum follows."""
