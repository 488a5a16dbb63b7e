"""Reads what a tool wrote to ``adata.uns``, and checks that it contains the expected tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
from anndata import AnnData

from scgalore._uns import table_in
from scgalore._words import few
from scgalore.data.texts import same_label
from scgalore.errors import DataError, MissingKeyError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "of_group",
    "read_in_silico_record",
    "read_integration_record",
    "read_integration_record",
    "read_network_record",
    "read_prediction_record",
    "read_record",
    "read_scores_record",
]


def read_record(
    adata: AnnData, key: str, *, tables: Iterable[str] = (), holds: Iterable[str] = ("params",), missing: str
) -> dict[str, Any]:
    """Read a dictionary from ``adata.uns``.

    Parameters
    ----------
    adata
        Annotated data matrix.
    key
        Key of the dictionary.
    tables
        Required keys with tables; original column names are restored.
    holds
        Further required keys; ``"params"`` must contain a dictionary.
    missing
        Error message if the key does not exist.

    Returns
    -------
    A shallow copy of the dictionary.

    Raises
    ------
    DataError
        If ``adata`` is not an AnnData, or the value of a key does not have the expected type.
    MissingKeyError
        If the key does not exist.
    """
    if not isinstance(adata, AnnData):
        msg = f"Expected an AnnData, not a {type(adata).__name__}. Pass the modality of a MuData: mdata['rna']."
        raise DataError(msg)
    record = adata.uns.get(key)
    tables, holds = tuple(tables), tuple(holds)
    if not isinstance(record, Mapping) or not {*tables, *holds} <= set(record):
        raise MissingKeyError(missing)
    kinds: dict[str, type] = {
        **dict.fromkeys(tables, pd.DataFrame),
        **({"params": Mapping} if "params" in holds else {}),
    }
    for name, kind in kinds.items():
        if not isinstance(record[name], kind):
            expected = "a table" if kind is pd.DataFrame else "a dictionary"
            msg = (
                f"adata.uns[{key!r}][{name!r}] is a {type(record[name]).__name__}, expected {expected}. Repeat the "
                "call that wrote it, or read the file again."
            )
            raise DataError(msg)
    return {**record, **{name: table_in(record, name) for name in tables}}


def read_prediction_record(adata: AnnData, key: str) -> dict[str, Any]:
    """Read results of :func:`scgalore.tl.predict_perturbation` from ``adata.uns[key]`` with :func:`read_record`."""
    missing = f"There is no prediction in adata.uns[{key!r}]. Call sg.tl.predict_perturbation(adata) first, or pass its key_added as key=."
    record = read_record(adata, key, tables=("means", "effects", "rows"), missing=missing)
    shapes = {name: record[name].shape for name in ("means", "effects")}
    if len({*shapes.values(), (record["means"].shape[0], len(record["rows"]))}) > 1:
        msg = (
            f"adata.uns[{key!r}] has tables of inconsistent shapes: {shapes} for {len(record['rows'])} rows. Call "
            "sg.tl.predict_perturbation(adata) again."
        )
        raise DataError(msg)
    for name in ("control_means", "directions", "embedding", "prior", "observed"):
        if isinstance(record.get(name), pd.DataFrame):
            record[name] = table_in(record, name)
    return record


def read_scores_record(adata: AnnData, key: str) -> dict[str, Any]:
    """Read results of :func:`scgalore.tl.evaluate_perturbation` from ``adata.uns[key]`` with :func:`read_record`."""
    missing = f"There are no scores in adata.uns[{key!r}]. Call sg.tl.evaluate_perturbation(adata) first, or pass its key_added as key=."
    return read_record(adata, key, tables=("scores", "summary", "observed"), missing=missing)


def read_integration_record(adata: AnnData, key: str) -> dict[str, Any]:
    """Read results of :func:`scgalore.tl.evaluate_integration` from ``adata.uns[key]`` with :func:`read_record`."""
    missing = f"There are no scores in adata.uns[{key!r}]. Call sg.tl.evaluate_integration(adata, batch_key, labels_key) first, or pass its key_added as key=."
    return read_record(adata, key, tables=("scores", "columns", "n_cells"), missing=missing)


def read_in_silico_record(adata: AnnData, key: str) -> dict[str, Any]:
    """Read results of :func:`scgalore.tl.perturb_in_silico` from ``adata.uns[key]`` with :func:`read_record`."""
    missing = f"There are no in-silico perturbations in adata.uns[{key!r}]. Call sg.tl.perturb_in_silico(adata) first, or pass its key_added as key=."
    return read_record(adata, key, tables=("shifts", "effects"), missing=missing)


def of_group(table: pd.DataFrame, label: object, column: str) -> pd.DataFrame:
    """Rows of a table with a label in a column, with a new index; all rows for ``None``.

    Parameters
    ----------
    table
        Table of a record.
    label
        Label passed by the user.
    column
        Column to search.

    Raises
    ------
    MissingKeyError
        If no row has this label.
    """
    if label is None:
        return table
    names = list(dict.fromkeys(table[column].astype(str)))
    found = same_label(label, names)
    if found not in names:
        msg = f"This table has no {column} {label!r}; choose from {few(names, 5)}."
        raise MissingKeyError(msg)
    return table[table[column].astype(str) == found].reset_index(drop=True)


def read_network_record(adata: AnnData, key: str) -> dict[str, Any]:
    """Read results of :func:`scgalore.tl.gene_network` from ``adata.uns[key]`` with :func:`read_record`."""
    missing = f"There is no network in adata.uns[{key!r}]. Call sg.tl.gene_network(adata) first, or pass its key_added as key=."
    return read_record(adata, key, tables=("edges", "n_pairs"), missing=missing)
