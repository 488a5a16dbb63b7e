"""Gene identifiers, their translation, and gene sets."""

from scgalore.genes.antibodies import antibody_gene, clean_antibodies, is_isotype_control
from scgalore.genes.identifiers import (
    OtherNames,
    ensembl_id,
    is_gene,
    looks_like_mouse,
    ortholog,
    other_names,
    standardise,
)
from scgalore.genes.sets import GeneSet, get_gene_set, list_gene_sets, read_gmt

__all__ = [
    "GeneSet",
    "OtherNames",
    "antibody_gene",
    "clean_antibodies",
    "ensembl_id",
    "get_gene_set",
    "is_gene",
    "is_isotype_control",
    "list_gene_sets",
    "looks_like_mouse",
    "ortholog",
    "other_names",
    "read_gmt",
    "standardise",
]
