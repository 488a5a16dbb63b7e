"""What a tool wrote to ``adata.uns``: found by its key, with tables where tables belong."""

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
        Keys in it that must hold tables; they come with the true names of their columns.
    holds
        Keys that it must have as well; ``"params"`` must hold a dictionary.
    missing
        What to say if nothing of the kind is under the key.

    Returns
    -------
    A copy of the dictionary; what it holds is not copied.

    Raises
    ------
    DataError
        If ``adata`` is no AnnData, or what is under a key is not what was written there.
    MissingKeyError
        If there is no such dictionary.
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
                f"adata.uns[{key!r}][{name!r}] is a {type(record[name]).__name__}, and {expected} was written there. Make it again "
                "with the call that wrote it, or read the file anew."
            )
            raise DataError(msg)
    return {**record, **{name: table_in(record, name) for name in tables}}


def read_prediction_record(adata: AnnData, key: str) -> dict[str, Any]:
    """What :func:`scgalore.tl.predict_perturbation` wrote under ``adata.uns[key]``, as :func:`read_record` gives it."""
    missing = f"There is no prediction in adata.uns[{key!r}]. Call sg.tl.predict_perturbation(adata) first, or pass its key_added as key=."
    record = read_record(adata, key, tables=("means", "effects", "rows"), missing=missing)
    shapes = {name: record[name].shape for name in ("means", "effects")}
    if len({*shapes.values(), (record["means"].shape[0], len(record["rows"]))}) > 1:
        msg = (
            f"adata.uns[{key!r}] has tables that do not belong together: {shapes} for {len(record['rows'])} rows. Call "
            "sg.tl.predict_perturbation(adata) again."
        )
        raise DataError(msg)
    for name in ("control_means", "directions", "embedding", "prior", "observed"):
        if isinstance(record.get(name), pd.DataFrame):
            record[name] = table_in(record, name)
    return record


def read_scores_record(adata: AnnData, key: str) -> dict[str, Any]:
    """What :func:`scgalore.tl.evaluate_perturbation` wrote under ``adata.uns[key]``, as :func:`read_record` gives it."""
    missing = f"There are no scores in adata.uns[{key!r}]. Call sg.tl.evaluate_perturbation(adata) first, or pass its key_added as key=."
    return read_record(adata, key, tables=("scores", "summary", "observed"), missing=missing)


def read_integration_record(adata: AnnData, key: str) -> dict[str, Any]:
    """What :func:`scgalore.tl.evaluate_integration` wrote under ``adata.uns[key]``, as :func:`read_record` gives it."""
    missing = f"There are no scores in adata.uns[{key!r}]. Call sg.tl.evaluate_integration(adata, batch_key, labels_key) first, or pass its key_added as key=."
    return read_record(adata, key, tables=("scores", "columns", "n_cells"), missing=missing)


def read_in_silico_record(adata: AnnData, key: str) -> dict[str, Any]:
    """What :func:`scgalore.tl.perturb_in_silico` wrote under ``adata.uns[key]``, as :func:`read_record` gives it."""
    missing = f"There are no in-silico perturbations in adata.uns[{key!r}]. Call sg.tl.perturb_in_silico(adata) first, or pass its key_added as key=."
    return read_record(adata, key, tables=("shifts", "effects"), missing=missing)


def of_group(table: pd.DataFrame, label: object, column: str) -> pd.DataFrame:
    """Rows of a table with a label in a column, numbered anew; all for ``None``.

    Parameters
    ----------
    table
        A table of a record.
    label
        What the user asks for.
    column
        Where it is looked up.

    Raises
    ------
    MissingKeyError
        If no row has it.
    """
    if label is None:
        return table
    names = list(dict.fromkeys(table[column].astype(str)))
    found = same_label(label, names)
    if found not in names:
        msg = f"There is no {column} {label!r} in this table, which has {few(names, 5)}."
        raise MissingKeyError(msg)
    return table[table[column].astype(str) == found].reset_index(drop=True)


def read_network_record(adata: AnnData, key: str) -> dict[str, Any]:
    """What :func:`scgalore.tl.gene_network` wrote under ``adata.uns[key]``, as :func:`read_record` gives it."""
    missing = f"There is no network in adata.uns[{key!r}]. Call sg.tl.gene_network(adata) first, or pass its key_added as key=."
    return read_record(adata, key, tables=("edges", "n_pairs"), missing=missing)
