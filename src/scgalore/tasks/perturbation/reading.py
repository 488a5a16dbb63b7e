"""Parameters for reading an object with perturbations, and the training perturbations of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from scgalore import _logging as logg
from scgalore._options import Kind, as_json, comma_separated
from scgalore.data.cells import gene_names
from scgalore.data.columns import read_column
from scgalore.data.reading import READING, Reading
from scgalore.data.split import PARTS
from scgalore.data.texts import same_label, text_of, texts_of
from scgalore.errors import OptionError
from scgalore.perturb.labels.control import asked_controls
from scgalore.perturb.labels.parsing import JOINT, agents_of, canonical_name
from scgalore.perturb.labels.reading import PERT_KINDS, label_options, read_conditions
from scgalore.perturb.splits.own import SPLIT_KEYS, own_split
from scgalore.tasks.perturbation.memory import PerturbationMemory, memory_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scgalore.data.results import Read
    from scgalore.perturb.labels.conditions import Conditions
    from scgalore.perturb.labels.profiles import Profiles
    from scgalore.perturb.labels.screen import Screen
    from scgalore.tasks.base import TaskModel

__all__ = [
    "CONTROL",
    "READ",
    "perturbed_genes",
    "read_params",
    "require_flags",
    "slots_read",
    "trained_on",
    "training_profiles",
]


def _is_control(value: object) -> bool:
    """Whether a value is a label, or a sequence of labels, as text or numbers."""
    several = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
    labels = list(value) if several else [value]  # type: ignore[call-overload]
    return bool(labels) and all(
        isinstance(label, str | Real) and not isinstance(label, bool) and text_of(label) for label in labels
    )


def _control_of(text: str) -> Any:
    """Parse control from a command line: a label, comma-separated labels, or a JSON list for labels with commas."""
    found = as_json(text) if text.startswith("[") else text
    return comma_separated(found) if isinstance(found, str) and "," in found else found


def _plain_control(value: Any) -> str | list[str]:
    named = asked_controls(value)
    return named[0] if len(named) == 1 else list(named)


CONTROL = Kind(
    "it must be a label, a pattern such as 'NT_*', or a list of these", _is_control, _control_of, _plain_control
)

READ = (
    "pert_key",
    "control",
    "context_key",
    "batch_key",
    "separator",
    "pert_kind",
    "dose_key",
    "vectors_key",
    *READING,
)


def read_params(adata: AnnData, model: TaskModel, given: dict[str, Any], split_key: str | None) -> dict[str, Any]:
    """Parameters for reading the object: as given, else as for the model's training data if the columns exist."""
    memory = memory_of(model)
    own = {} if memory is None else memory.params
    read = {name: own.get(name) if value is None else value for name, value in given.items()}
    read["pert_key"] = read["pert_key"] or "perturbation"
    read["pert_kind"] = read["pert_kind"] or PERT_KINDS[0]
    labels = set(texts_of(read_column(adata.obs, read["pert_key"], asked="pert_key"))) - {None}
    # Other data may use another control label and separator.
    if given["control"] is None:
        read["control"] = [
            name for name in asked_controls(read["control"]) if same_label(name, labels) in labels
        ] or None
    if given["separator"] is None and (read["separator"] == JOINT or any(JOINT in label for label in labels)):
        read["separator"] = None
    for name in ("context_key", "batch_key"):
        if given[name] is None and read[name] not in adata.obs:
            read[name] = None
    if given["vectors_key"] is None and read["vectors_key"] not in {*adata.uns, *adata.obsm}:
        read["vectors_key"] = None  # the model stores those of its training data
    if split_key is None:
        split_key = _split_key(adata, memory, read)
    # Predictions and measurements are logarithms to the base of the training data.
    return {**read, "split_key": split_key, "log_base": own.get("log_base")}


