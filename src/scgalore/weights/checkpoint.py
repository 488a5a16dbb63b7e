"""Reads a checkpoint folder in any supported layout."""

import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scgalore._files import file_digest
from scgalore._folders import recover_folder
from scgalore._json import named, read_json
from scgalore.errors import WeightsError

__all__ = ["Checkpoint", "check_archive", "check_tensors", "read_archive", "read_checkpoint", "read_safetensors"]

FORMAT_KEY = "scgalore_format"  # in the safetensors header: identifies files written by scgalore

Layout = Literal["scgalore", "scgpt", "safetensors", "scbert"]
Names = Callable[[Iterable[str]], Mapping[str, str]]

_ARGS_FILES: Mapping[Layout, tuple[str, ...]] = {
    "scgalore": ("config.json",),
    "scgpt": ("args.json",),
    "safetensors": ("args.json", "config.json"),
}
VOCAB_BYTES = 1 << 26  # fifty times the released vocabularies
INDEX_BYTES = 1 << 24  # names and shapes of a hundred thousand tensors
SHARED = 4  # number of names that may share the same data, such as a table shared with a decoder
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_LAYOUTS = "args.json, vocab.json and best_model.pt, or config.json, vocab.json and model.safetensors"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Content of a checkpoint folder.

    Attributes
    ----------
    args
        Hyperparameters from ``args.json`` (scGPT) or ``config.json`` (scgalore).
    vocab
        Token id of every token.
    tensors
        Weights by the names of the network, mapped from disk and read when first used.
    layout
        Layout of the folder: that of scgalore, of scGPT, or of a safetensors copy.
    folder
        Folder that was read.
    sha256
        Hash of the file that holds the weights.
    weights_file, args_file
        Files with weights and hyperparameters, for messages.

    See Also
    --------
    scgalore.weights.read_checkpoint : Read a checkpoint folder of any layout.

    Examples
    --------
    >>> import scgalore as sg
    >>> folder = sg.weights.fetch_weights("scgpt-mini")
    >>> checkpoint = sg.weights.read_checkpoint(folder)
    >>> checkpoint.shapes["decoder.fc.0.weight"]
    (128, 128)
    """

    args: dict[str, Any] = field(repr=False)
    vocab: dict[str, int] = field(repr=False)
    tensors: dict[str, Tensor] = field(repr=False)
    layout: Layout
    folder: Path
    sha256: str
    weights_file: str = "the weights"
    args_file: str = "args.json"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by its name."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read_checkpoint(
    folder: str | os.PathLike[str], *, args: Mapping[str, Any] | None = None, names: Names | None = None
) -> Checkpoint:
    """Read a checkpoint folder in the layout of scgalore, of scGPT, or of a safetensors copy.

    Code in the files is never run: pickles that contain code are rejected. A small file cannot require much time or
    memory: sizes are compared with those of the files before anything is unpacked. Files may be symbolic links, as in
    the caches of model hubs.

    Parameters
    ----------
    folder
        Folder with ``vocab.json``, ``args.json`` or ``config.json``, and ``model.safetensors``, ``best_model.pt`` or a single
        other ``.pt`` file.
    args
        Hyperparameters for a folder that does not state them (:attr:`~scgalore.weights.WeightsEntry.args`).
    names
        Maps the names of tensors in the file to those of the network; ``None`` keeps them.

    Raises
    ------
    WeightsError
        If a file is missing or damaged, does not match the others, or contains more than tensors.

    See Also
    --------
    scgalore.weights.read_scgpt : Read scGPT weights.
    scgalore.weights.read_scbert : Read scBERT weights.
    scgalore.weights.load_tensors : Load tensors into a network.
    scgalore.weights.write_checkpoint : Write a checkpoint folder of scgalore.

    Examples
    --------
    >>> import scgalore as sg
    >>> folder = sg.weights.fetch_weights("scgpt-mini")
    >>> sg.weights.read_checkpoint(folder).layout
    'scgalore'
    """
    folder = Path(folder).expanduser()
    recover_folder(folder)
    if not folder.is_dir():
        msg = f"{folder} is not a folder. A checkpoint is a folder with {_LAYOUTS}."
        raise WeightsError(msg)
    path = _weights_file(folder)
    try:
        layout = _layout(path)
        stated, args_file = _read_args(folder, layout, args)
        vocab = _read_vocab(folder)
        found = _read_pickle(path) if layout == "scgpt" else read_safetensors(path)
        sha256 = file_digest(path)
    except OSError as error:
        msg = f"{error.filename or path} cannot be read: {error.strerror}. Download or save it again."
        raise WeightsError(msg) from error
    tensors = found if names is None else {own: found[name] for name, own in names(found).items()}
    return Checkpoint(stated, vocab, tensors, layout, folder, sha256, str(path), args_file)


def _weights_file(folder: Path) -> Path:
    for name in ("model.safetensors", "best_model.pt"):
        if (folder / name).is_dir():
            msg = f"{folder / name} is a folder; expected a file with weights. Download or save it again."
            raise WeightsError(msg)
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


def _read_args(folder: Path, layout: Layout, args: Mapping[str, Any] | None) -> tuple[dict[str, Any], str]:
    for name in _ARGS_FILES[layout]:
        if (folder / name).exists():
            return read_json(folder / name), str(folder / name)
    if args is not None:
        return dict(args), "the registry"
    names = " or ".join(_ARGS_FILES[layout])
    msg = f"{folder} lacks {names}, which states the sizes of the network; it holds {_names_in(folder)}. Add the file."
    raise WeightsError(msg)


def _read_vocab(folder: Path) -> dict[str, int]:
    path = folder / "vocab.json"
    if not path.exists():
        msg = f"{folder} lacks vocab.json, which gives each gene its token; it holds {_names_in(folder)}. Add the file."
        raise WeightsError(msg)
    vocab = read_json(path, max_bytes=VOCAB_BYTES)
    if not vocab or any(type(index) is not int or index < 0 for index in vocab.values()):
        msg = f"{path} is no vocabulary: expected {{token: id}} with ids from 0 on."
        raise WeightsError(msg)
    return vocab


def _read_pickle(path: Path) -> dict[str, Tensor]:
    return check_tensors(path, read_archive(path))


def read_archive(path: Path) -> dict[Any, Any]:
    """Read a dict from an archive of PyTorch, mapped from disk, without running any code in it.

    Raises
    ------
    WeightsError
        If the file is damaged, has other content, or would run code.
    """
    with path.open("rb") as file:
        start = file.read(16)
    if not start.startswith(b"PK"):
        # Also keeps bare pickles, and the formats of PyTorch before 1.6, away from the unpickler.
        msg = (
            f"{path} is not a PyTorch archive (it starts with {start!r}). Fetch it again; where an old PyTorch wrote it, load "
            "it there and save `model.state_dict()` with PyTorch 1.6 or later."
        )
        raise WeightsError(msg)
    check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # damaged bytes can raise any error in the unpickler
        code = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code is None:
            msg = f"{path} is damaged or incomplete ({type(error).__name__}: {error}). Download or save it again."
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


def check_archive(path: Path) -> None:
    """Raise an error for a PyTorch archive whose unpacked size exceeds that of the file, or that contains code.

    Raises
    ------
    WeightsError
        If this is the case, or the archive is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError) as error:
        msg = f"{path} is damaged or incomplete ({type(error).__name__}: {error}). Download or save it again."
        raise WeightsError(msg) from error
    names = {member.filename.partition("/")[2] for member in members}
    if "constants.pkl" in names:
        msg = (
            f"{path} is a TorchScript archive, a program with its weights; expected weights alone. Load it with "
            "torch.jit.load where you trust it, and save its state_dict()."
        )
        raise WeightsError(msg)
    packed = [member for member in members if member.compress_type != zipfile.ZIP_STORED]
    whole = sum(member.file_size for member in members)
    index = sum(member.file_size for member in members if member.filename.endswith("data.pkl"))
    if packed or whole > path.stat().st_size or index > INDEX_BYTES:
        what = (
            f"holds {packed[0].filename!r} compressed"
            if packed
            else f"unpacks into {whole:,} bytes, {index:,} of names"
        )
        msg = f"{path} {what}; expected an archive as torch.save writes it, uncompressed. Download or save it again."
        raise WeightsError(msg)


