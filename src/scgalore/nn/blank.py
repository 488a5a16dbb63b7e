"""Networks whose first weights nobody reads: they only have shapes, or are loaded from a file."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["WithoutDraws", "on_meta_device"]

DRAWS = {init.normal_, init.uniform_, init.kaiming_uniform_, Tensor.normal_, Tensor.uniform_}


class WithoutDraws(TorchFunctionMode):
    """Inside a ``with`` block, layers leave the weights that they would draw as the memory happens to be."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the tensor that was to be filled."""
        if func in DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Make networks on torch's "meta" device: shapes without memory.

    Notes
    -----
    Drawing on that device does nothing, for which torch imports its compiler: three seconds of a processor.
    """
    with torch.device("meta"), WithoutDraws():
        yield
