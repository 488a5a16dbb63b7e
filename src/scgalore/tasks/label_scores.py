"""Accuracy and macro F1 of several methods on the same cells, with standard errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["LabelScores"]

N_SAMPLES = 1000


@dataclass(frozen=True)
class LabelScores:
    """Scores of methods on the same cells and bootstrap samples, so that differences are paired.

    Attributes
    ----------
    samples
        By method, float64 ``(1 + n_samples, 2)``: accuracy and macro F1. The first row is for the original cells, the
        others for bootstrap samples.
    n
        Number of cells.
    """

    samples: dict[str, NDArray[np.float64]] = field(repr=False)
    n: int

    @classmethod
    def of(cls, predicted: Mapping[str, NDArray[np.int64]], truth: NDArray[np.int64], *, seed: int) -> Self:
        """Score methods.

        Parameters
        ----------
        predicted
            Class codes by method, each ``(n,)``.
        truth
            True class codes, ``(n,)``. Macro F1 is the mean over the classes that occur here.
        seed
            Seed for the bootstrap.
        """
        # Cells with the same truth and predictions are drawn together.
        kinds, counts = np.unique(np.stack([truth, *predicted.values()]), axis=1, return_counts=True)
        drawn = np.random.default_rng(seed).multinomial(len(truth), counts / len(truth), size=N_SAMPLES)
        times = np.concatenate([counts[None], drawn]).astype(np.float64)
        pairs = zip(predicted, kinds[1:], strict=True)
        return cls({name: _scores(times, kinds[0], codes) for name, codes in pairs}, len(truth))

    def row(self, method: str) -> dict[str, float]:
        """``accuracy`` and ``macro_f1`` of a method, with standard errors ``accuracy_se`` and ``macro_f1_se``."""
        return _summary(self.samples[method])

    def difference(self, method: str, rival: str) -> dict[str, float]:
        """Scores of a method minus those of another, in the same form."""
        return _summary(self.samples[method] - self.samples[rival])


def _scores(times: NDArray[np.float64], truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> NDArray[np.float64]:
    classes = np.unique(truth)
    is_true, is_named = truth[:, None] == classes, predicted[:, None] == classes
    hits, true, named = times @ (is_true & is_named), times @ is_true, times @ is_named
    f1 = 2 * hits / np.maximum(true + named, 1)
    occurs = true > 0  # a sample may lack a rare class
    macro = np.where(occurs, f1, 0).sum(axis=1) / occurs.sum(axis=1)
    return np.stack([hits.sum(axis=1) / times.sum(axis=1), macro], axis=1)


def _summary(samples: NDArray[np.float64]) -> dict[str, float]:
    (accuracy, f1), (accuracy_se, f1_se) = samples[0], samples[1:].std(axis=0, ddof=1)
    return {
        "accuracy": float(accuracy),
        "accuracy_se": float(accuracy_se),
        "macro_f1": float(f1),
        "macro_f1_se": float(f1_se),
    }
