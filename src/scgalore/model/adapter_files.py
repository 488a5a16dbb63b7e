"""Folders that hold an adapter alone: a few megabytes beside the weights they belong to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from scgalore import __version__
from scgalore._folders import FolderKind, whole_folder
from scgalore.errors import OptionError, WeightsError
from scgalore.model.files import memory_config, read_memory
from scgalore.model.training import AdapterWeights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from scgalore._typing import PathLike
    from scgalore.model.files import Provenance
    from scgalore.tasks.base import TaskMemory

__all__ = ["StoredAdapter", "is_adapter_folder", "read_adapter", "write_adapter"]

CONFIG, TENSORS = "adapter.json", "adapter.safetensors"
ADAPTER = FolderKind("an adapter", is_one=lambda names: TENSORS in names)


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter as read from a folder.

    Attributes
    ----------
    weights
        Its factors and heads.
    base
        Provenance of the weights it was trained on.
    heads
        Outputs of each cell head by name.
    memory
        What the model keeps of its task.
    """

    weights: AdapterWeights
    base: Provenance
    heads: dict[str, int]
    memory: TaskMemory | None


def is_adapter_folder(path: PathLike) -> bool:
    """Whether :func:`write_adapter` made this folder."""
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
        msg = f"The adapter belongs to weights ({base['name']!r}) that no file holds. Use save(), which writes all weights."
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
        for name, more in ({} if memory is None else memory.files(base, None)).items():
            (draft / name).write_bytes(more if isinstance(more, bytes) else more.encode())
        save_file(dict(sorted(tensors.items())), draft / TENSORS)


def read_adapter(folder: PathLike) -> StoredAdapter:
    """Read what :func:`write_adapter` wrote.

    Raises
    ------
    WeightsError
        If a file is missing or damaged.
    """
    folder = Path(folder).expanduser()
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
        groups: dict[str, dict[str, Tensor]] = {"adapter": {}, "network": {}}
        for key, tensor in tensors.items():
            group, _, name = key.partition(":")
            groups[group][name] = tensor
        weights = AdapterWeights(content["adapter"], content["options"], groups["adapter"], groups["network"])
        # Version 0.5.0 names the classes in place of the heads.
        heads = content["heads"] if "heads" in content else {"classes": len(content["classes"])}
        heads = {name: n for name, n in heads.items() if n}
        return StoredAdapter(weights, content["base"], heads, read_memory(folder, content))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        msg = f"{folder} does not hold an adapter that scgalore wrote ({type(error).__name__}: {error}). Save it again."
        raise WeightsError(msg) from error
