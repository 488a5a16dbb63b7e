"""The switch that all kernels of this folder ask."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch._subclasses.fake_tensor import is_fake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["one_block_is_enough", "takes", "traced", "use_cpu_kernels"]

# Plain variables: torch.compile cannot read a ContextVar.
_on, _traced = True, False


def takes(x: Tensor) -> bool:
    """Whether a kernel of this folder may compute with a tensor: it is on a CPU and the kernels are on.

    Parameters
    ----------
    x
        An input of the layer.
    """
    return _on and x.device.type == "cpu"


@contextmanager
def use_cpu_kernels(*, on: bool) -> Iterator[None]:
    """Turn all kernels of this folder on or off for a while, in all threads; they are on otherwise.

    Without them torch's own are used: the same numbers to the last bits, other draws of dropout.

    Parameters
    ----------
    on
        Whether layers on a CPU compute with these kernels.
    """
    global _on
    before, _on = _on, on
    try:
        yield
    finally:
        _on = before


def one_block_is_enough(x: Tensor) -> bool:
    """Whether only the memory of a loop matters, in which every block takes that of the one before."""
    return _traced and is_fake(x)


@contextmanager
def traced(*, kernels: bool) -> Iterator[None]:
    """Run a step on tensors without numbers, with these kernels or as on a device that has none."""
    global _traced
    before, _traced = _traced, True
    try:
        with use_cpu_kernels(on=kernels):
            yield
    finally:
        _traced = before
