"""State of a projected parameter: refreshes of its basis and update of its moments.

Plain functions on a parameter group (the options) and a state dictionary (tensors and numbers only).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from scgalore.optim.projector import (
    Bases,
    Sides,
    compressed_shape,
    exact_bases,
    iterated_bases,
    overlap,
    random_bases,
    random_start,
    rotate,
    sides_of,
    turns,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

BasisMethod = Literal["warm", "svd", "randomized", "random"]
BASIS_METHODS: tuple[BasisMethod, ...] = ("warm", "svd", "randomized", "random")
Moments = Literal["rotate", "keep", "reset"]
MOMENTS: tuple[Moments, ...] = ("rotate", "keep", "reset")
ScaleType = Literal["channel", "tensor"]
SCALE_TYPES: tuple[ScaleType, ...] = ("channel", "tensor")

# Defaults of a group with `rank`.
PROJECTION_DEFAULTS: dict[str, Any] = {"update_proj_gap": 20, "scale": "auto", "proj_type": "std", "split": 1}

# A lazy refresh whose subspace contains this fraction of the old one doubles the gap, up to this multiple of the group's.
UNMOVED = 0.95
MOST_GAPS = 16


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
    """Bases for this step, refreshed when due; ``None`` if there are none yet.

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
    step = state.setdefault("step", 0)
    new = _new_bases(group, grad, sides, old, seeds=(group["seed"], slot.number, step))
    turn = None if old is None else turns(old, new)
    _carry_moments(state, grad, new, turn, group["moments"])
    state["basis"] = new.right if new.left is None else new.left
    if sides.left and sides.right:
        state["basis_right"] = new.right
    gap, n_gaps = group["update_proj_gap"], 1
    if group["lazy"]:
        if turn is not None and overlap(turn) > UNMOVED:
            n_gaps = min(2 * state.get("n_gaps", 1), MOST_GAPS)
        state["n_gaps"] = n_gaps
    state["refresh_at"] = step + n_gaps * gap - (step + slot.offset) % gap
    return new


def _new_bases(
    group: Mapping[str, Any], grad: Tensor, sides: Sides, old: Bases | None, seeds: tuple[int, int, int]
) -> Bases:
    method, rank = group["basis"], group["rank"]
    if method == "svd":
        return exact_bases(grad, rank, sides)
    if method == "random":
        return random_bases(grad, rank, sides, seeds)
    if method == "warm" and old is not None and all(side is None or side.shape[-2] == rank for side in old):
        return iterated_bases(grad, old)
    start = random_start(grad, rank, sides, seeds)
    # All first bases are computed in one step, which should not take much longer than others: one iteration, which the next
    # refresh continues. A sketch that is not improved later needs two.
    return iterated_bases(grad, start, n_iter=1 if method == "warm" else 2)


def _carry_moments(state: dict[str, Any], grad: Tensor, new: Bases, turn: Bases | None, moments: Moments) -> None:
    shape = compressed_shape(grad, new)
    for key in ("exp_avg", "exp_avg_sq"):
        if turn is not None and moments == "rotate":
            state[key] = rotate(state[key], turn, squared=key == "exp_avg_sq")
        elif turn is None or moments == "reset" or state[key].shape != shape:
            state[key] = torch.zeros(shape, dtype=grad.dtype, device=grad.device)
