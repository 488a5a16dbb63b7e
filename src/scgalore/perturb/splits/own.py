"""Find the column of ``obs`` with a split of the perturbations in the data.

Many objects have a column ``"split"`` that is unrelated: a split of cells, of another column, or of other data. It is
used by default only if ``uns`` contains the record written with such a split, for the same column of perturbations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from scgalore import __version__
from scgalore import _logging as logg
from scgalore._keys import PerturbationKeys
from scgalore._words import few
from scgalore.data.columns import read_column
from scgalore.data.split import PARTS
from scgalore.data.texts import texts_of
from scgalore.errors import DataError
from scgalore.perturb.labels.reading import condition_texts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scgalore.perturb.labels.conditions import Conditions
    from scgalore.perturb.splits.split import PerturbationSplit

__all__ = ["SPLIT_KEYS", "free_split_key", "groups_in", "is_own_split", "own_split", "record_split", "refuse_changed"]

SPLIT_KEYS = (PerturbationKeys().split, "perturbation_split")
"""Default keys of a split; the second is used if the first is another column."""

DROPPED = "dropped"


class Tables(Protocol):
    """Required interface of an AnnData, or of its file."""

    @property
    def obs(self) -> pd.DataFrame:
        """Columns of cells."""
        ...

    @property
    def uns(self) -> Mapping[str, Any]:
        """Records."""
        ...


def record_split(
    split: PerturbationSplit, conditions: Conditions, obs: pd.DataFrame, params: Mapping[str, Any]
) -> tuple[pd.Categorical[Any], dict[str, Any]]:
    """Entries of ``obs`` and ``uns`` for a split.

    Parameters
    ----------
    split
        The split.
    conditions
        Perturbation of each cell.
    obs
        Cell annotations with the labels.
    params
        Parameters of the split, with ``kind``, ``pert_key``, ``dose_key`` and ``context_key``.
    """
    parts = np.asarray(split.cell_labels(conditions), dtype=object)
    record = {
        "params": dict(params),
        **{part: list(getattr(split, part)) for part in (*PARTS, DROPPED)},
        "groups": {group: list(members) for group, members in split.groups.items()},
        "cells": _cells(condition_texts(obs, params), parts),
        "labels_sha256": hashlib.sha256("\n".join(sorted(conditions.labels)).encode()).hexdigest(),
        "version": __version__,
    }
    return pd.Categorical(parts, categories=list(PARTS)), record


def own_split(
    data: Tables, *, pert_key: str, context_key: str | None = None, dose_key: str | None = None
) -> str | None:
    """Column with a split made for these perturbations, or ``None``; a similar column that is not used is logged.

    Parameters
    ----------
    data
        Cells.
    pert_key
        Column of perturbations.
    context_key
        Column of contexts, for splits that hold out contexts.
    dose_key
        Column of doses.

    Raises
    ------
    DataError
        If the column has changed since it was written.
    """
    where = {"pert_key": pert_key, "context_key": context_key, "dose_key": dose_key}
    for key in SPLIT_KEYS:
        if key in data.obs.columns and is_own_split(data, key, **where):
            return key
    return None


def is_own_split(
    data: Tables, key: str, *, pert_key: str | None, context_key: str | None = None, dose_key: str | None = None
) -> bool:
    """Whether a column is a split made for these perturbations; the reason against it is logged once.

    Parameters
    ----------
    data, pert_key, context_key, dose_key
        As for :func:`own_split`.
    key
        Column of ``obs``.

    Raises
    ------
    DataError
        If the column has changed since it was written.
    """
    params = _params(data.uns.get(key))
    use = f"split_key={key!r} uses it."
    if params is None:
        _say(
            data,
            logg.info,
            f"    adata.obs[{key!r}] is not used: it was not written by sg.pp.split_perturbations. {use}",
        )
    elif params.get("pert_key") != pert_key:
        was = f"was made for pert_key={params.get('pert_key')!r}"
        _say(data, logg.warning, f"adata.obs[{key!r}] {was} and is not used for {pert_key!r}. {use}")
    elif params.get("dose_key") != dose_key:
        was = f"was made for dose_key={params.get('dose_key')!r}"
        _say(data, logg.warning, f"adata.obs[{key!r}] {was} and is not used for dose_key={dose_key!r}. {use}")
    elif params.get("kind") == "context" and params.get("context_key") != context_key:
        was = f"holds out values of context_key={params.get('context_key')!r}"
        _say(data, logg.warning, f"adata.obs[{key!r}] {was} and is not used for context_key={context_key!r}. {use}")
    else:
        refuse_changed(data, key)
        return True
    return False


def refuse_changed(data: Tables, key: str) -> None:
    """Raise :class:`~scgalore.errors.DataError` if a column contradicts the record written with it, if any.

    Parameters
    ----------
    data
        Cells. Cells may have been removed, and some may no longer have a split.
    key
        Column of ``obs``.
    """
    record = data.uns.get(key)
    params = _params(record)
    if params is None or params.get("pert_key") not in data.obs.columns:
        return
    if params.get("dose_key") is not None and params["dose_key"] not in data.obs.columns:
        return
    assert isinstance(record, Mapping)
    before = record.get("cells")
    if not isinstance(before, pd.DataFrame):
        return  # version 0.5.0 did not write it
    now = _cells(condition_texts(data.obs, params), texts_of(read_column(data.obs, key, asked="split_key")))
    before = before.set_axis(before.index.astype(str), axis=0)
    new = now.index.difference(before.index, sort=False)
    known = now.index.intersection(before.index, sort=False)
    held = list(PARTS)  # cells may be excluded: they are neither trained on nor scored
    moved = known[((now.loc[known, held] > 0) & (before.loc[known, held] == 0)).any(axis=1).to_numpy()]
    if len(new) == len(moved) == 0:
        return
    faults = {f"{len(new)} labels are new ({few(list(new), 5)})": len(new)}
    faults |= {f"{len(moved)} are in other splits than recorded ({few(list(moved), 5)})": len(moved)}
    msg = (
        f"adata.obs[{key!r}] is no longer the split that adata.uns[{key!r}] records: "
        f"{' and '.join(text for text, n in faults.items() if n)}. Cells were added, or the column was changed. Call "
        f"sg.pp.split_perturbations(adata) again, or pass split_key={key!r} to use it anyway."
    )
    raise DataError(msg)


def free_split_key(data: Tables) -> str:
    """Key under which a split can be written without replacing anything."""
    taken = {*data.obs.columns, *data.uns}
    numbered = (f"{SPLIT_KEYS[-1]}_{i}" for i in range(2, len(taken) + 3))
    return next(key for key in (*SPLIT_KEYS, *numbered) if key not in taken)


def groups_in(uns: Mapping[str, Any], key: str | None) -> dict[str, str]:
    """Group of each test perturbation of a split, from its record; empty without a record.

    Parameters
    ----------
    uns
        ``uns`` of an AnnData.
    key
        Key of the split.
    """
    record = None if key is None else uns.get(key)
    groups = record.get("groups") if _params(record) is not None and isinstance(record, Mapping) else None
    if not isinstance(groups, Mapping):
        return {}
    return {str(name): str(group) for group, names in groups.items() for name in names}


def _params(record: Any) -> Mapping[str, Any] | None:
    """Parameters of a split, if this is the record of one."""
    params = record.get("params") if isinstance(record, Mapping) else None
    return params if isinstance(params, Mapping) and {"kind", "pert_key"} <= set(params) else None


def _cells(labels: Iterable[str | None], parts: Iterable[str | None]) -> pd.DataFrame:
    """Number of cells by label and split."""
    table = pd.DataFrame({"label": list(labels), "part": [part or DROPPED for part in parts]}).dropna()
    counts = table.groupby(["label", "part"], sort=False).size().unstack(fill_value=0)
    counts = counts.reindex(columns=[*PARTS, DROPPED], fill_value=0).astype(np.int64)
    return counts.rename_axis(index=None, columns=None)


def _say(data: Tables, say: Any, message: str) -> None:
    if logg.is_news(data, message):
        say(message)
