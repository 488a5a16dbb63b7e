"""APOLLO: gradient scaled per channel by learning rates from Adam in a random low-rank space.

The method is that of Zhu et al., "APOLLO: SGD-like Memory, AdamW-level Performance" (MLSys 2025, arXiv:2412.05270),
Algorithm 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scgalore.optim.checks import check_apollo_group
from scgalore.optim.kernels import adam_steps
from scgalore.optim.mixed import Compressed, MixedAdamW
from scgalore.optim.projector import auto_scale, compress, random_projection, sides_of
from scgalore.optim.subspace import blocks, state_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scgalore.optim.subspace import ScaleType, Slot


class ApolloAdamW(MixedAdamW):
    r"""APOLLO for matrices, AdamW for the rest: two moments of rank ``r``, and no basis.

    A parameter group with a ``rank`` is APOLLO's; its keys are those of :class:`~scgalore.optim.GaLoreAdamW`, with the
    same rule for which matrices are projected and the same ``split`` for packed q/k/v weights. A group without
    ``rank``, and every vector and every matrix whose smaller side is at most ``rank``, gets
    :class:`torch.optim.AdamW`'s update.

    For a weight with the gradient G of shape m x n, m < n (else transposed), and the limit :math:`\gamma`
    (``max_growth``):

    .. math::
        R &= P G, \qquad P_{ij} \sim \mathcal N(0, 1 / r), \text{ of shape } r \times m \\
        \tilde R &= \hat M / (\sqrt{\hat V} + \epsilon), \text{ Adam's step for } R \\
        s_j &= \lVert \tilde R_{:,j} \rVert / \lVert R_{:,j} \rVert
               \quad \text{or, per tensor,} \quad s = \lVert \tilde R \rVert / \lVert R \rVert \\
        \tilde G &= G \, \mathrm{diag}(s), \text{ shortened to } \gamma \lVert \tilde G_{t-1} \rVert \text{ if it is
        longer} \\ W &\leftarrow (1 - \eta\lambda) W - \eta \cdot \mathrm{scale} \cdot \tilde G

    G itself is scaled, as in the paper; known libraries scale R and project it back. P is drawn from
    ``(seed, index of the parameter, number of the refresh)`` at every step and not stored; it changes after
    ``update_proj_gap`` steps (20; 200 in the paper and in the registry). The moments are then kept, as in the paper.

    Details not specified in the paper: Adam's step is bias-corrected as torch's is; the norm that limits the next step
    is that of the step as taken, without ``lr`` and ``scale``, of each block of a packed weight by itself; a gradient
    of zero neither limits nor is remembered. ``scale="auto"`` is :math:`\sqrt{m / r}`, the factor by which s falls
    short of what it would be without projection, as the paper derives, so that ``lr`` means the same as for AdamW. A
    gradient that is not finite leaves its projected weight and state unchanged, with one warning.

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
    scale_type
        ``"channel"``, a factor for each row or column along the longer side (APOLLO), or ``"tensor"``, one for each
        matrix (APOLLO-Mini, with ``rank=1`` and ``scale`` the root of 128).
    max_growth
        Maximum growth of the norm of a matrix's step from one step to the next; ``None`` for no limit.
    seed
        Seed of all projections; equal on all ranks of a distributed run.

    Notes
    -----
    The state of a projected parameter is ``step`` (a number), ``exp_avg`` and ``exp_avg_sq`` (tensors of shape ``(r,
    n)`` or ``(m, r)``, float32 also for bfloat16 weights) and ``norm`` (a tensor with one entry for each block). It
    loads with ``torch.load(weights_only=True)`` and training continues bit for bit on the same kind of device. Another
    kind of device draws other projections from the same seed.

    Examples
    --------
    >>> import torch
    >>> import scgalore as sg
    >>> network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
    >>> optimizer = sg.optim.ApolloAdamW(sg.optim.param_groups(network, rank=8, update_proj_gap=200), lr=1e-3)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        scale_type: ScaleType = "channel",
        max_growth: float | None = 1.01,
        seed: int = 0,
    ) -> None:
        adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**adam, "scale_type": scale_type, "max_growth": max_growth, "seed": seed})

    def _check_group(self, group: dict[str, Any]) -> None:
        check_apollo_group(group)

    def _step_matrices(self, group: dict[str, Any], params: list[Tensor], slots: dict[Tensor, Slot]) -> None:
        projected = []
        for param in params:
            grad = _gradient(param, group)
            m, n = grad.shape[-2:]
            refresh = self.state[param].get("step", 0) // group["update_proj_gap"]
            seeds = (group["seed"], slots[param].number, refresh)
            projection = random_projection(grad, group["rank"], sides_of(m, n, group["proj_type"]), seeds)
            scale = auto_scale(m, n, projection) if group["scale"] == "auto" else group["scale"]
            projected.append(Compressed(param, compress(grad, projection), scale))
        for step, items in self._finite_by_step(projected):
            self._apply(group, items, step)

    def _apply(self, group: dict[str, Any], items: list[Compressed], step: int) -> None:
        states = [self.state[item.param] for item in items]
        for item, state in zip(items, states, strict=True):
            if "norm" not in state:
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(item.low), torch.zeros_like(item.low)
                state["norm"] = item.low.new_zeros(item.low.shape[:-2])
        lows = [item.low for item in items]
        updates = adam_steps(lows, states, step, betas=group["betas"], eps=group["eps"])
        lr = float(group["lr"])
        for item, state, update in zip(items, states, updates, strict=True):
            weight, grad = blocks(item.param, group["split"]), _gradient(item.param, group)
            m, n = grad.shape[-2:]
            sides = sides_of(m, n, group["proj_type"])
            dims = (-2, -1) if group["scale_type"] == "tensor" else (-2,) if sides.left else (-1,)
            factors = _length(update, dims) / _length(item.low, dims).clamp_min(
                _least(item.low)
            )  # (1, n), (m, 1) or (1, 1)
            factors *= _within_limit(state["norm"], _length(grad, dims) * factors, group["max_growth"])
            wide = weight if weight.dtype == grad.dtype else weight.to(grad.dtype)
            wide.mul_(1.0 - lr * group["weight_decay"]).addcmul_(grad, factors, value=-lr * item.how)
            if wide is not weight:
                weight.copy_(wide)


def _gradient(param: Tensor, group: dict[str, Any]) -> Tensor:
    assert param.grad is not None
    return blocks(param.grad.to(state_dtype(param.dtype)), group["split"])


def _length(matrix: Tensor, dims: tuple[int, ...]) -> Tensor:
    return torch.linalg.vector_norm(matrix, dim=dims, keepdim=True)


def _least(low: Tensor) -> float:
    # Squares of smaller values underflow, and the quotient of such norms could be huge.
    return float(torch.finfo(low.dtype).tiny) ** 0.5


def _within_limit(last: Tensor, lengths: Tensor, max_growth: float | None) -> Tensor | float:
    """Factor that limits the norm of a step to ``max_growth`` times that of the last one, which is then updated.

    Parameters
    ----------
    last
        Norm of the last step of each block; 0 where there was none.
    lengths
        Norms of the channels of the step.
    """
    if max_growth is None:
        return 1.0
    norm = _length(lengths, (-2, -1))
    before = last[..., None, None]
    factor = torch.where((before > 0) & (norm > max_growth * before), max_growth * before / norm, 1.0)
    last.copy_(torch.where(norm > 0, norm * factor, before)[..., 0, 0])
    return factor
