"""Columns with batches, and with labels that may be incomplete."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgalore import _logging as logg
from scgalore._words import few
from scgalore.data.columns import read_column
from scgalore.data.labels import class_codes, in_order, refuse_measurement
from scgalore.data.texts import looks_missing, texts_of
from scgalore.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["batches_of", "read_batches", "read_labels", "refuse_single", "warn_nested"]

FEWEST = 2
"""Minimum number of cells per batch: with one cell, batch effect and cell are confounded."""


def read_batches(adata: AnnData, key: str, *, fewest: int = 2) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Names of the batches in a column of ``obs``, and the code of each cell, int64 ``(n_obs,)``.

    Parameters
    ----------
    adata
        Cells.
    key
        The column.
    fewest
        Minimum number of batches.

    Raises
    ------
    MissingKeyError
        If the column does not exist.
    DataError
        If a cell has no batch, there are too few batches, a batch has a single cell, or the column looks like a
        measurement.
    """
    column, where = read_column(adata.obs, key, asked="batch_key"), f"adata.obs[{key!r}]"
    names = batches_of(column, where)
    refuse_measurement(column, where, n_classes=len(names))
    if len(names) < fewest:
        refuse_single(names, where)
    codes = class_codes(column, names)
    sizes = np.bincount(codes, minlength=len(names))
    small = [name for name, size in zip(names, sizes, strict=True) if size < FEWEST]
    if small:
        msg = (
            f"{where} has batches with a single cell: {few(small)} ({len(small):,} in total), for which batch effects cannot be estimated. Merge "
            f"them with others, or exclude them: adata[~{where}.isin({small})]."
        )
        raise DataError(msg)
    return names, codes


def refuse_single(names: Sequence[str], where: str) -> None:
    """Raise an error for a single batch."""
    msg = f"{where} has only one batch, {names[0]!r}; expected at least two. Pass a column with several batches."
    raise DataError(msg)


def batches_of(column: pd.Series, where: str) -> tuple[str, ...]:
    """Names of the batches, sorted; a missing one is a :class:`~scgalore.errors.DataError`."""
    texts = texts_of(column)
    missing = np.array([text is None or looks_missing(text) for text in texts], dtype=bool)
    if missing.any():
        msg = (
            f"{int(missing.sum()):,} of {len(texts):,} cells have no batch in {where}. Assign them a batch, such as 'unknown', or exclude "
            f"them: adata[{where}.notna()]."
        )
        raise DataError(msg)
    return in_order(texts)


def read_labels(adata: AnnData, key: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Names of the classes in a column of ``obs``, and the code of each cell, -1 without a label.

    Raises
    ------
    MissingKeyError
        If the column does not exist.
    DataError
        If there are fewer than two classes, or the column looks like a measurement.
    """
    column, where = read_column(adata.obs, key, asked="labels_key"), f"adata.obs[{key!r}]"
    texts = texts_of(column)
    classes = in_order(text for text in texts if text is not None and not looks_missing(text))
    if len(classes) < 2:
        found = f"only one class, {classes[0]!r}" if classes else "no labels"
        msg = f"{where} has {found}; expected at least two classes. Omit labels_key=."
        raise DataError(msg)
    refuse_measurement(column, where, n_classes=len(classes))
    return classes, class_codes(column, classes)


def warn_nested(labels: NDArray[np.int64], batches: NDArray[np.int64], labels_key: str, batch_key: str) -> None:
    """Warn if no class is in two batches."""
    known = labels >= 0
    pairs = np.unique(np.column_stack([labels[known], batches[known]]), axis=0)
    if len(pairs) == len(np.unique(labels[known])):
        logg.warning(
            f"Every class of adata.obs[{labels_key!r}] occurs in only one batch of adata.obs[{batch_key!r}]. Batches and classes are "
            "confounded: removing batch effects also removes differences between classes."
        )