def _header(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        msg = f"{path} is damaged or incomplete ({error}). Download or save it again."
        raise WeightsError(msg) from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, mapped from disk.

    Raises
    ------
    WeightsError
        If the file is damaged, or contains anything but floating-point tensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # damaged bytes, and types that PyTorch does not support
        msg = f"{path} is damaged or incomplete ({type(error).__name__}: {error}). Download or save it again."
        raise WeightsError(msg) from error
    return check_tensors(path, found)


def check_tensors(path: Path, found: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Raise an error for values that are not tensors, or are larger than the file.

    Raises
    ------
    WeightsError
        With the name of the first such value.
    """
    size, total = path.stat().st_size, 0
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            msg = f"{path} holds {named(name)}, a {kind}; expected tensors only. Save `model.state_dict()`, nothing around it."
            raise WeightsError(msg)
        # Counters, such as that of a batch norm, are the only tensors of a network without a fraction.
        if tensor.dtype not in DTYPES and not (tensor.ndim == 0 and tensor.dtype == torch.int64):
            msg = f"{path}: {named(name)} has dtype {tensor.dtype}; expected floating point, quantised weights do not load."
            raise WeightsError(msg)
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or _nbytes(tensor) > size:
            msg = (
                f"{path}: {named(name)} of shape {tuple(tensor.shape)} ({tensor.layout}, on {tensor.device}) is not what a "
                f"file of {size:,} bytes holds; expected plain tensors. Download or save it again."
            )
            raise WeightsError(msg)
        total += _nbytes(tensor)
    if total > SHARED * size:
        msg = (
            f"{path} has {size:,} bytes and names tensors of {total:,}, which share memory. Download or save it again."
        )
        raise WeightsError(msg)
    return dict(found)


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()  # `nbytes` is that of the memory behind some kinds of tensors


def _names_in(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir())
    return names if len(names) <= 10 else [*names[:10], "..."]
