"""Kernels that are faster than torch's own on CPUs, and what a trace of a step changes about them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch._subclasses.fake_tensor import is_fake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["is_on_cpu", "one_block_is_enough", "traced"]

# Plain variables: torch.compile cannot read a ContextVar.
_KERNELS, _TRACED = True, False


def is_on_cpu(x: Tensor) -> bool:
    """Whether the kernels for CPUs take this tensor."""
    return _KERNELS and x.device.type == "cpu"


def one_block_is_enough(x: Tensor) -> bool:
    """Whether only the memory of a loop matters, in which every block takes that of the one before."""
    return _TRACED and is_fake(x)


@contextmanager
def traced(*, kernels: bool) -> Iterator[None]:
    """Run a step on tensors without numbers, with these kernels or as on a device that has none."""
    global _KERNELS, _TRACED
    before = _KERNELS, _TRACED
    _KERNELS, _TRACED = kernels, True
    try:
        yield
    finally:
        _KERNELS, _TRACED = before
