"""Perturbation screens read from an AnnData: expression, conditions, contexts, control pools and splits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata.utils import make_index_unique

from scgalore import _logging as logg
from scgalore.data import texts
from scgalore.data.cells import gene_names
from scgalore.data.columns import read_column
from scgalore.data.expression import LogExpression
from scgalore.data.names import other_columns
from scgalore.data.reading import AS_IT_IS, Reading
from scgalore.data.split import PARTS
from scgalore.errors import DataError
from scgalore.perturb.labels.profiles import Profiles
from scgalore.perturb.labels.reading import check_kind, condition_texts, read_conditions
from scgalore.perturb.labels.vectors import read_vectors

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore._typing import Control
    from scgalore.perturb.labels.conditions import Conditions

__all__ = ["Pools", "Screen", "parts_of", "texts_of"]


@dataclass(frozen=True)
class Pools:
    """Control cells that perturbed cells are compared with.

    Attributes
    ----------
    of_cell
        Pool of each cell, int64 ``(n_obs,)``: the control cells of its context and batch, or of its context if the
        batch has none.
    cells
        Row numbers of each pool.
    of_context
        Row numbers of all control cells of each context, in the order of ``Profiles.context_names``.
    """

    of_cell: NDArray[np.int64]
    cells: tuple[NDArray[np.int64], ...]
    of_context: tuple[NDArray[np.int64], ...]


@dataclass(frozen=True)
class Screen:
    """Cells with their perturbations and their split.

    Attributes
    ----------
    expression
        Log-normalised expression.
    genes
        Unique names of its columns.
    conditions
        Perturbation of each cell.
    contexts, batches
        Cell type or line, and batch, of each cell; ``None`` if there is only one.
    parts
        ``"train"``, ``"validation"``, ``"test"`` or ``""`` (excluded) for each cell; ``None`` without a split.
    params
        Parameters of reading, for ``uns``.
    reading
        The parameters of expression and genes.
    columns
        Function that reads gene names from other columns of ``var``, for advice.
    vectors
        Vectors of compounds, one row per compound; ``None`` for gene perturbations, or if compounds have no vectors.
    """

    expression: LogExpression = field(repr=False)
    genes: tuple[str, ...] = field(repr=False)
    conditions: Conditions = field(repr=False)
    contexts: NDArray[Any] | None = field(repr=False)
    batches: NDArray[Any] | None = field(repr=False)
    parts: NDArray[Any] | None = field(repr=False)
    params: dict[str, Any]
    reading: Reading = AS_IT_IS
    columns: Callable[[], dict[str | None, list[str]]] | None = field(default=None, repr=False)
    vectors: pd.DataFrame | None = field(default=None, repr=False)

    @classmethod
    def from_adata(
        cls,
        adata: AnnData,
        *,
        pert_key: str,
        control: Control = None,
        context_key: str | None = None,
        batch_key: str | None = None,
        separator: str | None = None,
        split_key: str | None = None,
        pert_kind: str = "gene",
        dose_key: str | None = None,
        vectors_key: str | None = None,
        log_base: float | None = None,
        **read: Any,
    ) -> Screen:
        """Read and check all data that do not depend on the model.

        Parameters
        ----------
        adata
            Cells by genes; counts or log-normalised.
        pert_key, context_key, batch_key, split_key
            Columns of ``adata.obs``: perturbation, cell type or line, batch, split.
        control
            Label of control, a pattern, or several; usual labels are recognised.
        separator
            Separator between genes in the labels.
        pert_kind
            ``"gene"``, or ``"compound"`` if labels are names of compounds.
        dose_key
            Column of ``adata.obs`` with the dose of each compound; ``None`` if each has a single dose.
        vectors_key
            Key of vectors of compounds, as for :func:`scgalore.tl.finetune`.
        log_base
            Base of the returned logarithms; ``None`` keeps that of the matrix.
        **read
            How to read the expression: ``layer``, ``gene_symbols``, ``data_type``, ``depth_key``, ``species`` and
            ``min_matched``, as for :func:`scgalore.tl.finetune`.

        Raises
        ------
        MissingKeyError
            If a column or layer does not exist.
        DataError
            If a required value is missing, labels cannot be parsed, there is no control, or the matrix cannot be used.
        """
        reading = Reading(**read)
        columns = {"pert_key": pert_key, "context_key": context_key, "batch_key": batch_key, "split_key": split_key}
        for name, key in columns.items():
            if key is not None:
                read_column(adata.obs, key, asked=name, gaps=name in ("pert_key", "split_key"))
        names = gene_names(adata, reading.gene_symbols)
        labels: dict[str, Any] = {
            "pert_key": pert_key,
            "separator": separator,
            "pert_kind": pert_kind,
            "dose_key": dose_key,
        }
        check_kind(pert_kind, vectors_key=vectors_key)
        conditions = read_conditions(adata.obs, control=control, genes=names, **labels)
        conditions.report()
        vectors = None if vectors_key is None else read_vectors(adata, vectors_key, conditions)
        contexts, batches = (None if key is None else texts_of(adata, key) for key in (context_key, batch_key))
        parts = None if split_key is None else parts_of(adata, split_key)
        if parts is not None:
            _warn_of_sides(conditions, condition_texts(adata.obs, labels), parts)
        genes = _unique(names)
        expression = LogExpression.from_adata(adata, reading, log_base=log_base)
        params = {
            **columns,
            "control": conditions.control,
            "separator": conditions.separator,
            "pert_kind": pert_kind,
            "dose_key": dose_key,
            "vectors_key": vectors_key,
            **reading.params(),
            "log_base": expression.log_base,
        }
        elsewhere = partial(other_columns, adata.var, reading.gene_symbols)
        return cls(expression, genes, conditions, contexts, batches, parts, params, reading, elsewhere, vectors)

    def with_parts(self, labels: NDArray[np.object_], key: str) -> Screen:
        """Same screen with another split, stored under ``key``; ``None`` for excluded cells."""
        parts = np.array(["" if label is None else label for label in labels], dtype=str)
        return replace(self, parts=parts, params={**self.params, "split_key": key})

    def profiles(self, *parts: str) -> Profiles:
        """Mean expression of the cells of some splits; of all cells by default.

        Control cells of all splits are used, since they are known when a prediction is made.

        Parameters
        ----------
        parts
            Names of splits.
        """
        cells = None
        if parts and self.parts is not None:
            cells = np.isin(self.parts, parts) | (self.conditions.codes == 0)
        return Profiles.of(self.expression, self.genes, self.conditions, self.contexts, cells=cells)

    def pools(self) -> Pools:
        """Control cells by context and batch."""
        is_control = self.conditions.codes == 0
        contexts, of_context = _codes(self.contexts, len(is_control))
        _, of_batch = _codes(self.batches, len(is_control))
        finest = np.unique(np.stack([of_context, of_batch]), axis=1, return_inverse=True)[1].ravel()
        by_context = tuple(np.flatnonzero(is_control & (of_context == c)) for c in range(len(contexts)))
        cells = [np.flatnonzero(is_control & (finest == pool)) for pool in range(finest.max(initial=-1) + 1)]
        for pool, members in enumerate(cells):
            if len(members) == 0:
                cells[pool] = by_context[of_context[np.argmax(finest == pool)]]
        return Pools(finest, tuple(cells), by_context)


def _warn_of_sides(conditions: Conditions, labels: NDArray[np.object_], parts: NDArray[np.str_]) -> None:
    """Warn about perturbations that are in training under one label and in the test split under another."""
    several = {text for group in conditions.spellings[1:] if len(group) > 1 for text in group}
    if not several:
        return
    rows = np.flatnonzero([text in several for text in labels])
    found = pd.DataFrame({"label": labels[rows], "part": parts[rows]}).groupby("label")["part"].agg(frozenset)
    apart = [
        group
        for group in conditions.spellings[1:]
        if len(group) > 1
        and len({found[text] for text in group}) > 1
        and (union := frozenset().union(*(found[text] for text in group))) & {"test"}
        and union & {"train", "validation"}
    ]
    if apart:
        shown = " and ".join(f"{text!r} ({', '.join(sorted(found[text]))})" for text in apart[0])
        logg.warning(
            f"Labels of {len(apart)} perturbations are in training and in the test: {shown} are one perturbation, which is not "
            "held out. Make the split with sg.pp.split_perturbations(adata), which keeps them together."
        )


def _unique(names: list[str]) -> tuple[str, ...]:
    """Unique names for tables: repeated names get a number, as by :meth:`anndata.AnnData.var_names_make_unique`."""
    unique = make_index_unique(pd.Index(names))
    changed = [new for name, new in zip(names, unique, strict=True) if name != new]
    if changed:
        logg.warning(f"{len(changed):,} genes have the name of another column and get a number, such as {changed[0]}.")
    return tuple(map(str, unique))


def _codes(values: NDArray[np.str_] | None, n: int) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    if values is None:
        return np.array([""]), np.zeros(n, dtype=np.int64)
    names, codes = np.unique(values, return_inverse=True)
    return names, codes


def texts_of(adata: AnnData, key: str) -> NDArray[np.str_]:
    """Read a column of ``adata.obs`` that must have a value for each cell."""
    return texts.texts_of(read_column(adata.obs, key, gaps=False)).astype(str)


def parts_of(adata: AnnData, key: str) -> NDArray[np.str_]:
    """Read the split of each cell from ``adata.obs``; ``""`` for missing values."""
    column = read_column(adata.obs, key)
    names = np.array([text or "" for text in texts.texts_of(column)], dtype=str)
    unknown = sorted(set(names.tolist()) - {"", *PARTS})
    if unknown:
        msg = (
            f"adata.obs[{key!r}] holds {unknown[:3]}; each cell must be 'train', 'validation', 'test' or missing. "
            "Make the split with sg.pp.split_perturbations(adata)."
        )
        raise DataError(msg)
    return names
