"""The switch that all kernels of this folder ask."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["takes", "use_cpu_kernels"]

_on = True


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
