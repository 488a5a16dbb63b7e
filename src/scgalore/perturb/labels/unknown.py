"""Warning about labels that are not known genes, which are usually misread separators, guides, controls or missing values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgalore import _logging as logg
from scgalore.errors import DataError
from scgalore.perturb.labels.conditions import labels_with_counts
from scgalore.perturb.labels.genes import guide_target
from scgalore.perturb.labels.parsing import JOINT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scgalore.perturb.labels.conditions import Conditions

__all__ = ["check_genes"]

SEPARATORS = (",", ";", "|", "/", "&", ":", "_", "-", " ")
"""Possible separators that were not recognised."""


def check_genes(
    conditions: Conditions, known: Callable[[str], bool] = lambda gene: False, *, refuse: bool = True
) -> None:
    """Warn about perturbations that are not known genes, before they are used.

    Parameters
    ----------
    conditions
        Perturbation of each cell.
    known
        Function that returns whether a text is a gene of a vocabulary. Genes of the data and of the gene tables are known.
    refuse
        Whether to raise an error if more than half of the perturbations have no known gene. Whole numbers are not counted,
        since they are codes chosen by the user and not misread genes.

    Raises
    ------
    DataError
        If ``refuse`` is set and this is the case.
    """
    found = conditions.unknown(known)
    if not found:
        return

    def is_gene(text: str) -> bool:
        return conditions.gene_names.knows(text) or known(text)

    names = {conditions.names[conditions.index(text)] for text in found}
    n = len(conditions.perturbations)
    n_strange = sum(not any(is_gene(part) or part.isdecimal() for part in name.split(JOINT)) for name in names)
    what = (
        f"{len(names):,} of {n:,} perturbations have a part that is no gene which the data, the vocabulary or the tables of "
        f"genes know: {labels_with_counts(found)}."
    )
    cures = " ".join(_cures(conditions, found, is_gene))
    if refuse and 2 * n_strange > n:
        msg = f"{what} Expected genes, by symbol or Ensembl id. {cures}"
        raise DataError(msg)
    logg.warning(f"{what} They are taken for genes as they are. {cures}")


def _cures(conditions: Conditions, found: Iterable[str], is_gene: Callable[[str], bool]) -> list[str]:
    """Advice, most probable first."""
    cures = []
    separators = [
        mark
        for mark in SEPARATORS
        if mark != conditions.separator
        and any(mark in text and all(is_gene(part.strip()) for part in text.split(mark)) for text in found)
    ]
    if separators:
        cures.append(f"Say what stands between genes with separator={separators[0]!r}.")
    guides = "Map guides to genes with sg.pp.collapse_guides(adata)."
    if any(guide_target(text, is_gene) for text in found):
        cures.insert(0, guides)
    cures.append("Leave out cells without a known perturbation; name controls with control=[...].")
    return cures if guides in cures else [*cures, guides]
