"""Rank the genes of an AnnData, without writing results."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgalore import _logging as logg
from scgalore.data.cells import gene_names
from scgalore.data.columns import read_column
from scgalore.data.expression import LogExpression
from scgalore.data.names import other_columns
from scgalore.data.reading import Reading
from scgalore.errors import DataError, OptionError
from scgalore.genes.identifiers import ortholog
from scgalore.genes.ranking import MUST_INCLUDE, TARGETS, get_strategy, merge
from scgalore.genes.sets import GeneColumns
from scgalore.perturb.labels.reading import read_conditions
from scgalore.perturb.labels.screen import parts_of, texts_of
from scgalore.selection.gene_lists import GeneLists, warn_absent
from scgalore.selection.gene_scores import Cells, GeneScores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore._typing import Control

__all__ = ["Ranking", "rank_adata", "training_cells"]

MIN_EXPRESSED = 0.01  # minimum fraction of training cells that express a gene of a list


@dataclass(frozen=True)
class Ranking:
    """Ranked genes.

    Attributes
    ----------
    rank
        Rank of each gene, 0 is the best, float64 ``(n_vars,)``; NaN for genes that no training cell expresses.
    source
        Source of each gene, object ``(n_vars,)``; ``None`` for unranked genes.
    sources
        Table of sources; ``n_listed`` genes, of which ``n_matched`` are in the data, and ``n_expressed`` in enough
        cells.
    absent
        Requested genes that are not in the data, by source.
    n_must_include
        Number of genes that come first because they must be included.
    n_expressed, n_cells
        Number of genes expressed in training cells, and number of these cells.
    genes
        Number of mouse genes with a human ortholog; empty for human genes.
    params
        Parameters of the ranking.
    """

    rank: NDArray[np.float64] = field(repr=False)
    source: NDArray[np.object_] = field(repr=False)
    sources: pd.DataFrame = field(repr=False)
    absent: Mapping[str, tuple[str, ...]] = field(repr=False)
    n_must_include: int
    n_expressed: int
    n_cells: int
    genes: dict[str, int]
    params: dict[str, Any]

    def best(self, n_genes: int) -> NDArray[np.bool_]:
        """Whether each gene is among the best ``n_genes``, bool ``(n_vars,)``."""
        return self.rank < n_genes

    def summary(self, n_genes: int | None = None) -> dict[str, Any]:
        """Summarise the sources of the ranking, for ``uns``.

        Parameters
        ----------
        n_genes
            Number of genes to count by source; ``None`` counts all ranked genes.
        """
        chosen = self.source[np.isfinite(self.rank) if n_genes is None else self.best(n_genes)]
        counts = pd.Series(chosen, dtype=object).value_counts()
        table = self.sources.assign(n_selected=counts.reindex(self.sources.index).fillna(0).astype(np.int64))
        return {
            "params": {**self.params, "n_genes": n_genes},
            "sources": table,
            "absent": {name: list(names) for name, names in self.absent.items()},
            "n_expressed": self.n_expressed,
            "n_cells": self.n_cells,
            "genes": self.genes,
        }


def training_cells(adata: AnnData, split_key: str | None) -> NDArray[np.bool_] | None:
    """Cells of the split ``"train"``, bool ``(n_obs,)``; ``None`` (all cells) without a split."""
    if split_key is None:
        return None
    check_columns(adata, {"split_key": split_key})
    train = parts_of(adata, split_key) == "train"
    if not train.any():
        msg = f"adata.obs[{split_key!r}] has no cell with 'train'. Write 'train' for the cells to use, or omit split_key=."
        raise DataError(msg)
    return train


def check_columns(adata: AnnData, columns: Mapping[str, str | None]) -> None:
    """Raise an error for columns that are missing from ``adata.obs`` or not unique."""
    for name, key in columns.items():
        if key is not None:
            read_column(adata.obs, key, asked=name)


def rank_adata(
    adata: AnnData,
    gene_strategy: str = "biological",
    *,
    batch_key: str | None = None,
    pert_key: str | None = None,
    control: Control = None,
    separator: str | None = None,
    pert_kind: str = "gene",
    dose_key: str | None = None,
    context_key: str | None = None,
    must_include: Any = None,
    gene_sets: Any = None,
    train: NDArray[np.bool_] | None = None,
    **read: Any,
) -> Ranking:
    """Rank the genes that training cells express.

    Parameters
    ----------
    adata
        Cells by genes; counts or log-normalised, sparse, dense, backed or a view. Not modified.
    gene_strategy, batch_key, pert_key, control, separator, pert_kind, dose_key, context_key, must_include, gene_sets
        As for :func:`scgalore.tl.select_genes`.
    train
        Cells to use, bool ``(n_obs,)``; ``None`` uses all.
    **read
        Attributes of :class:`~scgalore.data.reading.Reading`.

    Raises
    ------
    OptionError, DataError, MissingKeyError
        As for :func:`scgalore.tl.select_genes`.
    """
    plan, reading = get_strategy(gene_strategy), Reading(**read)
    columns = {"batch_key": batch_key, "pert_key": pert_key, "context_key": context_key, "dose_key": dose_key}
    check_columns(adata, columns)
    train = np.ones(adata.n_obs, dtype=bool) if train is None else np.asarray(train, dtype=bool)
    names = gene_names(adata, reading.gene_symbols)
    conditions = None
    if plan.targets:
        if pert_key is None:
            msg = f"gene_strategy={gene_strategy!r} needs pert_key=, the column of adata.obs with the perturbation of each cell; it has {list(adata.obs.columns)}."
            raise OptionError(msg)
        labels: dict[str, Any] = {
            "pert_key": pert_key,
            "separator": separator,
            "pert_kind": pert_kind,
            "dose_key": dose_key,
        }
        conditions = read_conditions(adata.obs, control=control, genes=names, **labels)
        conditions.report()
    cells = Cells(train, _codes(adata, batch_key, train), _codes(adata, context_key, train), conditions)
    lists = GeneLists.of(plan, must_include, gene_sets)
    lists.check(names, reading.species, partial(other_columns, adata.var, reading.gene_symbols))
    expression = LogExpression.from_adata(adata, reading)
    scores = GeneScores.of(expression, cells, names)
    params = {
        "gene_strategy": gene_strategy,
        "weights": dict(lists.weights),
        **columns,
        "control": None if conditions is None else conditions.control,
        "separator": None if conditions is None else conditions.separator,
        "pert_kind": pert_kind,
        **reading.params(),
        "must_include": list(lists.must_include),
        "gene_sets": [name for name in lists.genes if name not in plan.weights],
    }
    targets = None if conditions is None else cells.targets()
    found = GeneColumns(names, reading.species, scores.mean)
    orthologs = _orthologs_of(names) if reading.species == "mouse" else {}
    return _ranked(scores, lists, targets, found, orthologs, params)


def _ranked(
    scores: GeneScores,
    lists: GeneLists,
    targets: list[str] | None,
    found: GeneColumns,
    orthologs: dict[str, int],
    params: dict[str, Any],
) -> Ranking:
    n_vars = len(scores.names)
    first, ranked, absent, rows = {}, {}, {}, {}
    for source, genes in {MUST_INCLUDE: lists.must_include, TARGETS: targets}.items():
        if genes:
            columns, absent[source] = found.find(genes)
            first[source] = columns if source == MUST_INCLUDE else scores.by_expression(columns, 0)
            rows[source] = (len(genes), len(columns), len(first[source]))
    for source in lists.weights:
        if source in lists.genes:
            columns, lacking = found.find(lists.genes[source])
            ranked[source] = scores.by_expression(columns, MIN_EXPRESSED)
            rows[source] = (len(lists.genes[source]), len(columns), len(ranked[source]))
            if source in lists.asked:
                absent[source] = lacking
        else:
            ranked[source] = scores.by(source)
            rows[source] = (n_vars, n_vars, len(ranked[source]))
    warn_absent(absent)
    merged = merge(first, ranked, lists.weights)
    rank, source_of = np.full(n_vars, np.nan), np.full(n_vars, None, dtype=object)
    rank[merged.columns], source_of[merged.columns] = np.arange(len(merged.columns)), merged.sources
    return Ranking(
        rank=rank,
        source=source_of,
        sources=pd.DataFrame.from_dict(rows, orient="index", columns=["n_listed", "n_matched", "n_expressed"]),
        absent=absent,
        n_must_include=len(first.get(MUST_INCLUDE, ())),
        n_expressed=int(scores.is_expressed.sum()),
        n_cells=scores.n_cells,
        genes=orthologs,
        params=params,
    )


def _orthologs_of(names: Sequence[str]) -> dict[str, int]:
    n = sum(ortholog(name) is not None for name in names)
    logg.info(f"    {n:,} of {len(names):,} mouse genes have a human ortholog and can match gene lists")
    return {"with_ortholog": n, "without_ortholog": len(names) - n}


def _codes(adata: AnnData, key: str | None, train: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Code of each training cell's value in a column, -1 for other cells; all 0 without a column."""
    codes = np.full(len(train), -1, dtype=np.int64)
    codes[train] = 0 if key is None else np.unique(texts_of(adata, key)[train], return_inverse=True)[1]
    return codes
