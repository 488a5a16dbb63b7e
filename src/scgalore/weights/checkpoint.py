"""Read a checkpoint folder, whoever wrote it."""

import json
import os
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scgalore._files import file_digest
from scgalore.errors import WeightsError

__all__ = ["Checkpoint", "read_checkpoint"]

FORMAT_KEY = "scgalore_format"  # in the safetensors header: tells our own files from other people's copies

Layout = Literal["scgalore", "scgpt", "safetensors"]
Names = Callable[[Iterable[str]], Mapping[str, str]]

_ARGS_FILES: Mapping[Layout, tuple[str, ...]] = {
    "scgalore": ("config.json",),
    "scgpt": ("args.json",),
    "safetensors": ("args.json", "config.json"),
}
_LAYOUTS = "args.json, vocab.json and best_model.pt, or config.json, vocab.json and model.safetensors"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Content of a checkpoint folder.

    Attributes
    ----------
    args
        Hyperparameters as they stand in ``args.json`` (upstream) or ``config.json`` (ours).
    vocab
        Token id of every token.
    tensors
        Weights under the names of the network, mapped from disk and read when first used.
    layout
        Who wrote the folder: scgalore, the original program, or somebody's safetensors copy of it.
    folder
        Where it was read.
    sha256
        Hash of the file that holds the weights.
    """

    args: dict[str, Any] = field(repr=False)
    vocab: dict[str, int] = field(repr=False)
    tensors: dict[str, Tensor] = field(repr=False)
    layout: Layout
    folder: Path
    sha256: str


def read_checkpoint(
    folder: str | os.PathLike[str], *, args: Mapping[str, Any] | None = None, names: Names | None = None
) -> Checkpoint:
    """Read a checkpoint folder in our layout, upstream's, or that of a safetensors copy.

    No code in the files is ever run: a pickle that asks for it is refused.

    Parameters
    ----------
    folder
        Holds ``vocab.json``, ``args.json`` or ``config.json``, and ``model.safetensors``, ``best_model.pt`` or a single
        other ``.pt`` file.
    args
        Hyperparameters for a folder that does not state them (:attr:`~scgalore.weights.WeightsEntry.args`).
    names
        Maps the names of tensors in the file to those of the network; the same when left out.

    Raises
    ------
    WeightsError
        If a file is missing, damaged, does not belong to the others, or holds more than tensors.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        msg = f"{folder} is not a folder. A checkpoint is a folder with {_LAYOUTS}."
        raise WeightsError(msg)
    path = _weights_file(folder)
    layout = _layout(path)
    args = _read_args(folder, layout, args)
    vocab = _read_vocab(folder)
    found = _read_pickle(path) if layout == "scgpt" else _read_safetensors(path)
    _check_tensors(path, found)
    tensors = found if names is None else {own: found[name] for name, own in names(found).items()}
    return Checkpoint(args, vocab, tensors, layout, folder, file_digest(path))


def _weights_file(folder: Path) -> Path:
    for name in ("model.safetensors", "best_model.pt"):
        if (folder / name).is_file():
            return folder / name
    pickles = sorted(folder.glob("*.pt"))
    if len(pickles) == 1:
        return pickles[0]
    if pickles:
        msg = f"{folder} holds {[path.name for path in pickles]}. Keep one, or name the one to load best_model.pt."
    else:
        msg = f"{folder} holds no weights, only {_names_in(folder)}. Expected {_LAYOUTS}."
    raise WeightsError(msg)


def _layout(path: Path) -> Layout:
    if path.suffix != ".safetensors":
        return "scgpt"
    return "scgalore" if FORMAT_KEY in _header(path) else "safetensors"


def _read_args(folder: Path, layout: Layout, args: Mapping[str, Any] | None) -> dict[str, Any]:
    for name in _ARGS_FILES[layout]:
        if (folder / name).is_file():
            return _read_json(folder / name)
    if args is not None:
        return dict(args)
    names = " or ".join(_ARGS_FILES[layout])
    msg = f"{folder} lacks {names}, which states the sizes of the network; it holds {_names_in(folder)}. Add the file."
    raise WeightsError(msg)


def _read_vocab(folder: Path) -> dict[str, int]:
    path = folder / "vocab.json"
    if not path.is_file():
        msg = f"{folder} lacks vocab.json, which gives each gene its token; it holds {_names_in(folder)}. Add the file."
        raise WeightsError(msg)
    vocab = _read_json(path)
    if not vocab or any(type(index) is not int or index < 0 for index in vocab.values()):
        msg = f"{path} is no vocabulary: expected {{token: id}} with ids from 0 on."
        raise WeightsError(msg)
    return vocab


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{path} is not valid JSON ({error}). Fetch or save it again."
        raise WeightsError(msg) from error
    if not isinstance(content, dict):
        msg = f"{path} holds a {type(content).__name__}; expected a JSON object."
        raise WeightsError(msg)
    return content


def _read_pickle(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        start = file.read(16)
    if not start.startswith(b"PK"):
        # Also keeps bare pickles away from the unpickler.
        msg = f"{path} is not a PyTorch archive (it starts with {start!r}). Fetch or save it again."
        raise WeightsError(msg)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # damaged bytes raise whatever the unpickler stumbles over
        code = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code is None:
            msg = f"{path} is damaged or incomplete ({type(error).__name__}: {error}). Fetch or save it again."
        else:
            msg = (
                f"{path} was refused: loading it would run code ({code[1]}). Weights are a dict of tensors; where you "
                "trust the file, load it with the program that wrote it and save `model.state_dict()`."
            )
        raise WeightsError(msg) from error
    if not isinstance(content, dict):
        msg = f"{path} holds a {type(content).__name__}; expected a state_dict, that is a dict of tensors."
        raise WeightsError(msg)
    return content


def _header(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        msg = f"{path} is damaged or incomplete ({error}). Fetch or save it again."
        raise WeightsError(msg) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _check_tensors(path: Path, found: Mapping[Any, Any]) -> None:
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            msg = (
                f"{path} holds {name!r}, a {kind}; expected tensors only. Save `model.state_dict()`, nothing around it."
            )
            raise WeightsError(msg)
        # The counter of a batch norm is the only tensor of a network without a fraction.
        if not tensor.is_floating_point() and not name.endswith(".num_batches_tracked"):
            msg = f"{path}: {name} has dtype {tensor.dtype}; expected floating point, quantised weights do not load."
            raise WeightsError(msg)


def _names_in(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir())
    return names if len(names) <= 10 else [*names[:10], "..."]
