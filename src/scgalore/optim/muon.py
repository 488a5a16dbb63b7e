"""Muon for matrices and AdamW for the rest, in one optimizer.

The method is that of Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), as
:class:`torch.optim.Muon` has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scgalore.errors import OptionError
from scgalore.optim.checks import check_muon_group
from scgalore.optim.kernels import muon_update_
from scgalore.optim.mixed import MixedAdamW
from scgalore.optim.subspace import blocks, state_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scgalore.optim.subspace import Slot


class MuonAdamW(MixedAdamW):
    r""":class:`torch.optim.Muon` for matrices, :class:`torch.optim.AdamW` for the rest.

    Muon's step is the momentum of a matrix with its singular values brought near 1 by a Newton-Schulz iteration in bfloat16,
    times ``0.2 lr sqrt(max(m, n))``, so that ``lr`` and ``weight_decay`` mean the same as for AdamW (Liu et al., "Muon is
    Scalable for LLM Training", 2025).

    Its matrices are those that :class:`~scgalore.optim.GaLoreAdamW` would project: in groups with a ``rank``, those whose
    smaller side is above it. That is all that ``rank`` does here. The blocks of a packed q/k/v weight (``split=3``) are
    orthogonalised one by one.

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
        Whether the gradient is mixed into the momentum once more.
    ns_steps
        Newton-Schulz iterations.

    Raises
    ------
    OptionError
        If an option is out of range, or torch is older than 2.9 and has no Muon.

    Notes
    -----
    The state of one of Muon's matrices is ``momentum_buffer``, of its shape, float32 also for bfloat16 weights. A gradient that is
    not finite spoils the weight, as in torch.

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
        if not hasattr(torch.optim, "Muon"):
            msg = f"torch {torch.__version__} has no Muon; install torch 2.9 or newer, or choose another optimizer."
            raise OptionError(msg)
        adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**adam, "momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps})

    def _check_group(self, group: dict[str, Any]) -> None:
        check_muon_group(group)

    def _step_matrices(self, group: dict[str, Any], params: list[Tensor], slots: dict[Tensor, Slot]) -> None:
        settings = {key: group[key] for key in ("lr", "weight_decay", "momentum", "nesterov", "ns_steps")}
        for param in params:
            assert param.grad is not None
            dtype, state = state_dtype(param.dtype), self.state[param]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(param, dtype=dtype)
            wide = param.to(dtype)
            whole = (wide, param.grad.to(dtype), state["momentum_buffer"])
            weights, grads, momenta = (_matrices(tensor, group["split"]) for tensor in whole)
            muon_update_(weights, grads, momenta, **settings)
            if wide is not param:
                param.copy_(wide)


def _matrices(packed: Tensor, split: int) -> list[Tensor]:
    return [packed] if split == 1 else list(blocks(packed, split).unbind())
