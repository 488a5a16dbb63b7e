"""torch's AdamW kernels on lists of tensors, fused where the device has a fused one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.optim.adamw import adamw

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


def step_device(param: Tensor) -> torch.device:
    """Device of a step counter: that of the parameter for the fused kernel, otherwise the CPU."""
    return param.device if param.device.type in FUSED_DEVICES else torch.device("cpu")


def adamw_update_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    states: Sequence[dict[str, Any]],
    steps: Sequence[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Update params, ``exp_avg`` and ``exp_avg_sq`` of the states, and steps in place, as torch's AdamW does."""
    if not params:
        return
    adamw(
        list(params),
        [_like(grad, param) for grad, param in zip(grads, params, strict=True) if grad is not None],
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        list(steps),
        fused=all(param.device.type in FUSED_DEVICES for param in params),
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=float(lr),
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
    )


def adam_steps(
    grads: Sequence[Tensor],
    states: Sequence[dict[str, Any]],
    step: int,
    *,
    betas: tuple[float, float],
    eps: float,
) -> list[Tensor]:
    """Adam's normalised steps ``-m / (sqrt(v) + eps)``, both bias-corrected; the moments in the states are updated.

    All tensors are on one device and take the same step.
    """
    # AdamW on zero weights yields the step itself, with the fused kernel and for all matrices at once.
    updates = [torch.zeros_like(grad) for grad in grads]
    steps = list(torch.full((len(grads),), step - 1.0, device=step_device(updates[0])).unbind())
    adamw_update_(updates, grads, states, steps, lr=1.0, betas=betas, eps=eps, weight_decay=0.0)
    return updates


def _like(grad: Tensor, param: Tensor) -> Tensor:
    # The fused CPU kernel reads memory in order: a gradient with another layout would update the wrong elements.
    if grad.dtype == param.dtype and grad.stride() == param.stride():
        return grad
    return torch.empty_like(param).copy_(grad)
