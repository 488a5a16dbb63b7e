"""Finds the AnnData to work on: the AnnData itself, or a modality of a MuData."""

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
"""Option for cells in addition to those that a function works on."""


def cells_of(value: AnnData | str, name: str) -> AnnData:
    """Open the cells of an option of the kind :data:`CELLS`; files are opened in backed mode.

    Parameters
    ----------
    value
        Value of the option.
    name
        Name of the option.

    Raises
    ------
    DataError
        If the file does not exist, or the object cannot be read.
    """
    if isinstance(value, AnnData):
        _refuse_lazy(value)
        return value
    if not Path(value).is_file():
        msg = f"{name}={value!r}: file not found. Pass an AnnData or the path of an .h5ad file."
        raise DataError(msg)
    return ad.read_h5ad(value, backed="r")


def resolve_adata(data: AnnData | MuData, *, mod: str = "rna") -> AnnData:
    """Return the AnnData to read from and write to.

    Parameters
    ----------
    data
        AnnData or MuData.
    mod
        Modality of a MuData; ignored for an AnnData.

    Returns
    -------
    The object itself, or its modality (not a copy, so that results are written to ``data``).
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
        # Checked before any work: results could not be added to the obs of the MuData.
        msg = f"Modality {mod!r} has repeated obs_names; make them unique before creating the MuData."
        raise DataError(msg)
    _refuse_lazy(adata)
    return adata


def first_modality(data: AnnData | MuData, mod: str | Sequence[str]) -> tuple[str, AnnData | None]:
    """Name of the modality to work on, and the AnnData of the second modality if two are passed.

    Parameters
    ----------
    data
        AnnData or MuData.
    mod
        Name of one modality, or names of those with RNA and with proteins.

    Raises
    ------
    OptionError
        If there are not one or two names, or ``data`` has no modalities.
    MissingKeyError
        If the modality does not exist.
    """
    if isinstance(mod, str):
        return mod, None
    names = list(mod) if isinstance(mod, Sequence) else [mod]
    if not all(map(is_text, names)) or len(names) != 2 or len(set(names)) != 2:
        msg = f'mod={mod!r}: expected the name of one modality, or of two, such as ["rna", "prot"].'
        raise OptionError(msg)
    if isinstance(data, AnnData):
        msg = (
            f"mod={names!r} requires a MuData, found an AnnData. Pass a key of its obsm or another AnnData as protein=."
        )
        raise OptionError(msg)
    return names[0], resolve_adata(data, mod=names[1])


def writable_adata(data: AnnData | MuData, *, mod: str = "rna") -> AnnData:
    """Find the AnnData to work on and check that results can be written to it, without changing it."""
    adata = resolve_adata(data, mod=mod)
    if adata.is_view and adata.isbacked:
        msg = "Results cannot be written to a view of a backed file. Use adata[...].to_memory()."
        raise DataError(msg)
    return adata


def copied(data: AnnData | MuData, *, mod: str = "rna") -> AnnData | MuData:
    """Copy the data for ``copy=True``."""
    adata = writable_adata(data, mod=mod)
    if adata.isbacked:
        msg = "copy=True cannot copy an AnnData in backed mode. Omit copy, or pass adata.to_memory()."
        raise DataError(msg)
    return data.copy()


def refuse_elsewhere(data: AnnData | MuData, *, mod: str = "rna", obs: Mapping[str, Any], **var: Any) -> None:
    """Raise an error with advice if a column exists in the MuData but not in the modality.

    Parameters
    ----------
    data
        AnnData or MuData; nothing is done for an AnnData.
    mod
        Modality to read.
    obs
        Columns of ``obs`` that a call reads, by argument name; ``None`` for unused arguments.
    **var
        Columns of ``var`` that a call reads, by argument name.

    Raises
    ------
    MissingKeyError
        If a column exists only in the tables of the MuData.
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
                f"{argument}={key!r} is a column of {slot} of the MuData, but not of its modality {mod!r}, which has "
                f"{list(own.columns)}. To use it: {call}."
            )
            raise MissingKeyError(msg)


