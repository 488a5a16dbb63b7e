"""Model folders: files written in addition to the weights, and reading of folders of any family."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from io import StringIO
from typing import TYPE_CHECKING, Any, TypedDict

import pandas as pd
import torch

from scgalore import __version__
from scgalore import _logging as logg
from scgalore._json import OBJECT, STRING, check_fields, named, nullable, read_json
from scgalore._options import INDEX, TEXT, whole
from scgalore.data.vocab import GeneVocab
from scgalore.errors import DataError, OptionError, WeightsError
from scgalore.model.card import CARD, model_card, score_sections
from scgalore.nn.blank import WithoutDraws, on_meta_device
from scgalore.tasks.registry import TASKS
from scgalore.train.result import TrainResult
from scgalore.weights import load_tensors, resolve_model_folder, write_checkpoint
from scgalore.weights.load import compare_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scgalore._typing import PathLike
    from scgalore.model.family import Family
    from scgalore.nn.base import CellNetwork
    from scgalore.tasks.base import TaskMemory
    from scgalore.weights import Checkpoint, LoadReport

__all__ = ["Provenance", "StoredModel", "family_of", "read_memory", "read_model", "write_model"]

HISTORY, RECORD = "history.csv", "finetune.json"
HISTORY_BYTES = 1 << 24

CONFIG = {
    "scgalore": TEXT,
    "network": OBJECT,
    "family": TEXT,
    "weights": OBJECT,
    "task": nullable(TEXT),
    "memory": OBJECT,
    "training": nullable(OBJECT),
    "licence": STRING,
}
"""Required fields of ``config.json`` of a saved model; version 0.5.0 may have only the first two."""

TRAINING = {
    "best_epoch": nullable(whole(-1)),
    **dict.fromkeys(("optimizer_bytes", "steps", "batch_size", "accumulate"), nullable(INDEX)),
    "cpu_kernels": nullable(STRING),
}
PROVENANCE = dict.fromkeys(("name", "sha256", "layout", "base"), STRING)
PARTS = {"weights": PROVENANCE, "training": TRAINING}


class Provenance(TypedDict):
    """Origin of weights: registry name, address on the hub or folder, hash of the file, and its layout ("memory" without a file).

    ``base`` is the name of the initial weights, if it is in the file: the ``name`` at the time of
    saving.
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
    licence: str


def read_model(model: PathLike, families: Mapping[str, Family]) -> StoredModel:
    """Read a model from a registry name, an address on the hub or a folder in any known layout.

    Parameters
    ----------
    model
        Name, address or folder.
    families
        Possible families, by name; the first one is used for a folder that none recognises.

    Raises
    ------
    WeightsError
        If the folder is damaged, or the family or task of the model is unknown.
    """
    folder, entry = resolve_model_folder(model)
    family = family_of(folder, families)
    checkpoint = family.read(folder, args=None if entry is None else entry.args)
    own = checkpoint.layout == "scgalore"
    if own:
        try:
            check_fields(checkpoint.args, CONFIG, where=checkpoint.args_file, missing=list(CONFIG)[2:])
            for part, kinds in PARTS.items():
                content, where = checkpoint.args.get(part) or {}, f"{checkpoint.args_file}: {part}"
                check_fields(content, kinds, where=where, missing=kinds)
        except WeightsError as error:
            msg = f"{folder}/config.json was not written by scgalore: {error} Save the model again."
            raise WeightsError(msg) from error
    try:
        vocab = GeneVocab.from_dict(checkpoint.vocab, family.specials)
    except (DataError, WeightsError) as error:
        msg = f"{folder / 'vocab.json'}: {error}"
        raise WeightsError(msg) from error
    config = family.config_of(checkpoint, vocab)
    with on_meta_device():
        lacking = _n_missing_weights(family.network(config), checkpoint)
    # Heads that the file lacks stay random: the same in every process, and at no cost to the user's generator.
    with torch.random.fork_rng(devices=[]), nullcontext() if lacking else WithoutDraws():
        torch.manual_seed(0)
        network = family.network(config)
    report = load_tensors(network, checkpoint)
    name = entry.name if entry is not None else str(folder)
    logg.info(f"loaded {name}: {report.summary()}")
    base = checkpoint.args.get("weights", {}).get("name", "") if own else ""
    provenance = Provenance(name=name, sha256=checkpoint.sha256, layout=checkpoint.layout, base=base)
    result = _read_result(folder, checkpoint.args) if own else None
    licence = "" if entry is None else entry.licence
    licence = licence or (checkpoint.args.get("licence", "") if own else "")
    return StoredModel(family, network.eval(), vocab, provenance, report, result, licence)


def _n_missing_weights(network: CellNetwork, checkpoint: Checkpoint) -> int:
    """Number of weights that are missing in the file; an error, before memory is allocated, if there are more than are present."""
    report, sizes = compare_tensors(network, checkpoint), network.state_dict()
    lacking, found = (sum(sizes[name].numel() for name in names) for names in (report.random, report.loaded))
    if lacking > found:
        largest = max(report.random, key=lambda name: sizes[name].numel())
        msg = (
            f"{checkpoint.args_file} describes a network with {lacking:,} weights that are missing in {checkpoint.weights_file}, and "
            f"{found:,} that are present; the largest missing tensor is {named(largest)}, {tuple(sizes[largest].shape)}. Use both from the same folder."
        )
        raise WeightsError(msg)
    return lacking


