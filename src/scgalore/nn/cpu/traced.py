"""Steps on tensors without numbers, of which only shapes, types and memory matter."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch._subclasses.fake_tensor import is_fake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["as_elsewhere", "numbers_at_hand", "one_block_is_enough", "traced"]

# Plain variables: torch.compile cannot read a ContextVar.
_traced, _elsewhere = False, False


def one_block_is_enough(x: Tensor) -> bool:
    """Whether only the memory of a loop matters, in which every block takes that of the one before."""
    return _traced and is_fake(x)


def as_elsewhere() -> bool:
    """Whether tensors of a CPU stand for those of a device that has no kernels of ours."""
    return _elsewhere


def numbers_at_hand(x: Tensor) -> bool:
    """Whether shapes may depend on the numbers in a tensor: they are there, and no other device has to be waited for."""
    return x.device.type == "cpu" and not _traced


@contextmanager
def traced(*, kernels: bool) -> Iterator[None]:
    """Run a step on tensors without numbers, with our kernels for CPUs or as on a device that has none."""
    global _traced, _elsewhere
    before = _traced, _elsewhere
    _traced, _elsewhere = True, not kernels
    try:
        yield
    finally:
        _traced, _elsewhere = before
