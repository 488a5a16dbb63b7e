"""Training steps on tensors without data, for estimates of memory."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch._subclasses.fake_tensor import is_fake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["as_elsewhere", "one_block_is_enough", "shapes_may_depend_on", "traced"]

# Plain variables: torch.compile cannot read a ContextVar.
_traced, _elsewhere = False, False


def one_block_is_enough(x: Tensor) -> bool:
    """Whether a loop needs to run only once, since only memory matters and every block reuses that of the previous one."""
    return _traced and is_fake(x)


def as_elsewhere() -> bool:
    """Whether CPU tensors represent those of a device without kernels of this package."""
    return _elsewhere


def shapes_may_depend_on(x: Tensor) -> bool:
    """Whether shapes may depend on the values of a tensor: they are known, and reading them waits for no other device."""
    return x.device.type == "cpu" and not _traced


@contextmanager
def traced(*, kernels: bool) -> Iterator[None]:
    """Run a step on tensors without data, with the CPU kernels of this package or as on another device."""
    global _traced, _elsewhere
    before = _traced, _elsewhere
    _traced, _elsewhere = True, not kernels
    try:
        yield
    finally:
        _traced, _elsewhere = before
