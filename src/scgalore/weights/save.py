"""Writes a checkpoint folder, in the layout of scgalore or of scGPT."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from scgalore._folders import FolderKind, whole_folder, writing
from scgalore.errors import OptionError
from scgalore.weights.checkpoint import FORMAT_KEY

__all__ = ["export_scbert", "export_scgpt", "write_checkpoint"]

SCBERT_FILE = "scbert.pth"

CHECKPOINT = FolderKind(
    "a checkpoint", is_one=lambda names: not names.isdisjoint(("model.safetensors", "best_model.pt", SCBERT_FILE))
)

_RESERVED = ("config.json", "vocab.json", "model.safetensors", "", "..")


def write_checkpoint(
    folder: str | os.PathLike[str],
    *,
    config: Mapping[str, Any],
    vocab: Mapping[str, int],
    tensors: Mapping[str, Tensor],
    extra: Mapping[str, str | bytes] | None = None,
    overwrite: bool = False,
) -> None:
    """Write ``config.json``, ``vocab.json`` and ``model.safetensors``, all or nothing.

    Equal content gives equal bytes. Dtypes are kept.

    Parameters
    ----------
    folder
        Folder to create; an existing checkpoint is kept if writing fails.
    config
        Hyperparameters, as ``to_dict`` of :class:`~scgalore.nn.NetworkConfig` gives them.
    vocab
        Token id of every token.
    tensors
        Weights by name.
    extra
        Content of further files by name.
    overwrite
        Whether a checkpoint in ``folder`` may be replaced, with all other files of the folder.

    Raises
    ------
    OptionError
        If ``folder`` exists, or ``extra`` has the name of another file.
    DiskError
        If the disk is full.

    See Also
    --------
    scgalore.weights.read_checkpoint : Read a checkpoint folder of any layout.
    scgalore.weights.export_scgpt : Write a checkpoint folder of scGPT.

    Examples
    --------
    >>> import scgalore as sg
    >>> model = sg.model.load("scgpt-mini")
    >>> config, vocab = model.network.config.to_dict(), model.vocab.to_dict()
    >>> sg.weights.write_checkpoint("copy", config=config, vocab=vocab, tensors=model.network.state_dict())
    """
    extra = extra or {}
    for name in extra:
        if name in _RESERVED or Path(name).name != name:
            msg = f"extra={{{name!r}: ...}}: expected plain file names other than {', '.join(_RESERVED[:3])}."
            raise OptionError(msg)
    with whole_folder(Path(folder), CHECKPOINT, overwrite=overwrite) as draft:
        _write_json(draft / "config.json", config)
        _write_json(draft / "vocab.json", _by_id(vocab), sort_keys=False)
        # A single key, since safetensors writes several in no fixed order.
        with writing(Path(folder) / "model.safetensors", SafetensorError):
            save_file(_packed(tensors), draft / "model.safetensors", metadata={FORMAT_KEY: "1"})
        # The file is created readable by its owner only, but a folder on a shared disk is read by others.
        shutil.copymode(draft / "vocab.json", draft / "model.safetensors")
        for name, content in extra.items():
            (draft / name).write_bytes(content.encode() if isinstance(content, str) else content)


def export_scgpt(
    folder: str | os.PathLike[str],
    *,
    args: Mapping[str, Any],
    vocab: Mapping[str, int],
    tensors: Mapping[str, Tensor],
    overwrite: bool = False,
) -> None:
    """Write ``args.json``, ``vocab.json`` and ``best_model.pt`` in the layout of scGPT.

    Parameters
    ----------
    folder
        Folder to make, as in :func:`write_checkpoint`.
    args
        Hyperparameters with the names of scGPT, as :meth:`~scgalore.nn.SCGPTConfig.to_args` gives them.
    vocab
        Token id of every token.
    tensors
        Weights by canonical name.
    overwrite
        Whether a checkpoint in ``folder`` may be replaced.

    See Also
    --------
    scgalore.weights.read_scgpt : Read scGPT weights.
    scgalore.weights.write_checkpoint : Write a checkpoint folder of scgalore.

    Examples
    --------
    The method ``export_scgpt`` of a model calls this function.

    >>> import scgalore as sg
    >>> model = sg.model.load("scgpt-mini")
    >>> args, vocab = model.network.config.to_args(), model.vocab.to_dict()
    >>> sg.weights.export_scgpt("original", args=args, vocab=vocab, tensors=model.network.state_dict())
    """
    with whole_folder(Path(folder), CHECKPOINT, overwrite=overwrite) as draft:
        _write_json(draft / "args.json", args)
        _write_json(draft / "vocab.json", _by_id(vocab), sort_keys=False)
        packed = _packed(tensors)
        with writing(Path(folder) / "best_model.pt", RuntimeError):  # PyTorch's only error for a full disk
            torch.save(packed, draft / "best_model.pt")


def export_scbert(
    folder: str | os.PathLike[str], *, genes: Sequence[str], tensors: Mapping[str, Tensor], overwrite: bool = False
) -> None:
    """Write ``scbert.pth`` in the layout of scBERT, and ``vocab.json`` with the order of its genes.

    Parameters
    ----------
    folder
        Folder to make, as in :func:`write_checkpoint`.
    genes
        Names of the genes, in the order of the rows of the gene table.
    tensors
        Weights by the names of the released file, with its shapes and dtypes.
    overwrite
        Whether a checkpoint in ``folder`` may be replaced.

    See Also
    --------
    scgalore.weights.read_scbert : Read scBERT weights.
    scgalore.weights.write_checkpoint : Write a checkpoint folder of scgalore.

    Examples
    --------
    The method ``export_scbert`` of a model calls this function.

    >>> import scgalore as sg
    >>> model = sg.model.SCBERT.from_pretrained("panglao_pretrain.pth")
    >>> model.export_scbert("scbert")
    """
    content = {"epoch": 0, "model_state_dict": _packed(tensors), "optimizer_state_dict": {}, "scheduler_state_dict": {}}
    content["losses"] = 0.0
    with whole_folder(Path(folder), CHECKPOINT, overwrite=overwrite) as draft:
        _write_json(draft / "vocab.json", {gene: number for number, gene in enumerate(genes)}, sort_keys=False)
        with writing(Path(folder) / SCBERT_FILE, RuntimeError):
            torch.save(content, draft / SCBERT_FILE)


def _write_json(path: Path, content: Mapping[str, Any], *, sort_keys: bool = True) -> None:
    text = json.dumps(dict(content), indent=1, ensure_ascii=False, sort_keys=sort_keys)
    path.write_text(text + "\n", encoding="utf-8")


def _by_id(vocab: Mapping[str, int]) -> dict[str, int]:
    return {token: int(index) for token, index in sorted(vocab.items(), key=lambda item: item[1])}


def _packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in a fixed order, each with its own memory, since a slice would be saved with its whole table."""
    packed = {}
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        packed[name] = plain if plain.untyped_storage().nbytes() == plain.nbytes else plain.clone()
    return packed
