"""Dropout that stores one byte per value for the backward pass and is fast on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from scgalore.nn.cpu.choice import takes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Dropout", "keep_mask"]


class Dropout(nn.Dropout):
    """:class:`torch.nn.Dropout`, with masks from :func:`keep_mask` on a CPU.

    On a CPU, PyTorch draws a float for every value sequentially and stores it for the backward pass, which takes a tenth
    of a training step and twice the memory of a mask.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Set a fraction ``p`` of the values to 0 in training, and scale up the others."""
        if not self.training or self.p == 0 or not takes("dropout", input):
            return F.dropout(input, self.p, self.training)
        return _Dropped.apply(input, keep_mask(input.shape, self.p), 1 / (1 - self.p))


def keep_mask(shape: torch.Size, p: float) -> Tensor:
    """Draw the mask of kept values with PyTorch's CPU generator.

    Each value uses 16 random bits, so probabilities are accurate to ``2**-17``.

    Parameters
    ----------
    shape
        Shape of the mask.
    p
        Probability that a value is dropped.

    Returns
    -------
    Tensor
        Dtype int8, of shape ``shape``: 1 for values that are kept. Torch multiplies by it at twice the rate of a bool.
    """
    n = shape.numel()
    words = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[:n]
    return (bits >= round(p * 2**16) - 2**15).view(torch.int8).view(shape)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return (x * keep).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return (grad_outputs[0] * keep).mul_(ctx.scale), None, None
