"""Read a column of ``obs`` or ``var``, and check that it exists, is unique and has no missing values if required."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from scgalore.errors import DataError, MissingKeyError

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["read_column"]


def read_column(
    table: pd.DataFrame,
    key: Hashable,
    *,
    slot: str = "adata.obs",
    asked: str = "",
    hint: str = "",
    gaps: bool = True,
) -> pd.Series:
    """Read one column of a table of cells or genes.

    Parameters
    ----------
    table
        ``adata.obs`` or ``adata.var``.
    key
        Name of the column.
    slot
        Name of the table in messages.
    asked
        Parameter with the column, for messages.
    hint
        Advice if the column does not exist, as a sentence.
    gaps
        Whether values may be missing.

    Raises
    ------
    MissingKeyError
        If the column does not exist.
    DataError
        If there are several columns with that name, or values are missing although this is not allowed.
    """
    if not pd.api.types.is_hashable(key) or key not in table.columns:
        found = list(table.columns)
        what = (
            f"{asked}={key!r} is not a column of {slot}, which has" if asked else f"No column {key!r} in {slot}; it has"
        )
        msg = f"{what} {found}.{hint and ' '}{hint}"
        raise MissingKeyError(msg)
    column = table[key]
    if isinstance(column, pd.DataFrame):
        msg = (
            f"{slot} has {column.shape[1]} columns named {key!r}; expected one. Rename the others, or keep the "
            "first of each name: table.loc[:, ~table.columns.duplicated()]."
        )
        raise DataError(msg)
    n_missing = 0 if gaps else int(column.isna().sum())
    if n_missing:
        what = "genes" if slot.endswith("var") else "cells"
        msg = f"{slot}[{key!r}] is empty for {n_missing:,} of {len(column):,} {what}. Fill or remove them."
        raise DataError(msg)
    return column
