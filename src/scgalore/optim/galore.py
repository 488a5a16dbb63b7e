"""GaLore's AdamW: all parameters trained, moments kept in a low-rank subspace of the gradient.

The method is that of Zhao et al., "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection" (ICML 2024).
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from scgalore.errors import OptionError
from scgalore.optim.projector import (
    PROJ_TYPES,
    Bases,
    auto_scale,
    compress,
    exact_bases,
    expand_into_,
    iterated_bases,
    rotate,
    sides_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

BasisMethod = Literal["warm", "svd"]
Moments = Literal["rotate", "keep", "reset"]

# What a group with `rank` gets for the keys it does not set.
PROJECTION_DEFAULTS: dict[str, Any] = {"update_proj_gap": 20, "scale": "auto", "proj_type": "std", "split": 1}

_FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


class _Slot(NamedTuple):
    index: int  # place among all parameters, seeds the random start
    offset: int  # steps by which the refreshes are moved, so that no step refreshes all


class _Ready(NamedTuple):
    param: Tensor
    bases: Bases
    low: Tensor


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of moments and bases: float32 below float32, else the parameter's own."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def is_projected(param: Tensor, group: Mapping[str, Any]) -> bool:
    """Whether a parameter of this group is projected; vectors, tensors of other rank and small matrices are not."""
    rank = group.get("rank")
    if rank is None or param.ndim != 2:
        return False
    return bool(min(param.shape[0] // group["split"], param.shape[1]) > rank)


def blocks(matrix: Tensor, split: int) -> Tensor:
    """View of a packed matrix as ``(split, m, n)``; a plain one is returned as it is."""
    return matrix if split == 1 else matrix.unflatten(0, (split, -1))


class GaLoreAdamW(Optimizer):
    r"""AdamW whose moments live in a low-rank subspace of each weight's gradient.

    A parameter group with a ``rank`` is projected; its other keys are ``update_proj_gap`` (20: steps between refreshes of the
    basis), ``scale`` (``"auto"``: :math:`\sqrt{n / r}`, so that ``lr`` means what it means for AdamW), ``proj_type``
    (``"std"``, ``"reverse_std"``, ``"left"``, ``"right"``, ``"full"``) as in galore-torch, and ``split`` (1; 3 projects the
    blocks of a packed q/k/v weight one by one). A group without ``rank``, and in a projected group every vector and every
    matrix whose smaller side is at most ``rank``, gets AdamW as in :class:`torch.optim.AdamW`, fused where the device allows.

    The projected update is galore-torch's, ``eps`` outside the bias correction and weight decay after the step:

    .. math:: W \leftarrow (1 - \eta\lambda)\Bigl(W - \eta\,\mathrm{scale}\,\tfrac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}\,
              \mathrm{back}\bigl(M / (\sqrt V + \epsilon)\bigr)\Bigr)

    A projected weight whose gradient is not finite is left untouched for that step, its moments, counter and basis too, with one
    warning; parameters under AdamW treat such a gradient as :class:`torch.optim.AdamW` does. An all-zero gradient takes no basis:
    the first basis, or the refresh, waits for the next gradient that has a direction.

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
        ``"warm"``: subspace iteration started from the previous basis; ``"svd"``: exact SVD of the gradient.
    moments
        At a refresh, ``"rotate"`` expresses the moments in the new basis, ``"keep"`` leaves the numbers as galore-torch does,
        ``"reset"`` sets them to zero.
    stagger
        Spread the refreshes of the weights over the gap, so that no step refreshes all of them.
    seed
        Seed of the random start of the first bases. Equal on all ranks of a distributed run.

    Notes
    -----
    The state of a projected parameter is ``step``, ``refresh_at`` (numbers), ``exp_avg``, ``exp_avg_sq`` and ``basis`` (tensors;
    for ``"full"`` ``basis`` is the left one, with ``basis_right`` beside it), float32 also for bfloat16 weights. Checkpoints load with
    ``torch.load(weights_only=True)`` and continue bit for bit.

    Examples
    --------
    >>> import torch, scgalore as sg
    >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
    >>> optimizer = sg.optim.GaLoreAdamW(sg.optim.param_groups(net, rank=8), lr=1e-3)
    """

    _warned = False

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
        seed: int = 0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"basis": basis, "moments": moments, "stagger": stagger, "seed": seed})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with ``rank`` and its companions when it is to be projected."""
        if isinstance(param_group, dict) and param_group.get("rank") is not None:
            for key, value in PROJECTION_DEFAULTS.items():
                param_group.setdefault(key, value)
        super().add_param_group(param_group)
        try:
            _check_group(param_group)
        except OptionError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update the parameters once.

        Parameters
        ----------
        closure
            Evaluates the model again, with gradients enabled, and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        slots = self._slots()
        for group in self.param_groups:
            plain: list[Tensor] = []
            projected: list[Tensor] = []
            for param in group["params"]:
                if param.grad is None:
                    continue
                if param.grad.is_sparse:
                    msg = "GaLoreAdamW got a sparse gradient; build the embedding with sparse=False."
                    raise RuntimeError(msg)
                (projected if param in slots else plain).append(param)
            self._step_plain(group, plain)
            self._step_projected(group, projected, slots)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, own copies of its tensors, in the state's precision rather than the parameters'."""
        # torch casts every state tensor to the parameter's dtype, which would round float32 moments to bfloat16, and shares
        # tensors that need no cast with their source. A last hook sees the dictionary as the other hooks leave it.
        seen: dict[str, Any] = {}
        handle = self.register_load_state_dict_pre_hook(lambda _, loaded: seen.update(loaded))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        params = [param for group in self.param_groups for param in group["params"]]
        saved_ids = [index for group in seen["param_groups"] for index in group["params"]]
        for index, param in zip(saved_ids, params, strict=True):
            if index in seen["state"]:
                self.state[param] = {key: _own(key, value, param) for key, value in seen["state"][index].items()}

    def _slots(self) -> dict[Tensor, _Slot]:
        everything = [(group, param) for group in self.param_groups for param in group["params"]]
        projected = [(i, group, param) for i, (group, param) in enumerate(everything) if is_projected(param, group)]
        return {
            param: _Slot(index, place * group["update_proj_gap"] // len(projected) if group["stagger"] else 0)
            for place, (index, group, param) in enumerate(projected)
        }

    def _step_plain(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for param in params:
            state = self.state[param]
            if not state:
                on = param.device if param.device.type in _FUSED_DEVICES else torch.device("cpu")
                state["step"] = torch.zeros((), dtype=torch.float32, device=on)
                state["exp_avg"] = torch.zeros_like(param, dtype=state_dtype(param.dtype))
                state["exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
        options = {key: group[key] for key in ("lr", "weight_decay", "eps", "betas")}
        low_precision = [p for p in params if p.dtype != state_dtype(p.dtype)]
        # One at a time: float32 copies of all of them together would cost more than the moments.
        for param in low_precision:
            assert param.grad is not None
            wide = param.to(state_dtype(param.dtype))
            _adamw_([wide], [param.grad.to(wide.dtype)], [self.state[param]], **options)
            param.copy_(wide)
        rest = [p for p in params if p.dtype == state_dtype(p.dtype)]
        _adamw_(rest, [p.grad for p in rest if p.grad is not None], [self.state[p] for p in rest], **options)

    def _step_projected(self, group: dict[str, Any], params: list[Tensor], slots: dict[Tensor, _Slot]) -> None:
        ready: list[_Ready] = []
        for param in params:
            assert param.grad is not None
            grad = blocks(param.grad.to(state_dtype(param.dtype)), group["split"])
            bases = self._bases(group, param, grad, slots[param])
            if bases is not None:
                ready.append(_Ready(param, bases, compress(grad, bases)))
        by_step: dict[tuple[int, torch.device], list[_Ready]] = defaultdict(list)
        for item in self._finite(ready):
            state = self.state[item.param]
            state["step"] += 1
            by_step[state["step"], item.param.device].append(item)
        for (step, device), items in by_step.items():
            self._update(group, items, step, device)

    def _bases(self, group: dict[str, Any], param: Tensor, grad: Tensor, slot: _Slot) -> Bases | None:
        """Bases for this step, refreshed when due; ``None`` while there are none."""
        state = self.state[param]
        m, n = grad.shape[-2:]
        rank, sides = group["rank"], sides_of(m, n, group["proj_type"])
        old = None
        if "basis" in state:
            right = state.get("basis_right") if sides.left else state["basis"]
            old = Bases(state["basis"] if sides.left else None, right)
            if state["step"] < state["refresh_at"]:
                return old
        else:
            state["step"] = 0
        low, high = (float(x) for x in torch.aminmax(grad))
        if not (math.isfinite(low) and math.isfinite(high)):
            self._warn_not_finite()
            return old
        if low == high == 0.0:
            return old
        if group["basis"] == "svd":
            new = exact_bases(grad, rank, sides)
        else:
            new = iterated_bases(grad, rank, sides, old, _mix(group["seed"], slot.index))
        self._carry_moments(group["moments"], state, old, new, compress(grad, new).shape)
        state["basis"] = new.right if new.left is None else new.left
        if sides.left and sides.right:
            state["basis_right"] = new.right
        gap = group["update_proj_gap"]
        state["refresh_at"] = state["step"] + gap - (state["step"] + slot.offset) % gap
        return new
