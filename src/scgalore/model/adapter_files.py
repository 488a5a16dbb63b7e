"""Adapter-only folders: a few megabytes, used together with the base weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import save_file

from scgalore import __version__
from scgalore._folders import FolderKind, recover_folder, whole_folder, writing
from scgalore._json import OBJECT, check_fields, read_json
from scgalore._options import NAMES, TEXT
from scgalore.errors import OptionError, WeightsError
from scgalore.model.files import PROVENANCE, memory_config, read_memory
from scgalore.model.training import AdapterWeights
from scgalore.nn.base import HEADS
from scgalore.weights.checkpoint import read_safetensors
from scgalore.weights.finite import refuse_not_finite

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from scgalore._typing import PathLike
    from scgalore.model.files import Provenance
    from scgalore.tasks.base import TaskMemory

__all__ = ["StoredAdapter", "is_adapter_folder", "read_adapter", "write_adapter"]

CONFIG, TENSORS = "adapter.json", "adapter.safetensors"
ADAPTER = FolderKind("an adapter", is_one=lambda names: TENSORS in names)


CONTENT = {"adapter": TEXT, "options": OBJECT, "base": OBJECT, "heads": HEADS, "memory": OBJECT}
"""Required fields of ``adapter.json``; the last one is missing in version 0.5.0."""


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter as read from a folder.

    Attributes
    ----------
    weights
        Factors and heads.
    base
        Provenance of the base weights.
    heads
        Number of outputs of each cell head by name.
    memory
        Memory of the task.
    """

    weights: AdapterWeights
    base: Provenance
    heads: dict[str, int]
    memory: TaskMemory | None


def is_adapter_folder(path: PathLike) -> bool:
    """Whether a folder was written by :func:`write_adapter`."""
    recover_folder(Path(path))
    return (Path(path).expanduser() / CONFIG).is_file()


def write_adapter(
    folder: PathLike,
    weights: AdapterWeights | None,
    *,
    base: Provenance,
    heads: Mapping[str, int],
    memory: TaskMemory | None,
    overwrite: bool,
) -> None:
    """Write ``adapter.json`` and ``adapter.safetensors``; see :meth:`scgalore.model.CellModel.save_adapter`."""
    if weights is None:
        msg = (
            "There is no adapter to save alone: the last training had none, trained other weights too (others='train'), or "
            "changed more of the network than its heads. Use save(), which writes all weights."
        )
        raise OptionError(msg)
    if not base["sha256"]:
        msg = f"The base weights of the adapter ({base['name']!r}) are not saved in a file. Use save(), which writes all weights."
        raise OptionError(msg)
    content = {
        "scgalore": __version__,
        "adapter": weights.name,
        "options": weights.options,
        "heads": dict(heads),
        **memory_config(memory),
        "base": dict(base),
    }
    groups = {"adapter": weights.tensors, "network": weights.heads}
    tensors = {f"{group}:{name}": x.contiguous() for group, named in groups.items() for name, x in named.items()}
    with whole_folder(Path(folder), ADAPTER, overwrite=overwrite) as draft:
        text = json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True)
        (draft / CONFIG).write_text(text + "\n", encoding="utf-8")
        with writing(Path(folder) / TENSORS, SafetensorError):
            for name, more in ({} if memory is None else memory.files(base, None)).items():
                (draft / name).write_bytes(more if isinstance(more, bytes) else more.encode())
            save_file(dict(sorted(tensors.items())), draft / TENSORS)


def read_adapter(folder: PathLike) -> StoredAdapter:
    """Read an adapter written by :func:`write_adapter`.

    Raises
    ------
    WeightsError
        If a file is missing or damaged.
    """
    folder = Path(folder).expanduser()
    try:
        return _read(folder)
    except WeightsError as error:
        msg = f"{folder} does not contain an adapter written by scgalore: {error} Save the adapter again."
        raise WeightsError(msg) from error


def _read(folder: Path) -> StoredAdapter:
    content = read_json(folder / CONFIG)
    # Version 0.5.0 has the names of the classes instead of the heads.
    if "heads" not in content and NAMES.fits(content.get("classes")):
        content["heads"] = {"classes": len(content["classes"])}
    if OBJECT.fits(content.get("heads")):
        content["heads"] = {name: n for name, n in content["heads"].items() if n != 0}
    check_fields(content, CONTENT, where=folder / CONFIG, missing=["memory"])
    check_fields(content["base"], PROVENANCE, where=f"{folder / CONFIG}: base")
    tensors = read_safetensors(folder / TENSORS)
    refuse_not_finite(tensors, where=folder / TENSORS)
    groups: dict[str, dict[str, Tensor]] = {"adapter": {}, "network": {}}
    for key, tensor in tensors.items():
        group, _, name = key.partition(":")
        if group not in groups:
            msg = f"{folder / TENSORS} contains {key!r}; expected names that start with {' or '.join(f'{one}:' for one in groups)}."
            raise WeightsError(msg)
        groups[group][name] = tensor
    weights = AdapterWeights(content["adapter"], content["options"], groups["adapter"], groups["network"])
    return StoredAdapter(weights, content["base"], content["heads"], read_memory(folder, content))