def _split_key(adata: AnnData, memory: PerturbationMemory | None, read: Mapping[str, Any]) -> str | None:
    """Column with the split of the model's training, or with a split made for these perturbations."""
    where = {name: read[name] for name in ("pert_key", "context_key", "dose_key")}
    key = None if memory is None else memory.params.get("split_key")
    if memory is not None and key is not None and key in adata.obs.columns:
        if _is_split_of(memory, adata, key, read):
            return key
        message = f"    adata.obs[{key!r}] differs from the split that the model was trained with and is not used. Pass split_key={key!r} to use it."
        if key not in SPLIT_KEYS and logg.is_news(adata, message):
            logg.info(message)
    return own_split(adata, **where)


def _is_split_of(memory: PerturbationMemory, adata: AnnData, key: str, read: Mapping[str, Any]) -> bool:
    """Whether perturbations have the same split as in training; each new one must be in a single split."""
    genes = gene_names(adata, read["gene_symbols"])
    conditions = read_conditions(adata.obs, genes=genes, **label_options(read))
    was: dict[str, set[str]] = {}
    for part in PARTS:
        for name in memory.perturbations[part]:
            was.setdefault(canonical_name({conditions.name_of(agent) for agent in agents_of(name)}), set()).add(part)
    parts = texts_of(read_column(adata.obs, key, asked="split_key"))
    now: dict[str, set[str]] = {}
    for code, part in set(zip(conditions.codes.tolist(), parts, strict=True)):
        if code > 0 and part is not None:
            now.setdefault(conditions.names[code], set()).add(part)
    return all(found <= was[name] if name in was else len(found) == 1 for name, found in now.items())


def slots_read(read: Mapping[str, Any], *, records: Iterable[str]) -> list[Read]:
    """Slots read by predictions, for :func:`scgalore.data.results.refuse_overwrite`.

    Parameters
    ----------
    read
        Result of :func:`read_params`.
    records
        Keys in ``uns`` of the runs searched for the model.
    """
    in_uns = {
        "the split": read["split_key"],
        "vectors_key=": read["vectors_key"],
        **{f"the model of {key!r}": key for key in records},
    }
    in_obsm = [("obsm", "vectors_key=", read["vectors_key"])]
    return [*Reading.of(read).reads(), *(("uns", what, key) for what, key in in_uns.items()), *in_obsm]


def require_flags(model: TaskModel) -> None:
    """Raise :class:`~scgalore.errors.OptionError` unless the network reads perturbation flags."""
    if not model.network.reads_flags:
        msg = (
            f"{model.provenance['name']} was not trained on perturbations. Call sg.tl.finetune(adata, "
            "task='perturbation', pert_key=..., control=...) first."
        )
        raise OptionError(msg)


def perturbed_genes(labels: Sequence[object], screen: Screen, model: TaskModel) -> list[tuple[str, ...]]:
    """Genes of the given perturbations, each once, by their names in a screen.

    Parameters
    ----------
    labels
        Labels, in the format of the screen or of the model's training data, or canonical names.
    screen
        The screen.
    model
        Fine-tuned model.
    """
    memory = memory_of(model)
    separator = None if memory is None else memory.params["separator"]
    return list(dict.fromkeys(screen.conditions.genes_of(label, separator=separator) for label in labels))


def trained_on(model: TaskModel, conditions: Conditions) -> set[str]:
    """Training and validation perturbations, by their names in the data; empty for checkpoints of the original scGPT.

    Parameters
    ----------
    model
        Fine-tuned model.
    conditions
        Conditions of the data, which may use other gene names than the training data.
    """
    memory = memory_of(model)
    if memory is None:
        return set()
    names = {*memory.perturbations["train"], *memory.perturbations["validation"]}
    return {canonical_name({conditions.name_of(agent) for agent in agents_of(name)}) for name in names}


def training_profiles(screen: Screen, model: TaskModel, everything: Profiles) -> Profiles:
    """Measured perturbations that are not held out; without a split, the model's training perturbations.

    Parameters
    ----------
    screen
        The screen.
    model
        Fine-tuned model.
    everything
        Profiles of all cells.
    """
    if screen.parts is not None:
        return screen.profiles("train", "validation")
    seen = trained_on(model, screen.conditions)
    return everything.take(np.flatnonzero([name in seen for name in everything.perturbations]))
