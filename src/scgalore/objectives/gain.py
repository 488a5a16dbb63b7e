"""Selection of the epoch for a network that corrects a prior: the gain on validation cells must exceed chance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["CHOICE", "choice_by_gain", "gains"]

CHOICE = "validation_choice"
"""Column of the history for selecting the epoch if there is a prior."""


def gains(of_start: Tensor, of_both: Tensor) -> dict[str, Tensor]:
    """Mean and mean square over the cells of a batch of the decrease of the loss by training.

    Parameters
    ----------
    of_start, of_both
        Loss of each cell before training and now, ``(b,)``.
    """
    gain = (of_start - of_both).detach().double()
    return {"gain": gain.mean(), "gain_square": gain.square().mean()}


def choice_by_gain(parts: Sequence[dict[str, Tensor]], start_score: float) -> dict[str, float]:
    """Score of an epoch: the initial score, minus the mean gain if it exceeds one standard error.

    Parameters
    ----------
    parts
        :func:`gains` of each validation batch, with ``n``, its number of cells.
    start_score
        Score before training.

    Returns
    -------
    ``choice``; ``gain_error``, the standard error of the mean gain over cells; and ``hopeless``, 1 if the loss is
    higher than before training by more than two standard errors; such an epoch counts twice for ``patience``.
    """
    sizes = [float(part["n"]) for part in parts]
    n = sum(sizes)
    mean, square = (
        sum(float(part[name]) * size for part, size in zip(parts, sizes, strict=True)) / n
        for name in ("gain", "gain_square")
    )
    error = math.sqrt(max(square - mean**2, 0) / (n - 1)) if n > 1 else math.inf
    return {
        "choice": start_score - mean if mean > error else start_score,
        "gain_error": error,
        "hopeless": float(mean < -2 * error),
    }