def write_model(
    folder: PathLike,
    *,
    family: Family,
    network: CellNetwork,
    vocab: GeneVocab,
    provenance: Provenance,
    result: TrainResult | None,
    licence: str = "",
    evaluation: Mapping[str, Any] | Sequence[str] | None = None,
    card: str | None = None,
    address: str | None = None,
    overwrite: bool,
) -> None:
    """Write a model in the layout of scgalore; see :meth:`scgalore.model.CellModel.save` and :meth:`~scgalore.model.CellModel.push_to_hub`."""
    memory = None if result is None else result.memory
    if result is not None and (sections := score_sections(evaluation)):
        result = replace(result, record={**(result.record or {}), "evaluation": sections})
    config: dict[str, Any] = {
        "scgalore": __version__,
        "family": family.name,
        "network": network.config.to_dict(),
        "weights": dict(provenance),
        **memory_config(memory),
        "training": None if result is None else result.summary(),
        "licence": licence,
    }
    of_task = evaluation if isinstance(evaluation, Mapping) else None
    extra: dict[str, str | bytes] = {} if memory is None else memory.files(provenance, of_task)
    own = extra.get(CARD)
    extra[CARD] = card or model_card(
        family=family,
        network=network,
        vocab=vocab,
        provenance=provenance,
        result=result,
        licence=licence,
        own=own if isinstance(own, str) else None,
        address=address,
    )
    if result is not None and result.record is not None:
        extra[RECORD] = json.dumps(result.record, indent=1, ensure_ascii=False) + "\n"
    if result is not None and not result.history.empty:
        text = StringIO()
        result.history.to_csv(text, index_label="epoch")
        extra[HISTORY] = text.getvalue()
    write_checkpoint(
        folder, config=config, vocab=vocab.to_dict(), tensors=network.state_dict(), extra=extra, overwrite=overwrite
    )


def memory_config(memory: TaskMemory | None) -> dict[str, Any]:
    """Task entries of a configuration file: name and memory."""
    if memory is None:
        return {"task": None, "memory": {}}
    return {"task": memory.task, "memory": memory.to_config()}


def read_memory(folder: Path, config: Mapping[str, Any]) -> TaskMemory | None:
    """Read the task memory of a model.

    Parameters
    ----------
    folder
        Folder of the model.
    config
        Its configuration. Files of version 0.5.0 do not have the name of the task: each task looks for its own files.

    Raises
    ------
    WeightsError
        If the task is not registered, or files are damaged.
    """
    name = config.get("task")
    if "task" in config and name is None:
        return None
    if name is not None and name not in TASKS:
        msg = f"{folder} was trained for task={named(name)}, which is not registered. Import the package that adds it to sg.tasks.TASKS."
        raise WeightsError(msg)
    try:
        found = (task.load(folder, config) for task in (TASKS.values() if name is None else [TASKS[name]]))
        return next((memory for memory in found if memory is not None), None)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        msg = f"{folder} has no valid memory of task={name!r}: {error}. Save the model again."
        raise WeightsError(msg) from error


def _read_result(folder: Path, config: Mapping[str, Any]) -> TrainResult | None:
    training = config.get("training") or {}
    history, memory = _read_history(folder / HISTORY), read_memory(folder, config)
    if history.empty and memory is None:
        return None
    record = read_json(folder / RECORD) if (folder / RECORD).exists() else None
    return TrainResult(history=history, memory=memory, record=record, **{name: training.get(name) for name in TRAINING})


def _read_history(path: Path) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame()
    try:
        if path.stat().st_size > HISTORY_BYTES:
            msg = f"it has {path.stat().st_size:,} bytes, more than the maximum of {HISTORY_BYTES:,}"
            raise ValueError(msg)
        table = pd.read_csv(path, index_col="epoch", dtype=str)  # pandas may round numbers that it parses itself
        return table.set_axis(pd.Index(table.index.astype(int), name="epoch")).astype(float, errors="raise")
    except (
        ValueError,
        TypeError,
        OverflowError,
        OSError,
    ) as error:  # all exceptions by pandas for an invalid file
        msg = f"{path} is not a training history ({error}). Delete it, or save the model again."
        raise WeightsError(msg) from error


def family_of(folder: Path, families: Mapping[str, Family]) -> Family:
    """Family of the model in a folder; the first one if none recognises it.

    Raises
    ------
    OptionError
        If its family is unknown.
    """
    first = next(iter(families.values()))
    found = [family for family in families.values() if family.recognises(folder)]
    try:
        config = read_json(folder / "config.json")
    except WeightsError:
        config = {}  # of other programs, or damaged, which is reported when it is read
    if "scgalore" not in config:
        return (found or [first])[0]
    name = config.get("family", "scgpt")  # the only family of version 0.5.0
    if not isinstance(name, str) or name not in families:
        msg = f"{folder / 'config.json'} has a model of family {named(name)}; expected {', '.join(map(repr, families))}. Use sg.model.load."
        raise OptionError(msg)
    return families[name]
