"""Class labels of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgalore.errors import DataError, MissingKeyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["class_codes", "classes_of", "encode_labels", "refuse_measurement"]

MOST_IN_FEW_CELLS = 20
"""Classes that any column may have, however few cells there are."""


def encode_labels(adata: AnnData, key: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Read a column of ``adata.obs`` as class codes.

    Parameters
    ----------
    adata
        Cells.
    key
        Column with one label for each cell.

    Returns
    -------
    Codes, int64 ``(n_obs,)``, and the name of each class, in the order of the codes: that of a
    categorical column, otherwise sorted.

    Raises
    ------
    MissingKeyError
        If the column does not exist.
    DataError
        If a label is missing, if there is only one class, or if the column looks like a measurement or a name of cells.
    """
    if key not in adata.obs:
        msg = f"No column {key!r} in adata.obs; it has {list(adata.obs.columns)}."
        raise MissingKeyError(msg)
    column, where = adata.obs[key], f"adata.obs[{key!r}]"
    classes = classes_of(column, where)
    if len(classes) < 2:
        msg = f"{where} holds one class only, {str(classes[0])!r}; there is nothing to tell apart."
        raise DataError(msg)
    refuse_measurement(column, where, n_classes=len(classes))
    return class_codes(column, classes), classes


def classes_of(column: pd.Series, where: str) -> tuple[str, ...]:
    """Names of the classes in a column: in the order of a categorical column, otherwise sorted.

    Parameters
    ----------
    column
        One label for each cell.
    where
        What to call the column in messages.

    Raises
    ------
    DataError
        If a label is missing.
    """
    n_missing = int(column.isna().sum())
    if n_missing:
        msg = (
            f"{n_missing:,} of {len(column):,} cells have no label in {where}. Train on the labelled ones, "
            f"adata[adata.obs[{str(column.name)!r}].notna()], and label the others with sg.tl.annotate."
        )
        raise DataError(msg)
    # A categorical's own order is kept, so that plots of labels and predictions use the same colours.
    if isinstance(column.dtype, pd.CategoricalDtype):
        used = np.unique(column.cat.codes)
        return tuple(dict.fromkeys(column.cat.categories[used].astype(str)))
    return tuple(sorted(set(column.astype(str))))


def class_codes(column: pd.Series, classes: Sequence[str]) -> NDArray[np.int64]:
    """Position of each label among the classes, -1 for a label that is none of them.

    Parameters
    ----------
    column
        One label for each cell.
    classes
        Names of the classes.
    """
    names = pd.Index(list(classes))
    if isinstance(column.dtype, pd.CategoricalDtype):
        of_category = names.get_indexer(pd.Index(column.cat.categories.astype(str)))
        return np.append(of_category, -1)[column.cat.codes].astype(np.int64)  # the code of a missing label is -1
    return names.get_indexer(pd.Index(column.astype(str))).astype(np.int64)


def refuse_measurement(column: pd.Series, where: str, *, n_classes: int) -> None:
    """Raise :class:`~scgalore.errors.DataError` if a column looks like a measurement or like names of cells."""
    is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    share = 0.1 if is_number else 0.5  # names that repeat less than this are barcodes, not classes
    if n_classes > max(MOST_IN_FEW_CELLS, share * len(column)):
        what = "numbers" if is_number else "names"
        msg = (
            f"{where} holds {n_classes:,} different {what} in {len(column):,} cells; labels_key must name "
            "classes, such as cell types. A measurement can be cut into classes with pandas.cut."
        )
        raise DataError(msg)
