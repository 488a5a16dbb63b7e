"""Steps that the functions of this subpackage share: find the model, check the object, record where results come from."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from scgalore import __version__
from scgalore.data.resolve import resolve_adata
from scgalore.errors import DataError, OptionError
from scgalore.model import CellModel, load

if TYPE_CHECKING:
    from anndata import AnnData

    from scgalore._typing import Data
    from scgalore.data.cells import TokenCells

__all__ = ["as_model", "copied", "provenance", "writable_adata"]


def as_model(model: str | os.PathLike[str] | CellModel) -> CellModel:
    """Take a model as it is, or load it."""
    if isinstance(model, CellModel):
        return model
    if isinstance(model, str | os.PathLike):
        return load(model)
    msg = f"model is a {type(model).__name__}; pass a name, a folder, or a model such as scgalore.model.SCGPT."
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


def provenance(model: CellModel, cells: TokenCells) -> dict[str, Any]:
    """Weights, version and genes that made a result, for ``uns``."""
    return {"weights": dict(model.provenance), "version": __version__, "genes": cells.genes_report()}
