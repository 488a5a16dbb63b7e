"""Ranking of the genes of an AnnData, and the ranking that a curriculum follows."""
