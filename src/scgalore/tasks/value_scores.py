"""R2, Spearman correlation and mean absolute error of several methods on the same cells, with standard errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["METRICS", "ValueScores", "score_values"]

METRICS = ("r2", "spearman", "mae")
N_SAMPLES = 500


@dataclass(frozen=True)
class ValueScores:
    """Scores of methods on the same cells and bootstrap samples, so that differences are paired.

    Attributes
    ----------
    samples
        By method, float64 ``(1 + n_samples, 3)``: R2, Spearman correlation, mean absolute error. The first row is for
        the original cells, the others for bootstrap samples.
    n
        Number of cells.
    """

    samples: dict[str, NDArray[np.float64]] = field(repr=False)
    n: int

    @classmethod
    def of(cls, predicted: Mapping[str, NDArray[np.floating]], truth: NDArray[np.floating], *, seed: int) -> Self:
        """Score methods.

        Parameters
        ----------
        predicted
            Predicted values by method, each ``(n,)``.
        truth
            True values, ``(n,)``.
        seed
            Seed for the bootstrap.
        """
        n = len(truth)
        drawn = np.random.default_rng(seed).integers(n, size=(N_SAMPLES, n))
        rows = [np.arange(n), *drawn]
        scores = {
            name: np.array([list(score_values(values[row], truth[row]).values()) for row in rows])
            for name, values in predicted.items()
        }
        return cls(scores, n)

    def row(self, method: str) -> dict[str, float]:
        """Scores of a method, and their standard errors with ``_se`` appended to the name."""
        return _summary(self.samples[method])

    def difference(self, method: str, rival: str) -> dict[str, float]:
        """Scores of a method minus those of another, in the same form."""
        return _summary(self.samples[method] - self.samples[rival])


def score_values(predicted: NDArray[np.floating], truth: NDArray[np.floating]) -> dict[str, float]:
    """Coefficient of determination ``r2``, rank correlation ``spearman`` and mean absolute error ``mae``.

    The first two are NaN if the true values are constant, the second also if the predictions are.

    Parameters
    ----------
    predicted, truth
        Values, shape ``(n,)``.
    """
    from scipy.stats import rankdata

    predicted, truth = np.asarray(predicted, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    spread = np.square(truth - truth.mean()).sum()
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (predicted, truth)]
    length = np.prod([np.linalg.norm(rank) for rank in ranks])
    return {
        "r2": float(1 - np.square(predicted - truth).sum() / spread) if spread > 0 else np.nan,
        "spearman": float(ranks[0] @ ranks[1] / length) if length > 0 else np.nan,
        "mae": float(np.abs(predicted - truth).mean()),
    }


def _summary(samples: NDArray[np.float64]) -> dict[str, float]:
    errors = samples[1:].std(axis=0, ddof=1)  # NaN if a score is undefined
    numbers = dict(zip(METRICS, samples[0].tolist(), strict=True))
    return numbers | {f"{name}_se": float(error) for name, error in zip(METRICS, errors, strict=True)}
