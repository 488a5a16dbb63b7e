"""Linear layers by the faster of two exact kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from scgalore.nn.cpu.switch import takes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Linear", "linear"]

# Below 128 x 128, finding the kernel costs more than it saves.
_SMALLEST = 2**14


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``x @ weight.T + bias``.

    On a CPU, torch multiplies float32 matrices with MKL and convolves with oneDNN, which was twice as fast on the AMD EPYC that
    it was measured on (``benchmarks/peak_share.py``). A convolution of width one over the rows is the same product, with
    gradients. The choice follows from the weight alone, so that a cell's numbers do not change with its batch.

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
    if not _convolves(x, weight):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    # Channels last, (1, d_in, n, 1), are the rows as they lie in memory; the same holds for the result.
    image = rows.view(1, rows.shape[0], 1, rows.shape[1]).permute(0, 3, 1, 2)
    out = F.conv2d(image, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


def _convolves(x: Tensor, weight: Tensor) -> bool:
    return (
        takes(x)
        and x.dtype == weight.dtype == torch.float32
        and weight.numel() >= _SMALLEST
        and x.numel() > 0
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )


class Linear(nn.Linear):
    """:class:`torch.nn.Linear` that multiplies with :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(..., d_in)`` to ``(..., d_out)``."""
        return linear(input, self.weight, self.bias)
