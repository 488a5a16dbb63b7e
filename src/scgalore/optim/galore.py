"""GaLore's AdamW: all parameters trained, moments kept in a low-rank subspace of each weight's gradient.

The method is that of Zhao et al., "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection" (ICML 2024).
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from scgalore.errors import OptionError
from scgalore.optim.checks import check_group, plain_number
from scgalore.optim.kernels import adamw_update_, step_device
from scgalore.optim.projector import Bases, auto_scale, compress, expand_into_
from scgalore.optim.state import OwnPrecision
from scgalore.optim.subspace import PROJECTION_DEFAULTS, Slot, blocks, current_bases, is_projected, state_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scgalore.optim.subspace import BasisMethod, Moments


class _Projected(NamedTuple):
    param: Tensor
    bases: Bases
    low: Tensor  # the projected gradient


class GaLoreAdamW(OwnPrecision):
    r"""AdamW whose moments live in a low-rank subspace of each weight's gradient.

    A parameter group with a ``rank`` is projected. Its other keys are galore-torch's: ``update_proj_gap`` (20, steps
    between refreshes of the basis), ``scale`` (``"auto"``: :math:`\sqrt{n / r}`, so that ``lr`` means the same as for
    AdamW) and ``proj_type`` (``"std"``, ``"reverse_std"``, ``"left"``, ``"right"``, ``"full"``); and ``split`` (1; with
    3 the blocks of a packed q/k/v weight are projected one by one). A group without ``rank``, and every vector and
    every matrix whose smaller side is at most ``rank``, gets :class:`torch.optim.AdamW`'s update, fused where the
    device can.

    The projected update is galore-torch's: ``eps`` outside the bias correction, weight decay after the step.

    .. math:: W \leftarrow (1 - \eta\lambda)\Bigl(W - \eta \cdot \mathrm{scale} \cdot
              \tfrac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \, \mathrm{back}\bigl(M / (\sqrt V + \epsilon)\bigr)\Bigr)

    A gradient that is not finite leaves its projected weight, moments, basis and counter untouched, with one warning;
    parameters under AdamW treat it as :class:`torch.optim.AdamW` does. An all-zero gradient takes no basis: the first
    basis, or the refresh, waits for the next gradient that has a direction.

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
        subspace that does not look at the gradient, as in GoLore (He et al., "Subspace Optimization for Large Language
        Models with Convergence Guarantees", 2024).
    moments
        At a refresh, ``"rotate"`` expresses the moments in the new basis, ``"keep"`` leaves the numbers as galore-torch
        does, ``"reset"`` sets them to zero; a few larger steps follow, since bias correction does not restart.
    stagger
        Spread the refreshes of the weights over the gap, so that no step refreshes all of them.
    lazy
        Double the gap of a weight, up to 16 times the group's, whenever a refresh finds 95 % of the old subspace again;
        the group's gap returns with the first refresh that does not.
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

    _warned = False
    _slots: tuple[tuple[Any, ...], dict[Tensor, Slot]] | None = None

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

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A state saved by torch's AdamW lacks our keys.
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; one with ``rank`` is projected."""
        if isinstance(param_group, dict) and param_group.get("rank") is not None:
            for key, value in PROJECTION_DEFAULTS.items():
                param_group.setdefault(key, value)
        super().add_param_group(param_group)
        # A checkpoint with NumPy's numbers in it does not load with weights_only=True.
        param_group |= {key: plain_number(value) for key, value in param_group.items() if key != "params"}
        try:
            check_group(param_group)
        except OptionError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters once.

        Parameters
        ----------
        closure
            Evaluates the model again, with gradients enabled, and returns the loss.

        Returns
        -------
        The loss of the closure, if one was given.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        slots = self._current_slots()
        for group in self.param_groups:
            trained = [param for param in group["params"] if param.grad is not None]
            if any(param.grad.is_sparse for param in trained):
                msg = "GaLoreAdamW got a sparse gradient; build the embedding with sparse=False."
                raise RuntimeError(msg)
            self._step_plain(group, [param for param in trained if param not in slots])
            self._step_projected(group, [param for param in trained if param in slots], slots)
        return loss

    def refresh(self) -> None:
        """Find new subspaces at the next step, whatever the gap says: for gradients that will be of another kind.

        Refreshes fall on their own steps again after that.
        """
        for state in self.state.values():
            if "refresh_at" in state:
                state["refresh_at"] = state["step"]

    def _current_slots(self) -> dict[Tensor, Slot]:
        # Kept as long as no group changes: who updates during the backward pass calls step() once for each parameter.
        keys = ("rank", "split", "update_proj_gap", "stagger")
        made_from = tuple((*map(group.get, keys), *map(id, group["params"])) for group in self.param_groups)
        if self._slots is None or self._slots[0] != made_from:
            self._slots = made_from, self._make_slots()
        return self._slots[1]

    def _make_slots(self) -> dict[Tensor, Slot]:
        everything = enumerate((group, param) for group in self.param_groups for param in group["params"])
        projected = [(index, group, param) for index, (group, param) in everything if is_projected(param, group)]
        return {
            param: Slot(index, place * group["update_proj_gap"] // len(projected) if group["stagger"] else 0)
            for place, (index, group, param) in enumerate(projected)
        }

    def _step_plain(self, group: dict[str, Any], params: list[Tensor]) -> None:
        settings = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay")}
        same: list[Tensor] = []
        for param in params:
            state = self.state[param]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=step_device(param))
                state["exp_avg"] = torch.zeros_like(param, dtype=state_dtype(param.dtype))
                state["exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
            if param.dtype == state["exp_avg"].dtype:
                same.append(param)
                continue
            # One at a time: float32 copies of all of them together would outweigh the moments.
            wide = param.to(state["exp_avg"].dtype)
            adamw_update_([wide], [param.grad], [state], [state["step"]], **settings)
            param.copy_(wide)
        states = [self.state[param] for param in same]
        adamw_update_(same, [param.grad for param in same], states, [state["step"] for state in states], **settings)

    def _step_projected(self, group: dict[str, Any], params: list[Tensor], slots: dict[Tensor, Slot]) -> None:
        projected: list[_Projected] = []
        not_finite = False
        for param in params:
            assert param.grad is not None
            grad = blocks(param.grad.to(state_dtype(param.dtype)), group["split"])
            bases = current_bases(group, self.state[param], grad, slots[param])
            if bases is not None:
                projected.append(_Projected(param, bases, compress(grad, bases)))
            else:
                not_finite |= not grad.isfinite().all()
        by_step: dict[tuple[int, torch.device], list[_Projected]] = defaultdict(list)
        for item, is_finite in zip(projected, _all_finite([item.low for item in projected]), strict=True):
            if not is_finite:
                not_finite = True
                continue
            state = self.state[item.param]
            state["step"] += 1
            by_step[state["step"], item.param.device].append(item)
        if not_finite:
            self._warn_not_finite()
        for (step, device), items in by_step.items():
            self._apply(group, items, step, device)

    def _apply(self, group: dict[str, Any], items: list[_Projected], step: int, device: torch.device) -> None:
        lr, decay, (_, beta2) = float(group["lr"]), group["weight_decay"], group["betas"]
        # AdamW on weights of zero leaves the normalised step itself, by the fused kernel and for all matrices at once.
        # Its eps stands inside the bias correction; galore-torch's outside.
        updates = [torch.zeros_like(item.low) for item in items]
        steps = list(torch.full((len(items),), step - 1.0, device=step_device(updates[0])).unbind())
        eps = group["eps"] / math.sqrt(1.0 - beta2**step)
        states = [self.state[item.param] for item in items]
        lows = [item.low for item in items]
        adamw_update_(updates, lows, states, steps, lr=1.0, betas=group["betas"], eps=eps, weight_decay=0.0)
        keep = 1.0 - lr * decay
        for item, update in zip(items, updates, strict=True):
            weight = blocks(item.param, group["split"])
            m, n = weight.shape[-2:]
            scale = group["scale"]
            if scale == "auto":
                scale = auto_scale(m, n, item.bases)
            wide = weight if weight.dtype == update.dtype else weight.to(update.dtype)
            expand_into_(wide, update, item.bases, keep=keep, rate=lr * scale * keep)
            if wide is not weight:
                weight.copy_(wide)

    def _warn_not_finite(self) -> None:
        if not self._warned:
            self._warned = True
            msg = (
                "GaLoreAdamW found NaN or infinity in a gradient and left the weight as it is (said once). If the loss "
                "does not recover, lower the learning rate or clip the gradients."
            )
            warnings.warn(msg, RuntimeWarning, stacklevel=6)


def _all_finite(lows: list[Tensor]) -> list[bool]:
    # What is not finite in a gradient is not finite in its projection, which is quicker to look through. One answer for
    # all of them, since each would wait for the GPU.
    if not lows:
        return []
    sums = [low.sum().to(device=lows[0].device, dtype=torch.float64) for low in lows]
    return torch.stack(sums).isfinite().tolist()
