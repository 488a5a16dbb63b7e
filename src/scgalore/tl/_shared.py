"""Steps that the functions of this subpackage share: find the model, check the object, record where results come from."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from scgalore import __version__
from scgalore.errors import OptionError
from scgalore.model import CellModel, load

if TYPE_CHECKING:
    from scgalore.data.cells import TokenCells

__all__ = ["as_model", "provenance"]


def as_model(model: str | os.PathLike[str] | CellModel) -> CellModel:
    """Take a model as it is, or load it."""
    if isinstance(model, CellModel):
        return model
    if isinstance(model, str | os.PathLike):
        return load(model)
    msg = f"model is a {type(model).__name__}; pass a name, a folder, or a model such as scgalore.model.SCGPT."
    raise OptionError(msg)


def provenance(model: CellModel, cells: TokenCells) -> dict[str, Any]:
    """Weights, version and genes that made a result, for ``uns``."""
    return {"weights": dict(model.provenance), "version": __version__, "genes": cells.genes_report()}
