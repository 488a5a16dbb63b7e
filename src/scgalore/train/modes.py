"""Context managers that change settings for the duration of a run."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from scgalore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scgalore.nn import CellNetwork

__all__ = ["check_compiler", "compiled", "deterministic", "dropping", "recomputing"]

# Without it cuBLAS may pick another way of adding up at every call (CUDA's documentation of cublasSetWorkspace).
CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def recomputing(network: CellNetwork, *, wanted: bool) -> Iterator[None]:
    """Recompute the activations of the network's blocks in the backward pass instead of keeping them."""
    before = network.recompute
    network.recompute = wanted
    try:
        yield
    finally:
        network.recompute = before


@contextmanager
def dropping(network: CellNetwork, *, p: float | None) -> Iterator[None]:
    """Set the dropout probability; ``None`` does not change it."""
    layers = [module for module in network.modules() if isinstance(module, nn.Dropout)]
    before = [layer.p for layer in layers]
    try:
        for layer in layers:
            layer.p = layer.p if p is None else p
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.p = own


@contextmanager
def compiled(network: CellNetwork, *, wanted: bool) -> Iterator[None]:
    """Run the network's blocks through :func:`torch.compile`, for batches of any shape.

    Modules and names of weights stay as they are.
    """
    if not wanted:
        yield
        return
    blocks = network.blocks
    try:
        for block in blocks:
            block.compile(dynamic=True)
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None  # Module.compile has no opposite


def check_compiler() -> None:
    """Raise :class:`~scgalore.errors.OptionError` where ``torch.compile`` finds no compiler for its code."""
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "c++", "cl"]
    if not any(map(shutil.which, names)):
        msg = (
            f"compile=True requires a C++ compiler, but none was found ({', '.join(names)}). Install one, for example with "
            "conda install cxx-compiler, set the variable CXX, or omit compile."
        )
        raise OptionError(msg)


@contextmanager
def deterministic(*, wanted: bool) -> Iterator[None]:
    """Let torch use deterministic algorithms only, and raise where an operation has none."""
    if not wanted:
        yield
        return
    name, value = CUBLAS
    setting = os.environ.get(name)
    mode = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        os.environ.setdefault(name, value)
        torch.use_deterministic_algorithms(mode=True)
        torch.backends.cudnn.benchmark = False
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        if setting is None:
            os.environ.pop(name, None)
