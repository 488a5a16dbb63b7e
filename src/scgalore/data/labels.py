"""Class labels of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgalore.errors import DataError, MissingKeyError

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["encode_labels"]

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
    column = adata.obs[key]
    n_missing = int(column.isna().sum())
    if n_missing:
        msg = (
            f"{n_missing:,} of {len(column):,} cells have no label in adata.obs[{key!r}]. Train on the labelled ones, "
            f"adata[adata.obs[{key!r}].notna()], and label the others with sg.tl.annotate."
        )
        raise DataError(msg)
    # A categorical's own order is kept, so that plots of labels and predictions use the same colours.
    names = column.astype(str)
    order = column.cat.categories.astype(str) if isinstance(column.dtype, pd.CategoricalDtype) else sorted(set(names))
    classes = pd.Index([name for name in dict.fromkeys(order) if name in set(names)])
    codes = classes.get_indexer(names)
    if len(classes) < 2:
        msg = f"adata.obs[{key!r}] holds one class only, {str(classes[0])!r}; there is nothing to tell apart."
        raise DataError(msg)
    _refuse_measurement(column, key, n_classes=len(classes))
    return codes.astype(np.int64), tuple(classes.tolist())


def _refuse_measurement(column: pd.Series, key: str, *, n_classes: int) -> None:
    is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    share = 0.1 if is_number else 0.5  # names that repeat less than this are barcodes, not classes
    if n_classes > max(MOST_IN_FEW_CELLS, share * len(column)):
        what = "numbers" if is_number else "names"
        msg = (
            f"adata.obs[{key!r}] holds {n_classes:,} different {what} in {len(column):,} cells; labels_key must name "
            "classes, such as cell types. A measurement can be cut into classes with pandas.cut."
        )
        raise DataError(msg)
