"""How the tools for perturbations read an object, and what a model has been trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scgalore.data.reading import READING, Reading
from scgalore.errors import OptionError
from scgalore.perturb.labels.conditions import CONTROL_LABELS, genes_as_written
from scgalore.tasks.perturbation.memory import memory_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from anndata import AnnData

    from scgalore.data.results import Read
    from scgalore.perturb.labels.profiles import Profiles
    from scgalore.perturb.labels.screen import Screen
    from scgalore.tasks.base import TaskModel

__all__ = [
    "READ",
    "genes_of",
    "perturbed_genes",
    "read_params",
    "require_flags",
    "slots_read",
    "trained_on",
    "training_profiles",
]

READ = ("pert_key", "control", "context_key", "batch_key", "separator", *READING)


def read_params(adata: AnnData, model: TaskModel, given: dict[str, Any], split_key: str | None) -> dict[str, Any]:
    """How to read the object: as asked for, else as the model's own data were read, as far as columns are here."""
    memory = memory_of(model)
    own = {} if memory is None else memory.params
    read = {name: own.get(name) if value is None else value for name, value in given.items()}
    read["pert_key"] = read["pert_key"] or "perturbation"
    if given["control"] is None and read["control"] not in set(adata.obs.get(read["pert_key"], ())):
        read["control"] = None  # other data may spell it otherwise
    for name in ("context_key", "batch_key"):
        if given[name] is None and read[name] not in adata.obs:
            read[name] = None
    if split_key is None and own.get("split_key") in adata.obs:
        split_key = own["split_key"]
    # What is predicted and what it is compared with are logarithms to the base that the model was trained on.
    return {**read, "split_key": split_key, "log_base": own.get("log_base")}


def slots_read(read: Mapping[str, Any], *, records: Iterable[str]) -> list[Read]:
    """Slots that predicting reads, for :func:`scgalore.data.results.refuse_overwrite`.

    Parameters
    ----------
    read
        From :func:`read_params`.
    records
        Keys in ``uns`` of the runs that the model was looked for in.
    """
    in_uns = {"the split": read["split_key"], **{f"the model of {key!r}": key for key in records}}
    return [*Reading.of(read).reads(), *(("uns", what, key) for what, key in in_uns.items())]


def require_flags(model: TaskModel) -> None:
    """Raise :class:`~scgalore.errors.OptionError` unless the network reads perturbation flags."""
    if not model.network.reads_flags:
        msg = (
            f"{model.provenance['name']} was not trained on perturbations. Call sg.tl.finetune(adata, "
            "task='perturbation', pert_key=..., control=...) first."
        )
        raise OptionError(msg)


def perturbed_genes(labels: Sequence[str], read: dict[str, Any]) -> list[tuple[str, ...]]:
    """Genes of perturbations that a user names, each once."""
    return list(dict.fromkeys(genes_of(label, read) for label in labels))


def genes_of(label: object, read: dict[str, Any]) -> tuple[str, ...]:
    """Genes of one label, sorted; the usual words for control stand for it beside the data's own."""
    text, own = str(label), () if read["control"] is None else (str(read["control"]),)
    separator = "+" if "+" in text else read["separator"] or "+"
    return tuple(sorted(genes_as_written(text, controls=(*own, *CONTROL_LABELS), separator=separator)))


def trained_on(model: TaskModel) -> set[str]:
    """Canonical names of the perturbations of the training and validation parts; none for upstream checkpoints."""
    memory = memory_of(model)
    if memory is None:
        return set()
    return {*memory.perturbations["train"], *memory.perturbations["validation"]}


def training_profiles(screen: Screen, model: TaskModel, everything: Profiles) -> Profiles:
    """Measured perturbations that are no secret: all but the test part, or without a split those the model was trained on.

    Parameters
    ----------
    screen
        As it was read.
    model
        Fine-tuned.
    everything
        Profiles of all cells.
    """
    if screen.parts is not None:
        return screen.profiles("train", "validation")
    seen = trained_on(model)
    return everything.take(np.flatnonzero([name in seen for name in everything.perturbations]))
