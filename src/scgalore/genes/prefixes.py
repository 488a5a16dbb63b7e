"""Prefixes of gene names in references of several genomes or modalities: ``GRCh38_TP53``, ``rna:TP53``."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["count_prefixes", "shared_prefix"]

# Cell Ranger pads the names of genomes to one length (mm10___Xkr4), and Seurat writes dashes for underscores. Only
# these words: HLA-A and MT-ND1 have no prefix.
_PREFIX = re.compile(
    r"(?:(?:GRC[hm]\d\d|hg\d\d|mm\d\d?|T2T|CHM13)(?:\.p\d+|v\d\.\d)?(?:-\d{4}-[A-Z])?|human|mouse|(?i:homo_sapiens|mus_musculus))"
    r"[_-]+(?=.)|(?:rna|gex|RNA|GEX):(?=.)"
)


def shared_prefix(names: Sequence[str]) -> str:
    """Prefix shared by all names, if it is one that software is known to write; otherwise ``""``.

    Parameters
    ----------
    names
        Names of genes.

    Examples
    --------
    >>> (
    ...     shared_prefix(["GRCh38_TP53", "GRCh38_HLA-A"]),
    ...     shared_prefix(["HLA-A", "HLA-B"]),
    ...     shared_prefix(["hg19_A", "mm10_B"]),
    ... )
    ('GRCh38_', '', '')
    """
    found = _PREFIX.match(names[0]) if names else None
    return found[0] if found and all(name.startswith(found[0]) for name in names) else ""


def count_prefixes(names: Iterable[str]) -> Counter[str]:
    """Number of names with each of the prefixes that software is known to write.

    Parameters
    ----------
    names
        Names of genes.
    """
    return Counter(found[0] for found in map(_PREFIX.match, names) if found)
