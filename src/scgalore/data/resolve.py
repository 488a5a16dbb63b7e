"""The AnnData to work on, whatever the user holds: an AnnData, or a MuData with the cells in one modality."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData, ImplicitModificationWarning

from scgalore._options import Kind, is_text
from scgalore.errors import DataError, MissingKeyError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mudata import MuData
    from numpy.typing import NDArray

__all__ = [
    "CELLS",
    "cells_of",
    "copied",
    "first_modality",
    "writable_adata",
    "refuse_elsewhere",
    "resolve_adata",
    "shown_keys",
    "write_obs",
    "write_var",
]

CELLS = Kind(
    "it must be an AnnData, or the path of an .h5ad file",
    lambda value: isinstance(value, AnnData | Path) or is_text(value),
    plain=lambda value: value if isinstance(value, AnnData) else str(Path(value).expanduser().absolute()),
    record=lambda value: f"{value.n_obs} cells x {value.n_vars} genes" if isinstance(value, AnnData) else value,
)
"""Cells that an option names, in addition to those that a function works on."""


def cells_of(value: AnnData | str, name: str) -> AnnData:
    """Cells that an option of the kind :data:`CELLS` names; those of a file stay there until they are read.

    Parameters
    ----------
    value
        Value of the option.
    name
        Its name.

    Raises
    ------
    DataError
        If there is no such file, or the object cannot be read.
    """
    if isinstance(value, AnnData):
        _refuse_lazy(value)
        return value
    if not Path(value).is_file():
        msg = f"{name}={value!r}: there is no such file. Pass an AnnData, or the path of an .h5ad file."
        raise DataError(msg)
    return ad.read_h5ad(value, backed="r")


def resolve_adata(data: AnnData | MuData, *, mod: str = "rna") -> AnnData:
    """Return the AnnData to read from and write to.

    Parameters
    ----------
    data
        Annotated data, of one modality or of several.
    mod
        Modality to use of a MuData; ignored for an AnnData.

    Returns
    -------
    The object itself, or the modality it holds (not a copy: what is written there lands in ``data``).
    """
    if isinstance(data, AnnData):
        _refuse_lazy(data)
        return data
    if not _is_mudata(data):
        msg = f"Expected an AnnData or a MuData, found {type(data).__name__}{_HINTS.get(type(data).__name__, '')}."
        raise TypeError(msg)
    if mod not in data.mod:
        msg = f"The MuData has no modality {mod!r}; it has {', '.join(map(repr, data.mod))}. Pass one of them as mod=."
        raise MissingKeyError(msg)
    adata = data.mod[mod]
    if not isinstance(adata, AnnData):
        msg = f"Modality {mod!r} is a {type(adata).__name__}, expected an AnnData."
        raise DataError(msg)
    if not adata.obs_names.is_unique:
        # Found here, before any work: results could not be brought to the MuData's own obs.
        msg = f"Modality {mod!r} has repeated obs_names; make them unique before the MuData is made."
        raise DataError(msg)
    _refuse_lazy(adata)
    return adata


def first_modality(data: AnnData | MuData, mod: str | Sequence[str]) -> tuple[str, AnnData | None]:
    """Name of the modality to work on, and the AnnData of the second one, where two are named.

    Parameters
    ----------
    data
        What the user holds.
    mod
        Name of a modality, or of that with RNA and that with proteins.

    Raises
    ------
    OptionError
        If there are more or fewer, or ``data`` has no modalities.
    MissingKeyError
        If there is no such modality.
    """
    if isinstance(mod, str):
        return mod, None
    names = list(mod) if isinstance(mod, Sequence) else [mod]
    if not all(map(is_text, names)) or len(names) != 2 or len(set(names)) != 2:
        msg = f'mod={mod!r}: name one modality, or two, such as ["rna", "prot"].'
        raise OptionError(msg)
    if isinstance(data, AnnData):
        msg = f"mod={names!r} names modalities of a MuData, and this is an AnnData. Pass protein= with a key of its obsm, or another AnnData."
        raise OptionError(msg)
    return names[0], resolve_adata(data, mod=names[1])


def writable_adata(data: AnnData | MuData, *, mod: str = "rna") -> AnnData:
    """Find the AnnData to work on and make sure that results can be written to it; nothing changes yet."""
    adata = resolve_adata(data, mod=mod)
    if adata.is_view and adata.isbacked:
        msg = "This is a view of a backed file, which results cannot be written to. Use adata[...].to_memory()."
        raise DataError(msg)
    return adata


def copied(data: AnnData | MuData, *, mod: str = "rna") -> AnnData | MuData:
    """Copy what ``copy=True`` is to return."""
    adata = writable_adata(data, mod=mod)
    if adata.isbacked:
        msg = "copy=True cannot copy an AnnData that is backed by a file. Leave copy out, or pass adata.to_memory()."
        raise DataError(msg)
    return data.copy()


def refuse_elsewhere(data: AnnData | MuData, *, mod: str = "rna", obs: Mapping[str, Any], **var: Any) -> None:
    """Say where a column is that the modality does not have and the MuData around it has.

    Parameters
    ----------
    data
        What the user holds; nothing is done for an AnnData.
    mod
        Modality that is read.
    obs
        Columns of ``obs`` that a call reads, by the name of its argument; ``None`` where nothing is read.
    **var
        The same for columns of ``var``.

    Raises
    ------
    MissingKeyError
        If one stands in the tables of the MuData only.
    """
    if not _is_mudata(data):
        return
    for slot, keys in (("obs", obs), ("var", var)):
        own, whole = getattr(data.mod[mod], slot), getattr(data, slot)
        for argument, key in keys.items():
            if not isinstance(key, str) or key in own or key not in whole:
                continue
            bare = key.removeprefix(f"{mod}:")
            table = f"mdata.mod[{mod!r}].{slot}"
            call = (
                f"pass {argument}={bare!r}"
                if bare in own
                else f"{table}[{key!r}] = mdata.{slot}[{key!r}].reindex({table}.index)"
            )
            msg = (
                f"{argument}={key!r} is a column of the MuData's {slot}, and {slot} of its modality {mod!r} has none of that name; "
                f"it has {list(own.columns)}. Read it there: {call}."
            )
            raise MissingKeyError(msg)


def _refuse_lazy(adata: AnnData) -> None:
    """Refuse tables that are not in memory, as those of :func:`anndata.experimental.read_lazy`."""
    for slot in ("obs", "var"):
        table = getattr(adata, slot)
        if not isinstance(table, pd.DataFrame):
            msg = (
                f"adata.{slot} is a {type(table).__name__}, expected a pandas.DataFrame. Bring the AnnData into memory with "
                "adata = adata.to_memory(), or open the file with anndata.read_h5ad(path, backed='r')."
            )
            raise DataError(msg)


def write_obs(data: AnnData | MuData, adata: AnnData, keys: Iterable[str], mod: str = "rna") -> None:
    """Show columns of a modality in the obs of its MuData, as ``"{mod}:{key}"``.

    Parameters
    ----------
    data
        What the user holds; nothing is done for an AnnData.
    adata
        The modality, with the columns already in its obs.
    keys
        Columns to show.
    mod
        Name of the modality.
    """
    if _is_mudata(data):
        _show(data, "obs", adata.obs, adata.obs_names.get_indexer(data.obs_names), keys, mod)


def write_var(data: AnnData | MuData, adata: AnnData, keys: Iterable[str], mod: str = "rna") -> None:
    """Show columns of a modality in the var of its MuData, as :func:`write_obs` does for obs."""
    if _is_mudata(data):
        # By mudata's map and not by name: a protein may be called like a gene. It counts from 1; 0 is of another modality.
        place = np.asarray(data.varmap[mod]).ravel().astype(np.int64) - 1
        _show(data, "var", adata.var, place, keys, mod)


def shown_keys(data: Any, slot: str, keys: Iterable[str], mod: str = "rna") -> list[str]:
    """Names under which a MuData shows columns of a modality in its own ``obs`` or ``var``; none for an AnnData.

    Parameters
    ----------
    data
        What the user holds.
    slot
        Where the columns are.
    keys
        Their names in the modality.
    mod
        Name of the modality.
    """
    return [f"{mod}:{key}" for key in keys] if slot in ("obs", "var") and _is_mudata(data) else []


def _show(data: MuData, slot: str, own: pd.DataFrame, place: NDArray[np.int64], keys: Iterable[str], mod: str) -> None:
    """Bring columns to other rows, of which each has its place among the own ones; -1 becomes a missing value."""
    with warnings.catch_warnings():
        # Writing turns a view into an object of its own, as it does everywhere in scanpy; mudata's way there warns of
        # what its next version will do.
        warnings.simplefilter("ignore", ImplicitModificationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        for key in keys:
            column = own[key].reset_index(drop=True)
            if column.dtype == bool and (place < 0).any():
                # Plain bool with holes becomes an object column, which no h5mu file can hold.
                column = column.astype("boolean")
            table = getattr(data, slot)  # another one after a view was written to
            (shown,) = shown_keys(data, slot, [key], mod)
            table[shown] = column.reindex(place).set_axis(table.index)


def _is_mudata(data: Any) -> bool:
    # By name: importing mudata to look at an AnnData would cost its import time for nothing.
    return any(f"{base.__module__.partition('.')[0]}.{base.__name__}" == "mudata.MuData" for base in type(data).__mro__)


_HINTS = {
    "str": "; read the file first with sc.read_h5ad",
    "PosixPath": "; read the file first with sc.read_h5ad",
    "Raw": "; call adata.raw.to_adata()",
    "DataFrame": "; wrap it with anndata.AnnData(frame)",
    "ndarray": "; wrap it with anndata.AnnData(array) and set var_names to gene names",
    "SpatialData": '; pass its table, sdata.tables["table"]',
}
