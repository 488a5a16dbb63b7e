"""Names of antibodies: affixes, isotype controls, and the genes of the proteins.

Antibody names vary by vendor and counting software: ``CD3_TotalSeqB``, ``Hu.CD3_UCHT1``, ``prot:CD3``,
``PD-1 (CD279)``. Sources of the table: the names of CD antigens (HCDM) and the symbols of HGNC.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from scgalore.genes.identifiers import is_gene, standardise

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["antibody_gene", "clean_antibodies", "is_isotype_control"]

_PREFIX = re.compile(
    r"(?:(?:prot|protein|adt|ab|antibody|abseq|cite)[_:|.\s-]+|p_|(?:anti[-_. ])?(?:human|mouse|hu|ms|humsrt|hums)[-_.: ]+(?:anti[-_. ])?|anti[-_. ])+",
    re.IGNORECASE,
)
_SUFFIX = re.compile(
    r"(?:[-_. ](?:total[-_ ]?seq(?:[-_ ]?[abcd])?(?:[-_ ]?\d{4})?|[abcd]\d{4}|ahs\d{4}|pabo|prot|protein|adt|antibody|[acgt]{12,}))+$",
    re.IGNORECASE,
)
_CONTROL = re.compile(
    r"isotyp|\bctrl\b|[-_ .]ctrl|\bcontrol|[-_ .]control|^(?:mouse|rat|hamster|armenian hamster|syrian hamster|ms|rt|r|m)[-_. ]*ig[gma]|^ig[-_ ]?g(?:[12][abc]?|3)\b",
    re.IGNORECASE,
)  # fmt: skip
_INSIDE = re.compile(r"^(.*?)\s*[(\[]([^)\]]+)[)\]]\s*$")
_ENDS = re.compile(r"[-_.|: ]")

# Proteins missing from HGNC's symbols and aliases, by letters and digits only.
_GENES = {
    "B220": "PTPRC", "CD45R": "PTPRC", "CD45RA": "PTPRC", "CD45RB": "PTPRC", "CD45RO": "PTPRC", "CD45RC": "PTPRC",
    "CD3": "CD3E", "CD8": "CD8A", "CD16": "FCGR3A", "CD16A": "FCGR3A", "CD16B": "FCGR3B", "CD32": "FCGR2A", "CD25": "IL2RA",
    "CD11A": "ITGAL", "CD26": "DPP4", "CD77": "A4GALT", "CD15": "FUT4", "CD57": "B3GAT1", "CD66ACE": "CEACAM1",
    "CD158": "KIR2DL1", "CD158E1": "KIR3DL1", "CD117": "KIT", "CKIT": "KIT", "CD127": "IL7R", "IL7RA": "IL7R",
    "IL7RALPHA": "IL7R", "CD279": "PDCD1", "PD1": "PDCD1", "CD274": "CD274", "PDL1": "CD274", "B7H1": "CD274",
    "CD134": "TNFRSF4", "OX40": "TNFRSF4", "CD366": "HAVCR2", "TIM3": "HAVCR2", "CD223": "LAG3", "LAG3": "LAG3",
    "CD326": "EPCAM", "PECAM": "PECAM1", "HLAABC": "HLA-A", "HLAA2": "HLA-A", "HLAE": "HLA-E", "HLAF": "HLA-F",
    "HLADR": "HLA-DRA", "HLADRDPDQ": "HLA-DRA", "HLADQ": "HLA-DQA1", "MHCII": "HLA-DRA", "TCRAB": "TRAC",
    "TCRALPHABETA": "TRAC", "TCR": "TRAC", "TCRA": "TRAC", "TCRB": "TRBC1", "TCRGD": "TRDC", "TCRGAMMADELTA": "TRDC",
    "TCRG": "TRGC1", "TCRD": "TRDC", "TCRVA72": "TRAV1-2", "TCRVD2": "TRDV2", "TCRVG9": "TRGV9", "TCRVALPHA72": "TRAV1-2",
    "TCRVDELTA2": "TRDV2", "TCRVGAMMA9": "TRGV9", "IGD": "IGHD", "IGM": "IGHM", "IGA": "IGHA1", "IGE": "IGHE",
    "IGGFC": "IGHG1", "IGG": "IGHG1", "IGLIGHTCHAINKAPPA": "IGKC", "IGLIGHTCHAINK": "IGKC", "IGKAPPA": "IGKC",
    "IGLIGHTCHAINLAMBDA": "IGLC2", "IGLIGHTCHAINL": "IGLC2", "IGLAMBDA": "IGLC2", "FCERIA": "FCER1A",
    "FCEPSILONRIALPHA": "FCER1A", "INTEGRINB7": "ITGB7", "INTEGRINBETA7": "ITGB7", "LAP": "TGFB1", "CLA": "SELPLG",
}  # fmt: skip


def clean_antibodies(names: Iterable[str]) -> list[str]:
    """Remove prefixes, suffixes such as ``_TotalSeqB``, catalogue numbers and clones from antibody names.

    Parameters
    ----------
    names
        Names of all antibodies of a panel.

    Returns
    -------
    One name per input; names that would become identical are kept unchanged.

    Examples
    --------
    >>> clean_antibodies(["CD3_TotalSeqB", "Hu.CD4_RPA.T4", "HLA-DR", "CD45-HI30", "CD45-2D1"])
    ['CD3', 'CD4', 'HLA-DR', 'CD45-HI30', 'CD45-2D1']
    """
    names = list(names)
    cleaned = [_without_clone(_trimmed(name)) for name in names]
    often = Counter([*cleaned, *names])
    return [new if often[new] - (new == name) == 1 else name for name, new in zip(names, cleaned, strict=True)]


def is_isotype_control(name: str) -> bool:
    """Whether an antibody is an isotype control, such as ``"IgG1"``, ``"Mouse IgG2a"`` or ``"IgG1_control_TotalSeqB"``.

    Parameters
    ----------
    name
        Name of the antibody.
    """
    return any(_CONTROL.search(one) is not None for one in (name, _trimmed(name)))


def antibody_gene(name: str) -> str | None:
    """Gene of the protein that an antibody binds, as a current human symbol; ``None`` if unknown.

    For a protein of several chains, one of their genes (CD3E for CD3); for an isoform, its gene (PTPRC for CD45RA); for
    a glycan, an enzyme that synthesises it (FUT4 for CD15).

    Parameters
    ----------
    name
        Original or cleaned name.

    Examples
    --------
    >>> [antibody_gene(name) for name in ("CD8a_TotalSeqB", "PD-1 (CD279)", "CD45RA", "no protein")]
    ['CD8A', 'PDCD1', 'PTPRC', None]
    """
    name = _trimmed(name)
    inside = _INSIDE.match(name)
    for part in [name] if inside is None else [name, inside[2], inside[1]]:
        for candidate in _shorter(part):
            if (gene := _gene(candidate)) is not None:
                return gene
    return None


def _gene(name: str) -> str | None:
    """Gene for exactly this name."""
    solid = re.sub(r"(?<=\d)[^A-Za-z0-9]+(?=\d)", "|", name.upper())  # CD8-1 is not CD81
    known = _GENES.get(re.sub(r"[^A-Z0-9|]", "", solid))
    if known is not None:
        return known
    for written in (name, name.upper(), solid.replace("-", "")):
        if is_gene(written):
            return standardise([written])[0]
    return None


def _trimmed(name: str) -> str:
    bare = _SUFFIX.sub("", name.strip())
    return _PREFIX.sub("", bare, count=1) if (found := _PREFIX.match(bare)) and found.end() < len(bare) else bare


def _shorter(name: str) -> list[str]:
    """The name, and its prefixes as parts are removed from the end."""
    ends = [found.start() for found in _ENDS.finditer(name)]
    return [name, *(name[:end] for end in reversed(ends) if end)]


def _without_clone(name: str) -> str:
    """Name without the part that follows a protein name."""
    if _INSIDE.match(name) or is_isotype_control(name):
        return name
    return next((part for part in _shorter(name) if _gene(part) is not None), name)
