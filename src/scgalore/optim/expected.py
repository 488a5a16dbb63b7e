"""Bytes of optimizer state and working memory, computed before an optimizer is created.

Each function reads shapes, dtypes and the settings of the parameter groups, so a network on the meta device is enough.
The state is that after the first step, as :func:`~scgalore.optim.state_bytes` counts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from scgalore.optim.memory import adamw_bytes
from scgalore.optim.projector import Sides, sides_of, state_numel
from scgalore.optim.subspace import PROJECTION_DEFAULTS, is_projected, state_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor
    from torch.optim import Optimizer

    Weights = Iterable[tuple[Tensor, Mapping[str, Any]]]
    """Parameters, each with the settings of its group."""

COUNTER = 4
"""Bytes of a step counter, a float32 tensor."""

CODE_TABLES = 2 * 256 * 4
"""Bytes of the two lookup tables of 8-bit values, once for all parameters."""


def weights_of(optimizer: Optimizer) -> list[tuple[Tensor, Mapping[str, Any]]]:
    """Parameters of an optimizer, each with the settings of its group."""
    return [(param, group) for group in optimizer.param_groups for param in group["params"]]


def galore_bytes(param: Tensor, group: Mapping[str, Any]) -> int:
    """State of :class:`~scgalore.optim.GaLoreAdamW` for one parameter: bases and low-rank moments, or AdamW's."""
    settings = PROJECTION_DEFAULTS | dict(group)
    if not is_projected(param, settings):
        return adamw_bytes(param)
    m, n, split = param.shape[0] // settings["split"], param.shape[1], settings["split"]
    return split * state_numel(m, n, settings["rank"], settings["proj_type"]) * state_dtype(param.dtype).itemsize


def count_galore(weights: Weights, options: Mapping[str, Any]) -> int:
    """State of ``"galore"``."""
    return sum(galore_bytes(param, group) for param, group in weights)


def count_apollo(weights: Weights, options: Mapping[str, Any]) -> int:
    """State of ``"apollo"`` and ``"apollo-mini"``: low-rank moments and the last norm; AdamW's for the rest."""
    return sum(_apollo_bytes(param, group) for param, group in weights)


def _apollo_bytes(param: Tensor, group: Mapping[str, Any]) -> int:
    if not is_projected(param, group):
        return adamw_bytes(param)
    return (2 * _low_numel(param, group) + group["split"]) * state_dtype(param.dtype).itemsize


def count_muon(weights: Weights, options: Mapping[str, Any]) -> int:
    """State of ``"muon"``: one momentum; AdamW's for the rest."""
    return sum(
        param.numel() * state_dtype(param.dtype).itemsize if is_projected(param, group) else adamw_bytes(param)
        for param, group in weights
    )


def _low_numel(param: Tensor, group: Mapping[str, Any]) -> int:
    """Number of elements of a projected gradient."""
    split, rank, m, n, sides = _projection(param, group)
    return split * (rank if sides.left else m) * (rank if sides.right else n)


def _projection(param: Tensor, group: Mapping[str, Any]) -> tuple[int, int, int, int, Sides]:
    split, rank = int(group["split"]), int(group["rank"])
    m, n = param.shape[0] // split, param.shape[1]
    return split, rank, m, n, sides_of(m, n, group["proj_type"])


def count_galore_torch(weights: Weights, options: Mapping[str, Any]) -> int:
    """State of ``"galore-torch"``, whose float32 bases keep the whole factor of the SVD in memory.

    Its counters are plain numbers. After loading a checkpoint, bases are small until the next refresh.
    """
    return sum(_galore_torch_bytes(param, group) for param, group in weights)


def _galore_torch_bytes(param: Tensor, group: Mapping[str, Any]) -> int:
    if group.get("rank") is None:
        return 2 * param.numel() * param.dtype.itemsize
    m, n = param.shape
    rank, sides = group["rank"], sides_of(m, n, group["proj_type"])
    # Other dtypes than float32 are converted after slicing, so that only the slice is copied.
    kept = min(m, n) if param.dtype == torch.float32 else rank
    moments = 2 * (rank if sides.left else m) * (rank if sides.right else n)
    return (kept * (m * sides.left + n * sides.right) + moments) * param.dtype.itemsize


def count_adamw(weights: Weights, options: Mapping[str, Any]) -> int:
    """State of ``"adamw"``: moments in the type of the weight, and a counter."""
    return sum(2 * param.numel() * param.dtype.itemsize + COUNTER for param, _ in weights)


def count_adafactor(weights: Weights, options: Mapping[str, Any]) -> int:
    """State of ``"adafactor"``: one row and one column for each matrix, and a counter."""
    return sum(_adafactor_numel(param) * param.dtype.itemsize + COUNTER for param, _ in weights)


def _adafactor_numel(param: Tensor) -> int:
    if param.ndim < 2:
        return param.numel()
    return param.numel() // param.shape[-1] + param.numel() // param.shape[-2]


def count_sophia(weights: Weights, options: Mapping[str, Any]) -> int:
    """State of ``"sophia"``: momentum and curvature."""
    return sum(2 * param.numel() * state_dtype(param.dtype).itemsize for param, _ in weights)


def count_adamw_8bit(weights: Weights, options: Mapping[str, Any]) -> int:
    """State of ``"adamw-8bit"``: two bytes per element and two scales per block of 256, or two float32 values for small tensors."""
    total, coded = 0, False
    for param, _ in weights:
        n = param.numel()
        if n < options["min_8bit_size"]:
            total += 2 * n * 4
        else:
            total += 2 * n + 2 * 4 * -(-n // 256)
            coded = True
    return total + CODE_TABLES * coded


def work_of_galore(weights: Weights, options: Mapping[str, Any]) -> int:
    """Projected gradients and updates of all projected weights, which are processed by one kernel."""
    settings = [(param, PROJECTION_DEFAULTS | dict(group)) for param, group in weights]
    return 2 * 4 * sum(_low_numel(param, group) for param, group in settings if is_projected(param, group))


def work_of_apollo(weights: Weights, options: Mapping[str, Any]) -> int:
    """Memory as for GaLore, and the largest random projection, which is generated at every step."""
    weights = list(weights)
    drawn = [0]
    for param, group in weights:
        if is_projected(param, group):
            split, rank, m, n, sides = _projection(param, group)
            drawn.append(split * rank * (m if sides.left else n))
    return work_of_galore(weights, options) + 4 * max(drawn)


def work_of_muon(weights: Weights, options: Mapping[str, Any]) -> int:
    """Six matrices of the size of the largest: two of a step, and those of the iteration."""
    return 6 * 4 * max((param.numel() for param, group in weights if is_projected(param, group)), default=0)


def work_of_one(weights: Weights, options: Mapping[str, Any]) -> int:
    """Two tensors of the size of the largest weight, for optimizers that process one weight at a time without a fused kernel."""
    return 2 * max((param.numel() for param, _ in weights), default=0) * 4


def work_of_sophia(weights: Weights, options: Mapping[str, Any]) -> int:
    """Gradients of the loss at sampled labels and their squares, in addition to the gradients of the step."""
    return 2 * 4 * sum(param.numel() for param, _ in weights)


def work_of_none(weights: Weights, options: Mapping[str, Any]) -> int:
    """Nothing: fused kernels update in place."""
    return 0
