"""GaLore's AdamW: all parameters trained, moments kept in a low-rank subspace of each weight's gradient.

The method is that of Zhao et al., "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection" (ICML 2024).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from scgalore.optim.checks import check_galore_group
from scgalore.optim.kernels import adam_steps
from scgalore.optim.mixed import Compressed, MixedAdamW
from scgalore.optim.projector import auto_scale, compress, expand_into_
from scgalore.optim.subspace import blocks, current_bases, state_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from scgalore.optim.subspace import BasisMethod, Moments, Slot


class GaLoreAdamW(MixedAdamW):
    r"""AdamW with moments in a low-rank subspace of each weight's gradient.

    A parameter group with a ``rank`` is projected. Its other keys are galore-torch's: ``update_proj_gap`` (20, steps
    between refreshes of the basis), ``scale`` (``"auto"``: :math:`\sqrt{n / r}`, so that ``lr`` means the same as for
    AdamW) and ``proj_type`` (``"std"``, ``"reverse_std"``, ``"left"``, ``"right"``, ``"full"``); and ``split`` (1; with
    3 the blocks of a packed q/k/v weight are projected one by one). A group without ``rank``, and every vector and
    every matrix whose smaller side is at most ``rank``, gets :class:`torch.optim.AdamW`'s update, fused where the
    device can.

    The projected update is galore-torch's: ``eps`` outside the bias correction, weight decay after the step.

    .. math:: W \leftarrow (1 - \eta\lambda)\Bigl(W - \eta \cdot \mathrm{scale} \cdot
              \tfrac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \, \mathrm{back}\bigl(M / (\sqrt V + \epsilon)\bigr)\Bigr)

    A gradient that is not finite leaves its projected weight, moments, basis and counter unchanged, with one warning;
    parameters under AdamW treat it as :class:`torch.optim.AdamW` does. An all-zero gradient does not define a basis: the
    first basis, or the refresh, is computed from the next gradient that is not zero.

    Parameters
    ----------
    params
        Parameters or parameter groups, e.g. from :func:`~scgalore.optim.param_groups`.
    lr
        Learning rate.
    betas
        Decay rates of the first and second moment.
    eps
        Added to the root of the second moment.
    weight_decay
        Decoupled weight decay.
    basis
        How a refresh finds the subspace: ``"warm"``, subspace iteration started from the previous basis; ``"svd"``, the
        exact SVD of the gradient; ``"randomized"``, two power iterations from a random start; ``"random"``, a random
        subspace independent of the gradient, as in GoLore (He et al., "Subspace Optimization for Large Language
        Models with Convergence Guarantees", 2024).
    moments
        Moments at a refresh: ``"rotate"`` expresses them in the new basis, ``"keep"`` keeps the values, as galore-torch
        does, ``"reset"`` sets them to zero, which causes a few larger steps, since bias correction does not restart.
    stagger
        Whether to spread the refreshes of the weights over the gap, so that no step refreshes all of them.
    lazy
        Whether to double the gap of a weight, up to 16 times the group's, whenever the new subspace contains 95 % of the
        old one. The first refresh for which it does not restores the group's gap.
    seed
        Seed of all random directions; equal on all ranks of a distributed run.

    Notes
    -----
    The state of a projected parameter is ``step`` and ``refresh_at`` (numbers; ``n_gaps`` too if ``lazy``), ``basis``,
    ``exp_avg`` and ``exp_avg_sq`` (tensors, float32 also for bfloat16 weights). A basis has shape ``(r, n)`` on the
    right or ``(r, m)`` on the left of an m x n weight; ``"full"`` has the left one in ``basis`` and the right one in
    ``basis_right``. The state loads with ``torch.load(weights_only=True)`` and training continues bit for bit.

    Examples
    --------
    >>> import torch
    >>> import scgalore as sg
    >>> network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
    >>> optimizer = sg.optim.GaLoreAdamW(sg.optim.param_groups(network, rank=8), lr=1e-3)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        basis: BasisMethod = "warm",
        moments: Moments = "rotate",
        stagger: bool = True,
        lazy: bool = False,
        seed: int = 0,
    ) -> None:
        adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        refresh = {"basis": basis, "moments": moments, "stagger": stagger, "lazy": lazy, "seed": seed}
        super().__init__(params, {**adam, **refresh})

    def _check_group(self, group: dict[str, Any]) -> None:
        check_galore_group(group)

    def refresh(self) -> None:
        """Compute new subspaces at the next step, independent of the gap, for example if gradients change.

        Afterwards, refreshes follow their usual steps again.
        """
        for state in self.state.values():
            if "refresh_at" in state:
                state["refresh_at"] = state["step"]

    def _step_matrices(self, group: dict[str, Any], params: list[Tensor], slots: dict[Tensor, Slot]) -> None:
        projected: list[Compressed] = []
        for param in params:
            assert param.grad is not None
            grad = blocks(param.grad.to(state_dtype(param.dtype)), group["split"])
            bases = current_bases(group, self.state[param], grad, slots[param])
            if bases is not None:
                projected.append(Compressed(param, compress(grad, bases), bases))
            elif not grad.isfinite().all():
                projected.append(Compressed(param, grad, None))  # is skipped with the others below
        for step, items in self._finite_by_step(projected):
            self._apply(group, items, step)

    def _apply(self, group: dict[str, Any], items: list[Compressed], step: int) -> None:
        lr, decay = float(group["lr"]), group["weight_decay"]
        # The kernel applies eps inside the bias correction, galore-torch outside.
        eps = group["eps"] / math.sqrt(1.0 - group["betas"][1] ** step)
        states = [self.state[item.param] for item in items]
        updates = adam_steps([item.low for item in items], states, step, betas=group["betas"], eps=eps)
        keep = 1.0 - lr * decay
        for item, update in zip(items, updates, strict=True):
            weight = blocks(item.param, group["split"])
            m, n = weight.shape[-2:]
            scale = group["scale"]
            if scale == "auto":
                scale = auto_scale(m, n, item.how)
            wide = weight if weight.dtype == update.dtype else weight.to(update.dtype)
            expand_into_(wide, update, item.how, keep=keep, rate=lr * scale * keep)
            if wide is not weight:
                weight.copy_(wide)
