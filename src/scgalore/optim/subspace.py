"""The state of one projected parameter: when its basis is refreshed and what becomes of the moments.

Plain functions on a parameter group (the options) and a state dictionary (tensors and numbers only).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from scgalore.optim.projector import Bases, compressed_shape, exact_bases, iterated_bases, rotate, sides_of

if TYPE_CHECKING:
    from collections.abc import Mapping

BasisMethod = Literal["warm", "svd"]
Moments = Literal["rotate", "keep", "reset"]

# What a group with `rank` gets for the keys it does not set.
PROJECTION_DEFAULTS: dict[str, Any] = {"update_proj_gap": 20, "scale": "auto", "proj_type": "std", "split": 1}


class Slot(NamedTuple):
    """Place of a projected parameter in its optimizer."""

    number: int  # among all parameters, seeds the random start
    offset: int  # steps by which its refreshes are moved, so that no step refreshes everything


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of moments and bases: float32 for half precision, else the parameter's own."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def is_projected(param: Tensor, group: Mapping[str, Any]) -> bool:
    """Whether a parameter of this group is projected: a matrix whose smaller side exceeds the group's rank."""
    rank = group.get("rank")
    if rank is None or param.ndim != 2:
        return False
    return bool(min(param.shape[0] // group.get("split", 1), param.shape[1]) > rank)


def blocks(matrix: Tensor, split: int) -> Tensor:
    """View of a packed matrix as ``(split, m, n)``; a plain one is returned as it is."""
    return matrix if split == 1 else torch.unflatten(matrix, 0, (split, -1))


def current_bases(group: Mapping[str, Any], state: dict[str, Any], grad: Tensor, slot: Slot) -> Bases | None:
    """Bases for this step, refreshed when due; ``None`` as long as there are none.

    A gradient that is all zero or not finite gives no basis; the refresh then stays due.
    """
    m, n = grad.shape[-2:]
    sides = sides_of(m, n, group["proj_type"])
    old = None
    if "basis" in state:
        right = state["basis_right"] if sides.left and sides.right else state["basis"]
        old = Bases(state["basis"] if sides.left else None, right if sides.right else None)
        if state["step"] < state["refresh_at"]:
            return old
    lowest, highest = (float(extreme) for extreme in torch.aminmax(grad))
    if lowest == highest == 0.0 or not (math.isfinite(lowest) and math.isfinite(highest)):
        return old
    if group["basis"] == "svd":
        new = exact_bases(grad, group["rank"], sides)
    else:
        new = iterated_bases(grad, group["rank"], sides, old, seed=(group["seed"] * 1_000_003 + slot.number) % 2**62)
    _carry_moments(state, grad, old, new, group["moments"])
    state["basis"] = new.right if new.left is None else new.left
    if sides.left and sides.right:
        state["basis_right"] = new.right
    gap, step = group["update_proj_gap"], state.setdefault("step", 0)
    state["refresh_at"] = step + gap - (step + slot.offset) % gap
    return new


def _carry_moments(state: dict[str, Any], grad: Tensor, old: Bases | None, new: Bases, moments: Moments) -> None:
    shape = compressed_shape(grad, new)
    for key in ("exp_avg", "exp_avg_sq"):
        if old is not None and moments == "rotate":
            state[key] = rotate(state[key], old, new, squared=key == "exp_avg_sq")
        elif old is None or moments == "reset" or state[key].shape != shape:
            state[key] = torch.zeros(shape, dtype=grad.dtype, device=grad.device)
