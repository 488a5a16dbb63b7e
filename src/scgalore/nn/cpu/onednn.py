"""Matrix products by oneDNN, which PyTorch uses only for bfloat16 and convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["is_available", "product"]


def is_available() -> bool:
    """Whether this build of PyTorch has the operation."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``x @ weight.T + bias``, with gradients of any order.

    torch.compile replaces linear layers by the same operation. The result of a row is bit-identical for any number of
    rows greater than 1.

    Parameters
    ----------
    x
        Float32 or bfloat16 ``(..., d_in)`` on a CPU.
    weight
        Same dtype, ``(d_out, d_in)``.
    bias
        Same dtype, ``(d_out,)``.

    Returns
    -------
    Tensor
        ``(..., d_out)``.
    """
    if not torch.is_grad_enabled():
        return _multiply(x, weight, bias)
    out: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return out.view(*x.shape[:-1], weight.shape[0])


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,), (x, weight), (to_x, to_weight, to_bias) = grad_outputs, ctx.saved_tensors, ctx.needs_input_grad
        return (
            product(grad, weight.t()) if to_x else None,
            product(grad.t(), x.t()) if to_weight else None,
            grad.sum(dim=0) if to_bias else None,
        )
