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
    Codes, int64 ``(n_obs,)``, and the name of each class, in the order of the codes (sorted by name).

    Raises
    ------
    MissingKeyError
        If the column does not exist.
    DataError
        If a label is missing, if there is only one class, or if the column looks like a measurement.
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
    if pd.api.types.is_float_dtype(column) and column.nunique() > len(column) // 10:
        msg = f"adata.obs[{key!r}] holds {column.nunique():,} different numbers; labels_key must name classes."
        raise DataError(msg)
    classes, codes = np.unique(column.astype(str).to_numpy(dtype=str), return_inverse=True)
    if len(classes) < 2:
        msg = f"adata.obs[{key!r}] holds one class only, {classes[0]!r}; there is nothing to tell apart."
        raise DataError(msg)
    return codes.astype(np.int64), tuple(classes.tolist())
