"""Find the model that a result was written by, while it is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4
from weakref import WeakValueDictionary

from scgalore.errors import MissingKeyError, OptionError
from scgalore.model import CellModel, load

if TYPE_CHECKING:
    from anndata import AnnData

    from scgalore._typing import PathLike

__all__ = ["free_folder", "record_model", "recorded_model", "records_of"]

# Models that somebody else holds: an AnnData has no place for weights, and must not keep them alive.
_ALIVE: WeakValueDictionary[str, CellModel] = WeakValueDictionary()


def free_folder(folder: PathLike) -> str:
    """Path of a folder that a model can be saved to after training, checked before it.

    Raises
    ------
    OptionError
        If something is there already.
    """
    path = Path(folder).expanduser().absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        msg = f"save_dir={str(folder)!r} is there already and not empty. Name a new folder."
        raise OptionError(msg)
    return str(path)


def record_model(model: CellModel, folder: str | None) -> dict[str, str]:
    """Remember a model as long as its owner keeps it, and where it was saved.

    Parameters
    ----------
    model
        Fine-tuned.
    folder
        Where it was saved, if it was.

    Returns
    -------
    What to write into ``uns``, for :func:`recorded_model`.
    """
    run = uuid4().hex
    _ALIVE[run] = model
    return {"run": run} if folder is None else {"run": run, "folder": folder}


def records_of(adata: AnnData, task: str) -> dict[str, dict[str, str]]:
    """What :func:`record_model` gave for the runs of a task whose results are in ``adata.uns``, by their key."""
    return {
        key: content["model"]
        for key, content in adata.uns.items()
        if isinstance(content, Mapping)
        and all(isinstance(content.get(name), Mapping) for name in ("model", "params"))
        and "run" in content["model"]
        and content["params"].get("task") == task
    }


def recorded_model(adata: AnnData, task: str) -> CellModel:
    """Find the model whose results are in ``adata.uns``.

    Parameters
    ----------
    adata
        Cells with results of :func:`scgalore.tl.finetune`.
    task
        What the model was trained for.

    Raises
    ------
    MissingKeyError
        If there are none or several, or the model is neither in memory any more nor in a folder.
    """
    found = records_of(adata, task)
    if len(found) != 1:
        records = f"the runs under {', '.join(map(repr, found))} were recorded" if found else "adata.uns records none"
        msg = f"No model is given, and {records}. Call sg.tl.finetune(adata, task={task!r}, ...) first, or pass model=."
        raise MissingKeyError(msg)
    ((key, record),) = found.items()
    model = _ALIVE.get(record["run"])
    if model is not None:
        return model
    folder = record.get("folder")
    if folder is not None and Path(folder).is_dir():
        return load(folder)
    where = "" if folder is None else f", and the folder {folder} it was saved to is not there"
    msg = (
        f"The model that adata.uns[{key!r}] records is no longer in memory{where}. Keep what sg.tl.finetune returns, or let it "
        "save the model with save_dir=, or pass model=."
    )
    raise MissingKeyError(msg)
