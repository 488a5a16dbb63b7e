"""Vectors of compounds, such as fingerprints or embeddings of their structure, from an AnnData."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scgalore._words import few
from scgalore.data.texts import texts_of
from scgalore.errors import DataError, MissingKeyError
from scgalore.perturb.labels.parsing import subject_of

if TYPE_CHECKING:
    from anndata import AnnData

    from scgalore.perturb.labels.conditions import Conditions

__all__ = ["read_vectors", "require_vectors"]


def read_vectors(adata: AnnData, key: str, conditions: Conditions) -> pd.DataFrame:
    """Read vectors of compounds, float64, one row per compound.

    Parameters
    ----------
    adata
        Contains the key in ``uns`` (a table with compounds as index, or a dictionary from compounds to vectors) or in
        ``obsm`` (a vector for each cell, the same for all cells of a compound).
    key
        Key of the vectors.
    conditions
        Compound of each cell; each compound must have a vector.

    Raises
    ------
    MissingKeyError
        If neither slot has the key.
    DataError
        If a compound has no vector or several, they are not numbers of one length, all finite, or columns of a table
        are not named by text.
    """
    _refuse_columns_without_names(adata, key)
    if key in adata.uns:
        table = _of_table(adata.uns[key], key)
    elif key in adata.obsm:
        table = _of_cells(adata.obsm[key], key, conditions)
    else:
        msg = (
            f"vectors_key={key!r} is neither in adata.uns, which has {few(adata.uns, 8) or 'nothing'}, nor in adata.obsm, which has "
            f"{few(adata.obsm, 8) or 'nothing'}. Write a table with one row per compound to adata.uns[{key!r}]."
        )
        raise MissingKeyError(msg)
    if not np.isfinite(table.to_numpy()).all():
        msg = f"Vectors of compounds under {key!r} hold NaN or infinity. Leave out these columns, or fill them in."
        raise DataError(msg)
    require_vectors([agent for agents in conditions.genes for agent in agents], table, key)
    return table


def require_vectors(agents: list[str], table: pd.DataFrame, key: str) -> None:
    """Raise :class:`~scgalore.errors.DataError` if a compound has no vector.

    Parameters
    ----------
    agents
        Compounds at doses.
    table
        Table with one row per compound.
    key
        Key of the table.
    """
    compounds = list(dict.fromkeys(map(subject_of, agents)))
    lacking = [compound for compound in compounds if compound not in table.index]
    if lacking:
        msg = (
            f"{len(lacking)} of {len(compounds)} compounds have no vector under {key!r}: {few(lacking, 5)}. It has "
            f"{few(list(table.index), 5)}. Add their rows, by the names that the labels have, or leave their cells out."
        )
        raise DataError(msg)


def _refuse_columns_without_names(adata: AnnData, key: str) -> None:
    """Raise an error for numeric column names, with which AnnData cannot be written to a file."""
    slot = "uns" if key in adata.uns else "obsm"
    table = getattr(adata, slot).get(key)
    if isinstance(table, pd.DataFrame) and not all(isinstance(name, str) for name in table.columns):
        where = f"adata.{slot}[{key!r}]"
        msg = (
            f"Columns of {where} are named {few(table.columns)}, which are no texts, so that AnnData cannot write it to a file. "
            f"Rename them: {where}.columns = {where}.columns.astype(str)."
        )
        raise DataError(msg)


def _of_table(value: object, key: str) -> pd.DataFrame:
    try:
        if isinstance(value, pd.DataFrame):
            table = value.astype(np.float64)
        elif isinstance(value, Mapping):
            rows = {name: np.asarray(vector, dtype=np.float64).ravel() for name, vector in value.items()}
            table = pd.DataFrame(np.stack(list(rows.values())), index=list(rows))
        else:
            msg = f"a {type(value).__name__}"
            raise TypeError(msg)
    except (TypeError, ValueError) as error:
        msg = (
            f"adata.uns[{key!r}] cannot be read as vectors of compounds ({error}). Expected a table of numbers with compounds "
            "as index, or a dictionary from compounds to vectors of one length."
        )
        raise DataError(msg) from error
    table = table.set_axis(pd.Index(texts_of(table.index), dtype=object), axis=0)
    if table.index.has_duplicates or table.shape[1] == 0:
        twice = few(list(table.index[table.index.duplicated()]), 3)
        msg = f"adata.uns[{key!r}] has {f'several vectors of {twice}' if twice else 'no columns'}. Keep one row per compound."
        raise DataError(msg)
    return table


def _of_cells(value: object, key: str, conditions: Conditions) -> pd.DataFrame:
    # np.asarray does not convert tables or sparse matrices to arrays of their values.
    dense = value.toarray() if sp.issparse(value) else np.asarray(value)  # type: ignore[attr-defined]
    rows = np.asarray(dense, dtype=np.float64)
    compounds = np.array([subject_of(genes[0]) if genes else "" for genes in conditions.genes], dtype=object)
    of_cell = np.where(conditions.codes > 0, compounds[conditions.codes], "")
    table = {}
    for compound in dict.fromkeys(compounds[1:]):
        cells = rows[of_cell == compound]
        if not np.allclose(cells, cells[0], equal_nan=True):
            msg = f"Cells of {compound!r} have different vectors in adata.obsm[{key!r}]; a compound has one. Correct them, or write a table to adata.uns."
            raise DataError(msg)
        table[compound] = cells[0]
    return pd.DataFrame(np.stack(list(table.values())), index=list(table)) if table else pd.DataFrame()
