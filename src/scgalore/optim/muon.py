"""Muon for matrices and AdamW for the rest, in one optimizer.

The method is that of Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scgalore.optim.checks import check_muon_group
from scgalore.optim.mixed import MixedAdamW
from scgalore.optim.subspace import blocks, state_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scgalore.optim.subspace import Slot


# Jordan's coefficients of the polynomial a x + b x^3 + c x^5, which moves singular values close to 1 in few iterations.
_A, _B, _C = 3.4445, -4.7750, 2.0315


class MuonAdamW(MixedAdamW):
    r"""Muon for matrices, :class:`torch.optim.AdamW` for the rest.

    Muon's step is the momentum of a matrix with its singular values moved close to 1 by a Newton-Schulz iteration,
    times ``0.2 lr sqrt(max(m, n))``, so that ``lr`` and ``weight_decay`` mean the same as for AdamW (Liu et al., "Muon
    is Scalable for LLM Training", 2025). It is the step of :class:`torch.optim.Muon` with
    ``adjust_lr_fn="match_rms_adamw"``, which iterates in bfloat16; so does this class on accelerators. On a CPU the
    iteration is in float32, which took a fifth of the time on a processor without bfloat16 arithmetic and differs by
    1 %, the rounding of bfloat16.

    Its matrices are those that :class:`~scgalore.optim.GaLoreAdamW` would project: in groups with a ``rank``, those
    whose smaller side is above it. ``rank`` has no other effect here. The blocks of a packed q/k/v weight
    (``split=3``) are orthogonalised one by one.

    Parameters
    ----------
    params
        Parameters or parameter groups, e.g. from :func:`~scgalore.optim.param_groups`.
    lr
        Learning rate.
    betas
        AdamW's decay rates.
    eps
        AdamW's addition to the root of the second moment.
    weight_decay
        Decoupled weight decay.
    momentum
        Decay rate of Muon's momentum.
    nesterov
        Whether to use Nesterov momentum.
    ns_steps
        Newton-Schulz iterations.

    Notes
    -----
    The state of one of Muon's matrices is ``momentum_buffer``, of its shape, float32 also for bfloat16 weights. A
    gradient that is not finite makes the weight NaN, as in PyTorch.

    Examples
    --------
    >>> import torch
    >>> import scgalore as sg
    >>> network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
    >>> optimizer = sg.optim.MuonAdamW(sg.optim.param_groups(network), lr=1e-3)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
    ) -> None:
        adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**adam, "momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps})

    def _check_group(self, group: dict[str, Any]) -> None:
        check_muon_group(group)

    def _step_matrices(self, group: dict[str, Any], params: list[Tensor], slots: dict[Tensor, Slot]) -> None:
        lr, momentum = float(group["lr"]), group["momentum"]
        for param in params:
            assert param.grad is not None
            dtype, state = state_dtype(param.dtype), self.state[param]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(param, dtype=dtype)
            average, grad = state["momentum_buffer"], param.grad.to(dtype)
            average.lerp_(grad, 1.0 - momentum)
            update = blocks(grad.lerp(average, momentum) if group["nesterov"] else average, group["split"])
            weight = blocks(param, group["split"])
            wide = weight.to(dtype)
            wide.mul_(1.0 - lr * group["weight_decay"])
            rate = 0.2 * max(weight.shape[-2:]) ** 0.5
            wide.add_(orthogonalized(update, group["ns_steps"]).to(dtype), alpha=-lr * rate)
            if wide is not weight:
                weight.copy_(wide)


def orthogonalized(matrix: Tensor, n_steps: int) -> Tensor:
    """Matrix with the same singular vectors and all singular values near 1, or several in a leading dimension."""
    x = matrix if matrix.device.type == "cpu" else matrix.bfloat16()
    if matrix.shape[-2] > matrix.shape[-1]:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(n_steps):
        square = x @ x.mT
        x = _A * x + (_B * square + _C * (square @ square)) @ x
    return x.mT if matrix.shape[-2] > matrix.shape[-1] else x