def _refuse_lazy(adata: AnnData) -> None:
    """Reject tables that are not in memory, such as those of :func:`anndata.experimental.read_lazy`."""
    for slot in ("obs", "var"):
        table = getattr(adata, slot)
        if not isinstance(table, pd.DataFrame):
            msg = (
                f"adata.{slot} is a {type(table).__name__}, expected a pandas.DataFrame. Load the AnnData into memory with "
                "adata = adata.to_memory(), or open the file with anndata.read_h5ad(path, backed='r')."
            )
            raise DataError(msg)


def write_obs(data: AnnData | MuData, adata: AnnData, keys: Iterable[str], mod: str = "rna") -> None:
    """Add columns of a modality to the obs of its MuData as ``"{mod}:{key}"``.

    Parameters
    ----------
    data
        AnnData or MuData; nothing is done for an AnnData.
    adata
        The modality, with the columns in its obs.
    keys
        Columns to add.
    mod
        Name of the modality.
    """
    if _is_mudata(data):
        _show(data, "obs", adata.obs, adata.obs_names.get_indexer(data.obs_names), keys, mod)


def write_var(data: AnnData | MuData, adata: AnnData, keys: Iterable[str], mod: str = "rna") -> None:
    """Add columns of a modality to the var of its MuData, as :func:`write_obs` does for obs."""
    if _is_mudata(data):
        # By mudata's map, not by name, since a protein can have the name of a gene. It counts from 1; 0 is another
        # modality.
        place = np.asarray(data.varmap[mod]).ravel().astype(np.int64) - 1
        _show(data, "var", adata.var, place, keys, mod)


def shown_keys(data: Any, slot: str, keys: Iterable[str], mod: str = "rna") -> list[str]:
    """Names of columns of a modality in the ``obs`` or ``var`` of the MuData; empty for an AnnData.

    Parameters
    ----------
    data
        AnnData or MuData.
    slot
        ``"obs"`` or ``"var"``.
    keys
        Names of the columns in the modality.
    mod
        Name of the modality.
    """
    return [f"{mod}:{key}" for key in keys] if slot in ("obs", "var") and _is_mudata(data) else []


def _show(data: MuData, slot: str, own: pd.DataFrame, place: NDArray[np.int64], keys: Iterable[str], mod: str) -> None:
    """Add columns to a table of the MuData; ``place`` is the position of each row in the modality, -1 for missing rows."""
    with warnings.catch_warnings():
        # Writing to a view copies it, as in scanpy; mudata's own way to do so emits warnings of its own and of pandas.
        warnings.simplefilter("ignore", ImplicitModificationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        for key in keys:
            column = own[key].reset_index(drop=True)
            if column.dtype == bool and (place < 0).any():
                # A bool column with missing values would become an object column, which cannot be written to h5mu.
                column = column.astype("boolean")
            table = getattr(data, slot)  # a new table if a view was copied
            (shown,) = shown_keys(data, slot, [key], mod)
            table[shown] = column.reindex(place).set_axis(table.index)


def _is_mudata(data: Any) -> bool:
    # By name, so that mudata is not imported for an AnnData.
    return any(f"{base.__module__.partition('.')[0]}.{base.__name__}" == "mudata.MuData" for base in type(data).__mro__)


_HINTS = {
    "str": "; read the file first with sc.read_h5ad",
    "PosixPath": "; read the file first with sc.read_h5ad",
    "Raw": "; call adata.raw.to_adata()",
    "DataFrame": "; wrap it with anndata.AnnData(frame)",
    "ndarray": "; wrap it with anndata.AnnData(array) and set var_names to gene names",
    "SpatialData": '; pass its table, sdata.tables["table"]',
}
