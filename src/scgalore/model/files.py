"""Models in folders: what is written in addition to the weights, and how a folder of any family becomes a network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any, TypedDict

import pandas as pd
import torch

from scgalore import __version__
from scgalore import _logging as logg
from scgalore.data.vocab import GeneVocab
from scgalore.errors import OptionError, WeightsError
from scgalore.tasks.registry import TASKS
from scgalore.train.result import TrainResult
from scgalore.weights import load_tensors, resolve_model_folder, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from scgalore._typing import PathLike
    from scgalore.model.family import Family
    from scgalore.nn.base import CellNetwork
    from scgalore.tasks.base import TaskMemory
    from scgalore.weights import LoadReport

__all__ = ["Provenance", "StoredModel", "read_memory", "read_model", "write_model"]

HISTORY = "history.csv"


class Provenance(TypedDict):
    """Where weights come from: registry name or folder, hash of the file, its layout ("memory" while there is no file).

    ``base`` is the name of what they were trained from, where the file has it; it is the name that stood here when the
    model was saved.
    """

    name: str
    sha256: str
    layout: str
    base: str


@dataclass(frozen=True)
class StoredModel:
    """A model as read from a folder."""

    family: Family
    network: CellNetwork
    vocab: GeneVocab
    provenance: Provenance
    report: LoadReport
    result: TrainResult | None


def read_model(model: PathLike, families: Mapping[str, Family]) -> StoredModel:
    """Read a model from a registry name or a folder in any known layout.

    Parameters
    ----------
    model
        Name or folder.
    families
        Which it may be of, by name; the first one reads a folder that none recognises.

    Raises
    ------
    WeightsError
        If the folder is damaged, or the model is of another family or task than are known.
    """
    folder, entry = resolve_model_folder(model)
    family = _family_of(folder, families)
    checkpoint = family.read(folder, args=None if entry is None else entry.args)
    vocab = GeneVocab.from_dict(checkpoint.vocab)
    config = family.config_of(checkpoint, vocab)
    # Heads that the file lacks stay random: the same in every process, and at no cost to the user's generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = family.network(config)
    report = load_tensors(network, checkpoint)
    name = entry.name if entry is not None else str(folder)
    logg.info(f"loaded {name}: {report.summary()}")
    base = checkpoint.args["weights"]["name"] if "weights" in checkpoint.args else ""
    provenance = Provenance(name=name, sha256=checkpoint.sha256, layout=checkpoint.layout, base=base)
    result = _read_result(folder, checkpoint.args) if checkpoint.layout == "scgalore" else None
    return StoredModel(family, network.eval(), vocab, provenance, report, result)


def write_model(
    folder: PathLike,
    *,
    family: Family,
    network: CellNetwork,
    vocab: GeneVocab,
    provenance: Provenance,
    result: TrainResult | None,
    evaluation: Mapping[str, Any] | None = None,
    overwrite: bool,
) -> None:
    """Write a model in our own layout; see :meth:`scgalore.model.CellModel.save`."""
    memory = None if result is None else result.memory
    config: dict[str, Any] = {
        "scgalore": __version__,
        "family": family.name,
        "network": network.config.to_dict(),
        "weights": dict(provenance),
        **memory_config(memory),
        "training": None if result is None else result.summary(),
    }
    extra: dict[str, str | bytes] = {} if memory is None else memory.files(provenance, evaluation)
    if result is not None and not result.history.empty:
        text = StringIO()
        result.history.to_csv(text, index_label="epoch")
        extra[HISTORY] = text.getvalue()
    write_checkpoint(
        folder, config=config, vocab=vocab.to_dict(), tensors=network.state_dict(), extra=extra, overwrite=overwrite
    )


def memory_config(memory: TaskMemory | None) -> dict[str, Any]:
    """What a configuration file holds of a task: its name, and what the model keeps of it."""
    if memory is None:
        return {"task": None, "memory": {}}
    return {"task": memory.task, "memory": memory.to_config()}


def read_memory(folder: Path, config: Mapping[str, Any]) -> TaskMemory | None:
    """Read what a model keeps of its task.

    Parameters
    ----------
    folder
        Folder of the model.
    config
        Its configuration. Files of version 0.5.0 do not name the task: each task looks for what is its own.

    Raises
    ------
    WeightsError
        If the task is not registered, or files are damaged.
    """
    if "task" not in config:
        found = (task.load(folder, config) for task in TASKS.values())
        return next((memory for memory in found if memory is not None), None)
    name = config["task"]
    if name is None:
        return None
    if name not in TASKS:
        msg = f"{folder} was trained for task={name!r}, which is not registered. Import the package that adds it to sg.tasks.TASKS."
        raise WeightsError(msg)
    try:
        return TASKS[name].load(folder, config)
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{folder}/config.json holds no memory of task={name!r}: {error!r}. Save the model again."
        raise WeightsError(msg) from error


def _read_result(folder: Path, config: Mapping[str, Any]) -> TrainResult | None:
    history, memory = _read_history(folder / HISTORY), read_memory(folder, config)
    if history.empty and memory is None:
        return None
    return TrainResult(history=history, memory=memory, **(config.get("training") or {}))


def _read_history(path: Path) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame()
    try:
        return pd.read_csv(path, index_col="epoch", float_precision="round_trip")
    except ValueError as error:  # all that pandas raises for a file it cannot parse
        msg = f"{path} is not a history of a training ({error}). Delete it, or save the model again."
        raise WeightsError(msg) from error


def _family_of(folder: Path, families: Mapping[str, Family]) -> Family:
    first = next(iter(families.values()))
    found = [family for family in families.values() if family.recognises(folder)]
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    if not isinstance(config, dict) or "scgalore" not in config:
        return (found or [first])[0]
    name = config.get("family", "scgpt")  # version 0.5.0 had one
    if name not in families:
        msg = f"{folder} holds a model of the family {name!r}; known here: {', '.join(map(repr, families))}. Use sg.model.load."
        raise OptionError(msg)
    return families[name]
