"""Find the model that wrote a result, as long as it exists in memory or in a folder."""

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

__all__ = ["free_folder", "kept_loss", "record_model", "recorded_model", "records_of"]

# Weak references: an AnnData cannot store weights and must not keep models alive.
_ALIVE: WeakValueDictionary[str, CellModel] = WeakValueDictionary()


def free_folder(folder: PathLike) -> str:
    """Path of a folder to save a model to after training, checked before training.

    Raises
    ------
    OptionError
        If the folder exists and is not empty.
    """
    path = Path(folder).expanduser().absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        msg = f"save_dir={str(folder)!r} already exists and is not empty. Pass a new folder."
        raise OptionError(msg)
    return str(path)


def kept_loss(model: CellModel) -> str:
    """Loss of the kept weights after training, as a line for users.

    Parameters
    ----------
    model
        Trained model.
    """
    assert model.result is not None
    history, best = model.history, model.result.best_epoch
    part = "validation" if "validation_loss" in history else "train"
    losses = history[f"{part}_loss"]
    name = "validation loss" if part == "validation" else "training loss"
    if best is None or best not in losses.index:
        return f"weights kept: those of the start ({name} after {len(losses)} epochs: {losses.iloc[-1]:.4g})"
    return f"{name}: {losses.loc[best]:.4g} (epoch {best}, whose weights are kept); first epoch: {losses.iloc[0]:.4g}"


def record_model(model: CellModel, folder: str | None) -> dict[str, str]:
    """Keep a weak reference to a model, and record where it was saved.

    Parameters
    ----------
    model
        Fine-tuned model.
    folder
        Folder it was saved to, if any.

    Returns
    -------
    Record to write into ``uns``, for :func:`recorded_model`.
    """
    run = uuid4().hex
    _ALIVE[run] = model
    return {"run": run} if folder is None else {"run": run, "folder": folder}


def records_of(adata: AnnData, task: str) -> dict[str, dict[str, str]]:
    """Records by :func:`record_model` of the runs of a task with results in ``adata.uns``, by key."""
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
        Task the model was trained for.

    Raises
    ------
    MissingKeyError
        If there are no or several such models, or the model is neither in memory nor in a folder.
    """
    found = records_of(adata, task)
    if len(found) != 1:
        records = f"the runs under {', '.join(map(repr, found))} were recorded" if found else "adata.uns records none"
        msg = f"model= is missing, and {records}. Call sg.tl.finetune(adata, task={task!r}, ...) first, or pass model=."
        raise MissingKeyError(msg)
    ((key, record),) = found.items()
    model = _ALIVE.get(record["run"])
    if model is not None:
        return model
    folder = record.get("folder")
    if folder is not None and Path(folder).is_dir():
        return load(folder)
    where = "" if folder is None else f", and the folder {folder} it was saved to does not exist"
    msg = (
        f"The model that adata.uns[{key!r}] records is no longer in memory{where}. Keep the model that sg.tl.finetune returns, save it with "
        "save_dir=, or pass model=."
    )
    raise MissingKeyError(msg)
