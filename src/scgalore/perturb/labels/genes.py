"""Identification of the gene that a part of a label refers to: by symbol, earlier symbol, alias, Ensembl id or guide."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING

from scgalore.genes.identifiers import is_gene, looks_like_mouse, mostly_mouse, ortholog, standardise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["GeneNames", "guide_target", "is_guide_number"]

_WORD = r"(?:sg|g|sgRNA|gRNA|guide|Guide|crRNA|cr|sh|shRNA|si|siRNA|oligo|rep)"
_PREFIX = r"(?:(?:sgRNA|gRNA)[-_.]?(?=[A-Z])|(?:sg|sh|g)[-_.]?(?!RNA))"
_NUMBER = re.compile(rf"{_WORD}?[-_.]?\d+[a-z]?|P1P2|P1|P2")

_BEHIND_ID = re.compile(r"ENSG\d{11}(?:\.\d+)?[^A-Za-z0-9.](.+)")

# The remainder of a guide's name is its target, if it is a gene. The most specific formats come first.
_GUIDES = tuple(
    re.compile(pattern)
    for pattern in (
        # Weissman's libraries: AAAS_+_53715438.23-P1P2
        r"(?P<gene>.+?)_[+-]_\d+(?:\.\d+)?(?:-[\w,.]+)?",
        rf"(?P<gene>.+?)[-_.:| ]{_WORD}?[-_.]?\d+[a-z]?",
        r"(?P<gene>.+?)[-_.:| ](?:P1P2|P1|P2)",
        # The guide itself: KLF1_GACCTGTGCCCTGACAGGTT
        r"(?P<gene>.+?)[-_.:| ][ACGTU]{15,}",
        r"(?P<gene>.+?)(?:sg|g)\d+",
        # sgKLF1, sgKLF1-2, sgRNA_KLF1
        rf"{_PREFIX}(?P<gene>[A-Z].*)",
        rf"{_PREFIX}(?P<gene>[A-Z].*?)[-_.]{_WORD}?\d+[a-z]?",
        # A number for the gene and one for the guide: KLF1_1_2
        rf"(?P<gene>.+?)(?:[-_.:|]{_WORD}?\d+){{2}}",
    )
)


def is_guide_number(part: str) -> bool:
    """Whether a part of a label is the number of a guide or a promoter, such as ``"1"``, ``"sg3"`` or ``"P1P2"``."""
    return _NUMBER.fullmatch(part) is not None


def guide_target(name: str, is_target: Callable[[str], bool]) -> str | None:
    """Target of a guide, by the usual formats of names: ``"KLF1_2"``, ``"KLF1_g2"``, ``"sgKLF1-2"``.

    Parameters
    ----------
    name
        Name of a guide. A name that is itself a target, such as ``"NKX2-5"``, is not a guide.
    is_target
        Function that returns whether a text is a gene or another known target.

    Returns
    -------
    The target; ``None`` if no format yields one.
    """
    if is_target(name):
        return None
    for pattern in _GUIDES:
        found = pattern.fullmatch(name)
        if found is not None and is_target(found["gene"]):
            return found["gene"]
    return None


class GeneNames:
    """Names of the genes in a data set.

    Parameters
    ----------
    measured
        Names of the measured genes, as in the data.
    """

    def __init__(self, measured: Iterable[str] = ()) -> None:
        self.measured = tuple(map(str, measured))

    @cached_property
    def _measured(self) -> frozenset[str]:
        return frozenset(self.measured)

    @cached_property
    def _by_identity(self) -> dict[str, str]:
        """Name in the data, by identity. If several columns are the same gene, the current symbol is used."""
        found: dict[str, str] = {}
        for identity, name in zip(self._identities(self.measured), self.measured, strict=True):
            found.setdefault(identity, name)
        return found | {name: name for name in self.measured if name in found}

    @cached_property
    def _is_mouse(self) -> bool:
        return mostly_mouse(self.measured)

    def _identities(self, names: Sequence[str]) -> list[str]:
        current = standardise(names)
        if not self._is_mouse:
            return current
        return [ortholog(name) or other for name, other in zip(names, current, strict=True)]

    def identity(self, name: str) -> str:
        """Identifier shared by all names of a gene: its current symbol, or the name itself if it is unknown.

        For mouse genes in mouse data, it is the symbol of the human ortholog.
        """
        return self._identities([name])[0]

    def common_name(self, identity: str, names: Sequence[str]) -> str:
        """Name to use for an unmeasured gene with several names.

        Parameters
        ----------
        identity
            From :meth:`identity`.
        names
            Its names in the labels.
        """
        symbols = [name for name in names if not name.startswith("ENSMUSG")]
        return (symbols or names)[0] if self._is_mouse else identity

    def measured_as(self, identity: str) -> str | None:
        """Name of a gene in the measured genes; ``None`` if it is not measured.

        Parameters
        ----------
        identity
            From :meth:`identity`.
        """
        return self._by_identity.get(identity)

    def knows(self, name: str) -> bool:
        """Whether a text is a gene of the data or of the gene tables."""
        # Numbers are default row names of var; a pair of ids is not an id, nor is a guide of one.
        behind = _BEHIND_ID.search(name) if "ENSG" in name else None
        if name.isdecimal() or name.count("ENSG") > 1 or (behind is not None and is_guide_number(behind[1])):
            return False
        head, _, tail = name.rpartition("_")
        if "ENSG" in head and is_guide_number(tail):  # a guide of a gene given by its id
            return False
        if name in self._measured:
            return True
        return is_gene(name) or (self._is_mouse and (ortholog(name) is not None or _is_mouse_gene(name)))


def _is_mouse_gene(name: str) -> bool:
    """Whether a name is the mouse spelling of a human symbol, as for genes with several orthologs."""
    return looks_like_mouse(name) and is_gene(name.upper())
