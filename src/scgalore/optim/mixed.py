"""AdamW for most parameters and another rule for chosen matrices, in one optimizer."""

from __future__ import annotations

import warnings
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from scgalore.errors import OptionError
from scgalore.optim.checks import plain_number
from scgalore.optim.kernels import adamw_update_, step_device
from scgalore.optim.state import OwnPrecision
from scgalore.optim.subspace import PROJECTION_DEFAULTS, Slot, is_projected, state_dtype

if TYPE_CHECKING:
    from collections.abc import Callable


class Compressed(NamedTuple):
    """A gradient in few coordinates, and its projection."""

    param: Tensor
    low: Tensor
    how: Any


class MixedAdamW(OwnPrecision):
    """AdamW, except for matrices in groups with a ``rank`` whose smaller side exceeds it, which a subclass updates.

    A subclass defines their update (:meth:`_step_matrices`) and the ranges of options (:meth:`_check_group`).
    All others get :class:`torch.optim.AdamW`'s update, fused where the device can.
    """

    _warned = False
    _slots: tuple[tuple[Any, ...], dict[Tensor, Slot]] | None = None

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise :class:`~scgalore.errors.OptionError` for an option out of range."""
        raise NotImplementedError

    def _step_matrices(self, group: dict[str, Any], params: list[Tensor], slots: dict[Tensor, Slot]) -> None:
        """Update the matrices of a group that have gradients."""
        raise NotImplementedError

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A state saved by torch's AdamW lacks our keys.
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; in one with ``rank``, matrices have their own rule."""
        if isinstance(param_group, dict) and param_group.get("rank") is not None:
            for key, value in PROJECTION_DEFAULTS.items():
                param_group.setdefault(key, value)
        super().add_param_group(param_group)
        # A checkpoint with NumPy's numbers in it does not load with weights_only=True.
        param_group |= {key: plain_number(value) for key, value in param_group.items() if key != "params"}
        try:
            self._check_group(param_group)
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
                msg = f"{type(self).__name__} got a sparse gradient; build the embedding with sparse=False."
                raise RuntimeError(msg)
            self._step_plain(group, [param for param in trained if param not in slots])
            self._step_matrices(group, [param for param in trained if param in slots], slots)
        return loss

    def _current_slots(self) -> dict[Tensor, Slot]:
        # Cached until a group changes, since updates during the backward pass call step() once per parameter.
        keys = ("rank", "split", "update_proj_gap", "stagger")
        made_from = tuple((*map(group.get, keys), *map(id, group["params"])) for group in self.param_groups)
        if self._slots is None or self._slots[0] != made_from:
            self._slots = made_from, self._make_slots()
        return self._slots[1]

    def _make_slots(self) -> dict[Tensor, Slot]:
        everything = enumerate((group, param) for group in self.param_groups for param in group["params"])
        chosen = [(index, group, param) for index, (group, param) in everything if is_projected(param, group)]
        return {
            param: Slot(index, place * group["update_proj_gap"] // len(chosen) if group.get("stagger") else 0)
            for place, (index, group, param) in enumerate(chosen)
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
            # One at a time, since float32 copies of all of them would be larger than the moments.
            wide = param.to(state["exp_avg"].dtype)
            adamw_update_([wide], [param.grad], [state], [state["step"]], **settings)
            param.copy_(wide)
        states = [self.state[param] for param in same]
        adamw_update_(same, [param.grad for param in same], states, [state["step"] for state in states], **settings)

    def _finite_by_step(self, items: list[Compressed]) -> list[tuple[int, list[Compressed]]]:
        """Gradients with finite coordinates, grouped by step, so that one kernel can process each group."""
        groups: dict[tuple[int, torch.device], list[Compressed]] = defaultdict(list)
        for item, is_finite in zip(items, _all_finite([item.low for item in items]), strict=True):
            if not is_finite:
                self._warn_not_finite()
                continue
            state = self.state[item.param]
            state["step"] = state.get("step", 0) + 1
            groups[state["step"], item.param.device].append(item)
        return [(step, together) for (step, _), together in groups.items()]

    def _warn_not_finite(self) -> None:
        if not self._warned:
            self._warned = True
            msg = (
                f"{type(self).__name__} found NaN or infinity in a gradient and did not update the weight (shown once). If "
                "the loss does not recover, lower the learning rate or clip gradients."
            )
            warnings.warn(msg, RuntimeWarning, stacklevel=7)


def _all_finite(lows: list[Tensor]) -> list[bool]:
    # A gradient that is not finite has a projection that is not finite, which is faster to check. All are checked together,
    # since each check waits for the GPU.
    if not lows:
        return []
    sums = [low.sum().to(device=lows[0].device, dtype=torch.float64) for low in lows]
    return torch.stack(sums).isfinite().tolist()
