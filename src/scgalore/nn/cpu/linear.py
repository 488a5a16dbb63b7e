"""Linear layers by the faster of two exact kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from scgalore.nn.cpu.choice import differentiates, takes
from scgalore.nn.cpu.measure import WIDE
from scgalore.nn.cpu.onednn import product

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Linear", "linear"]

# For smaller weights, calling the kernel takes longer than it saves.
_SMALLEST = 2**12


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``x @ weight.T + bias``.

    On a CPU, PyTorch multiplies float32 matrices with MKL, which on some processors is half as fast as oneDNN. The choice
    depends on the weight and on whether there is a backward pass, but not on the number of rows, so that the results of a
    cell do not depend on its batch.

    Parameters
    ----------
    x
        Float ``(..., d_in)``.
    weight
        Float ``(d_out, d_in)``.
    bias
        Float ``(d_out,)``.

    Returns
    -------
    Tensor
        Float ``(..., d_out)``.
    """
    return product(x, weight, bias) if _by_onednn(x, weight, bias) else F.linear(x, weight, bias)


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        x.dtype == weight.dtype
        and weight.numel() >= _SMALLEST
        and not torch.is_autocast_enabled("cpu")
        and takes("product", x, large=weight.numel() >= WIDE, backward=differentiates(x, weight, bias))
        and x.numel() > 0
    )


class Linear(nn.Linear):
    """:class:`torch.nn.Linear` that uses :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(..., d_in)`` to ``(..., d_out)``."""
        return linear(input, self.weight, self.bias)
