"""Gene lists that are interleaved into a ranking: those of the strategy and of the user, found among the columns."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from scgalore import _logging as logg
from scgalore.data.names import advice
from scgalore.errors import DataError, OptionError
from scgalore.genes.identifiers import mostly_mouse
from scgalore.genes.ranking import EXPRESSED, MUST_INCLUDE, RESPONSIVE, TARGETS, USER_WEIGHT, VARIABLE
from scgalore.genes.sets import GeneColumns, get_gene_set, list_gene_sets, read_gmt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scgalore.genes.ranking import Strategy

__all__ = ["GeneLists", "user_sets", "warn_absent"]

FROM_DATA = (VARIABLE, EXPRESSED, RESPONSIVE)
SAMPLE = 1000  # number of names from which the species is detected


@dataclass(frozen=True)
class GeneLists:
    """Genes to rank, by name.

    Attributes
    ----------
    must_include
        Genes that come before all others.
    genes
        Genes of each source that is a list.
    weights
        Weight of every source, including those computed from the data.
    asked
        Names of the lists passed by the user.
    """

    must_include: tuple[str, ...] = field(repr=False)
    genes: Mapping[str, tuple[str, ...]] = field(repr=False)
    weights: Mapping[str, float]
    asked: tuple[str, ...]

    @classmethod
    def of(cls, strategy: Strategy, must_include: Any, gene_sets: Any) -> GeneLists:
        """Collect the lists.

        Parameters
        ----------
        strategy
            Strategy with the default lists.
        must_include, gene_sets
            As for :func:`scgalore.tl.select_genes`.

        Raises
        ------
        OptionError
            If an argument is not of that form, or a set has the name of another source.
        DataError
            If a GMT file cannot be read.
        """
        weights = dict(strategy.weights)
        genes = {name: get_gene_set(name).genes for name in weights if name not in FROM_DATA}
        own, shipped = user_sets(gene_sets)
        for name in own:
            if name in (*FROM_DATA, MUST_INCLUDE, TARGETS, *weights):
                msg = f"gene_sets contains {name!r}, which is the name of another source. Rename it."
                raise OptionError(msg)
        for name, members in {**own, **shipped}.items():
            genes[name] = members
            weights[name] = weights.get(name, 0) + USER_WEIGHT
        return cls(_names(must_include, "must_include"), genes, weights, tuple(own))

    def check(
        self,
        columns: Sequence[str],
        species: str,
        elsewhere: Callable[[], dict[str | None, list[str]]] | None = None,
    ) -> None:
        """Raise an error for lists that do not match the data.

        Parameters
        ----------
        columns
            Names of the genes in the data.
        species
            Species of the genes in the data.
        elsewhere
            Function that returns gene names in other places, for advice.

        Raises
        ------
        DataError
            If lists and data are of different species, or no gene of a user's list is in the data.
        """
        if self.genes:
            self._refuse_other_names(columns, species, elsewhere)
            _check_species(columns, species)
        named = {"must_include": self.must_include} if self.must_include else {}
        if not (named or self.asked):
            return
        found = GeneColumns(columns, species)
        for name, genes in {**named, **{name: self.genes[name] for name in self.asked}}.items():
            if len(found.find(genes)[0]):
                continue
            where = name if name in named else f"gene_sets[{name!r}]"
            hint = "Pass gene_symbols= if var_names are other identifiers."
            if species == "human" and mostly_mouse(genes):
                hint = "They look like mouse symbols, but the data are not mouse: pass human symbols."
            msg = (
                f"None of the {len(genes):,} genes of {where} ({', '.join(genes[:3])}, ...) is in the data, which "
                f"have {', '.join(columns[:3])}, .... {hint}"
            )
            raise DataError(msg)
        for name in self.asked:
            if species == "human" and mostly_mouse(self.genes[name]) and not mostly_mouse(columns):
                msg = (
                    f"gene_sets[{name!r}] contains mouse symbols ({', '.join(self.genes[name][:3])}, ...), but the data do not. "
                    "Pass human symbols."
                )
                raise DataError(msg)

    def _refuse_other_names(
        self,
        columns: Sequence[str],
        species: str,
        elsewhere: Callable[[], dict[str | None, list[str]]] | None,
    ) -> None:
        """Raise an error if no list has any of the names, but other names in the data would match; warn if none would."""
        listed = {gene for genes in self.genes.values() for gene in genes}

        def count(names: Sequence[str], species: str) -> int:
            return len(GeneColumns(names, species).find(listed)[0])

        if mostly_mouse(columns) or count(columns, species):
            return
        hint = advice(columns, species, count, elsewhere)
        if hint:
            msg = f"The genes of the data ({', '.join(columns[:3])}, ...) are in none of the gene sets. {hint}"
            raise DataError(msg)
        logg.warning(
            f"the genes of the data ({', '.join(columns[:3])}, ...) are in none of the gene sets, so only scores computed from the data are "
            "used. Check that cells are in rows and genes in columns."
        )


def _check_species(columns: Sequence[str], species: str) -> None:
    mouse = mostly_mouse(columns[:: max(1, len(columns) // SAMPLE)])
    shown = ", ".join(columns[:3])
    if mouse and species == "human":
        msg = (
            f"The genes of the data ({shown}, ...) look like mouse genes, but the gene sets are human. Pass "
            "species='mouse' to map them to human orthologs, or gene_strategy='hvg', which needs no gene set."
        )
        raise DataError(msg)
    if not mouse and species == "mouse":
        msg = f"species='mouse', but the genes of the data ({shown}, ...) do not look like mouse genes. Omit species=."
        raise DataError(msg)


Sets: TypeAlias = dict[str, tuple[str, ...]]


def user_sets(gene_sets: Any) -> tuple[Sets, Sets]:
    """Sets passed by the user, and built-in sets requested by name.

    Parameters
    ----------
    gene_sets
        A dictionary of lists, the path of a GMT file, names of built-in sets, or ``None``.

    Raises
    ------
    OptionError
        If it is not one of these.
    DataError
        If a GMT file cannot be read.
    """
    if gene_sets is None:
        return {}, {}
    if isinstance(gene_sets, str) and gene_sets in list_gene_sets():
        gene_sets = [gene_sets]
    if isinstance(gene_sets, str | os.PathLike):
        return {name: found.genes for name, found in read_gmt(gene_sets).items()}, {}
    if isinstance(gene_sets, Mapping):
        given = {str(name): getattr(genes, "genes", genes) for name, genes in gene_sets.items()}
        return {name: _names(genes, f"gene_sets[{name!r}]") for name, genes in given.items()}, {}
    return {}, {name: get_gene_set(name).genes for name in _names(gene_sets, "gene_sets")}


def _names(values: Any, where: str) -> tuple[str, ...]:
    values = () if values is None else values
    found = () if isinstance(values, str) or not isinstance(values, Iterable) else tuple(values)
    if isinstance(values, str) or not isinstance(values, Iterable) or not all(isinstance(name, str) for name in found):
        msg = f"{where}={values!r}: expected a list of gene names."
        if where == "gene_sets":
            msg = f"gene_sets={values!r}: expected a dictionary of lists, the path of a GMT file, or names of sg.genes.list_gene_sets()."
        raise OptionError(msg)
    return tuple(dict.fromkeys(name.strip() for name in found))


def warn_absent(absent: Mapping[str, tuple[str, ...]]) -> None:
    """Log which requested genes are not in the data."""
    for source, names in absent.items():
        if names:
            shown = ", ".join(names[:5]) + (", ..." if names[5:] else "")
            say = logg.info if source == TARGETS else logg.warning
            say(f"{'    ' if source == TARGETS else ''}not in the data ({source}): {shown} ({len(names):,} in total)")
