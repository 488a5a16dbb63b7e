"""Steps that the functions of this room have in common: find the model, check the object, write the results."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from scgalore import __version__
from scgalore._uns import to_uns
from scgalore.data.resolve import resolve_adata, write_obs, write_var
from scgalore.errors import DataError, OptionError
from scgalore.model import SCGPT

if TYPE_CHECKING:
    from anndata import AnnData

    from scgalore import _logging as logg
    from scgalore._typing import Data
    from scgalore.data.cells import TokenCells

__all__ = ["Results", "as_model", "copied", "provenance", "writable_adata"]


def as_model(model: str | os.PathLike[str] | SCGPT) -> SCGPT:
    """Take a model as it is, or load it."""
    if isinstance(model, SCGPT):
        return model
    if isinstance(model, str | os.PathLike):
        return SCGPT.from_pretrained(model)
    msg = f"model is a {type(model).__name__}; pass a name, a folder, or a scgalore.model.SCGPT."
    raise OptionError(msg)


def writable_adata(data: Data, *, mod: str) -> AnnData:
    """Find the AnnData to work on and make sure that results can be written to it; nothing changes yet."""
    adata = resolve_adata(data, mod=mod)
    if adata.is_view and adata.isbacked:
        msg = "This is a view of a backed file, which results cannot be written to. Use adata[...].to_memory()."
        raise DataError(msg)
    return adata


def copied(data: Data, *, mod: str) -> Data:
    """Copy what ``copy=True`` is to return."""
    adata = writable_adata(data, mod=mod)
    if adata.isbacked:
        msg = "copy=True cannot copy an AnnData that is backed by a file. Leave copy out, or pass adata.to_memory()."
        raise DataError(msg)
    return data.copy()


def provenance(model: SCGPT, cells: TokenCells) -> dict[str, Any]:
    """Answer which model and which genes made a result."""
    match = cells.match
    return {
        "weights": dict(model.provenance),
        "version": __version__,
        "genes": {
            "matched": match.matched,
            "n_vars": match.n_vars,
            "renamed": len(match.renamed),
            "dropped": list(match.dropped),
        },
    }


@dataclass
class Results:
    """Everything one call writes, collected so that it is written at once or not at all."""

    obs: dict[str, tuple[Any, str]] = field(default_factory=dict)
    var: dict[str, tuple[Any, str]] = field(default_factory=dict)
    obsm: dict[str, tuple[Any, str]] = field(default_factory=dict)
    uns: dict[str, tuple[Any, str]] = field(default_factory=dict)

    def write(self, data: Data, adata: AnnData, *, mod: str, step: logg.Step) -> None:
        """Assign to the AnnData, mirror ``obs`` and ``var`` to a MuData, and name the keys in the closing message."""
        uns = {key: to_uns(value) for key, (value, _) in self.uns.items()}
        if adata.is_view:
            # As scanpy does: writing to a view would copy it anyway, with a warning that points here and not at the user.
            adata._init_as_actual(adata.copy())
        for key, (value, what) in self.obs.items():
            adata.obs[key] = pd.Series(value, index=adata.obs_names)
            step.added("obs", key, what)
        for key, (value, what) in self.var.items():
            adata.var[key] = pd.Series(value, index=adata.var_names)
            step.added("var", key, what)
        for key, (value, what) in self.obsm.items():
            adata.obsm[key] = value
            step.added("obsm", key, what)
        for key, (_, what) in self.uns.items():
            adata.uns[key] = uns[key]
            step.added("uns", key, what)
        write_obs(data, adata, list(self.obs), mod=mod)
        write_var(data, adata, list(self.var), mod=mod)
