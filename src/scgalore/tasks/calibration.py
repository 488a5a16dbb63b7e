"""Calibrate the probabilities of classes on validation cells, and choose the threshold below which no label is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["Calibration", "ErrorCurve", "calibration_error", "error_bound", "softmax"]

MIN_CELLS = 50
"""Validation cells below which the temperature stays 1: fewer say too little about it."""
CONFIDENCE = 0.95
"""Of the upper bound on the share of wrong labels."""
N_BINS = 15
"""Bins of the expected calibration error, as in Guo et al. 2017."""
MOST_POINTS = 256
"""Thresholds that a model keeps; with more validation cells, evenly spaced ones of their ranks."""
NOVEL_SHARE = 0.05
"""Share of the cells of known classes that count as too unlike the training cells."""
LOG_TEMPERATURES = (-3.0, 3.0)


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """Probability of each class, float32 ``(n_obs, n_classes)``.

    Parameters
    ----------
    logits
        Outputs of the head, float32 ``(n_obs, n_classes)``.
    temperature
        They are divided by it; the order of the classes of a cell does not change.
    """
    import torch

    scaled = torch.from_numpy(logits)
    return (scaled if temperature == 1 else scaled / temperature).softmax(dim=1).numpy()


def fit_temperature(logits: NDArray[np.float32], codes: NDArray[np.int64]) -> float:
    """Temperature with the lowest negative log-likelihood :cite:p:`Guo2017`; 1 for fewer than ``MIN_CELLS`` cells.

    The targets are smoothed as for Platt scaling, by one wrong cell in ``n + 2``. Without it, cells that are all labelled correctly
    would ask for probabilities of 1.

    Parameters
    ----------
    logits
        Of the validation cells, ``(n_obs, n_classes)``.
    codes
        Their classes, ``(n_obs,)``.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    n, n_classes = logits.shape
    if n < MIN_CELLS:
        return 1.0
    targets = np.full((n, n_classes), 1.0 / (n + 2) / max(n_classes - 1, 1))
    targets[np.arange(n), codes] = (n + 1.0) / (n + 2)

    def loss(log_temperature: float) -> float:
        return -float((targets * log_softmax(logits / np.exp(log_temperature), axis=1)).sum() / n)

    found = minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def calibration_error(confidence: NDArray[np.floating], correct: NDArray[np.bool_]) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over bins of equal width, weighted by cells.

    Parameters
    ----------
    confidence
        Probability of the predicted class, ``(n,)``.
    correct
        Whether it is the true one, ``(n,)``.
    """
    bins = np.minimum((np.asarray(confidence, np.float64) * N_BINS).astype(np.int64), N_BINS - 1)
    gap = np.bincount(bins, weights=np.asarray(confidence, np.float64) - correct, minlength=N_BINS)
    return float(np.abs(gap).sum() / len(correct))


def error_bound(n_wrong: NDArray[np.int64], n_labelled: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of wrong labels that is exceeded with a probability of 5 % at most (Clopper and Pearson).

    Parameters
    ----------
    n_wrong, n_labelled
        Cells with a wrong label among those with a label.
    """
    from scipy.stats import beta

    bound = beta.ppf(CONFIDENCE, np.asarray(n_wrong) + 1, np.maximum(np.asarray(n_labelled) - n_wrong, 1e-12))
    return np.where(np.asarray(n_wrong) >= n_labelled, 1.0, bound)


@dataclass(frozen=True)
class ErrorCurve:
    """How many validation cells have a label, and a wrong one, at each threshold of the probability.

    Attributes
    ----------
    thresholds
        In descending order; a cell has a label if its probability is at least the threshold.
    labelled, wrong
        Validation cells with a label, and with a wrong one.
    """

    thresholds: tuple[float, ...]
    labelled: tuple[int, ...]
    wrong: tuple[int, ...]

    @classmethod
    def of(cls, confidence: NDArray[np.floating], correct: NDArray[np.bool_]) -> Self:
        """Count cells at the probabilities that occur, or at ``MOST_POINTS`` of them.

        Parameters
        ----------
        confidence, correct
            As for :func:`calibration_error`.
        """
        order = np.argsort(-np.asarray(confidence, np.float64), kind="stable")
        scores, wrong = np.asarray(confidence, np.float64)[order], np.cumsum(~correct[order])
        ends = np.flatnonzero(np.append(np.diff(scores) != 0, True))  # the last cell of each probability
        if len(ends) > MOST_POINTS:
            ends = ends[np.unique(np.linspace(0, len(ends) - 1, MOST_POINTS).round().astype(np.int64))]
        return cls(tuple(scores[ends].tolist()), tuple((ends + 1).tolist()), tuple(wrong[ends].tolist()))

    def bounds(self) -> NDArray[np.float64]:
        """Upper bound on the share of wrong labels at each threshold."""
        return error_bound(np.array(self.wrong), np.array(self.labelled))

    def at(self, error_rate: float) -> tuple[int, bool]:
        """Position of the lowest threshold whose bound is at most ``error_rate``, and ``True``.

        If there is none, the position of the lowest bound, and ``False``.
        """
        bounds = self.bounds()
        fits = np.flatnonzero(bounds <= error_rate)
        if len(fits):
            return int(fits[-1]), True
        return int(np.flatnonzero(bounds == bounds.min())[-1]), False


@dataclass(frozen=True)
class Calibration:
    """What the validation cells of training say about the probabilities of a model.

    Attributes
    ----------
    temperature
        Logits are divided by it; 1 with fewer than 50 validation cells.
    n
        Validation cells.
    error_before, error_after
        Their expected calibration error without and with the temperature.
    curve
        Their labels at each threshold of the calibrated probability, of those whose novelty is not above the threshold.
    novelty_threshold
        Novelty that 5 % of cells of the training data exceed; ``None`` where novelty is not known, or of fewer than 19 cells.
    """

    temperature: float
    n: int
    error_before: float
    error_after: float
    curve: ErrorCurve
    novelty_threshold: float | None = None

    @classmethod
    def fit(
        cls, logits: NDArray[np.float32], codes: NDArray[np.int64], novelty: NDArray[np.floating] | None = None
    ) -> Self:
        """Choose the temperature, and measure what it changes.

        Parameters
        ----------
        logits
            Of the validation cells, float32 ``(n, n_classes)``.
        codes
            Their classes, ``(n,)``.
        novelty
            How unlike the training cells each is, ``(n,)``.
        """
        temperature = fit_temperature(logits, codes)
        correct = logits.argmax(axis=1) == codes
        before, after = (softmax(logits, t).max(axis=1) for t in (1.0, temperature))
        errors = tuple(calibration_error(confidence, correct) for confidence in (before, after))
        threshold = None if novelty is None else _exceeded_by(np.asarray(novelty, np.float64), NOVEL_SHARE)
        kept = np.ones(len(codes), dtype=bool) if threshold is None or novelty is None else novelty <= threshold
        curve = ErrorCurve.of(after[kept], correct[kept])
        return cls(temperature, len(codes), errors[0], errors[1], curve, threshold)

    def table(self, logits: NDArray[np.float32], codes: NDArray[np.int64], parts: Mapping[str, Any]) -> pd.DataFrame:
        """Expected calibration error of each part of a split.

        Parameters
        ----------
        logits, codes
            Of all cells.
        parts
            Row numbers of each part.

        Returns
        -------
        One row per part with cells: ``n``, ``accuracy``, ``confidence`` (mean probability of the label), and the expected
        calibration error ``ece`` and, without the temperature, ``ece_uncalibrated``.
        """
        rows = {}
        correct = logits.argmax(axis=1) == codes
        before, after = (softmax(logits, t).max(axis=1) for t in (1.0, self.temperature))
        for part, cells in parts.items():
            if len(cells):
                rows[part] = {
                    "n": len(cells),
                    "accuracy": float(correct[cells].mean()),
                    "confidence": float(after[cells].mean()),
                    "ece_uncalibrated": calibration_error(before[cells], correct[cells]),
                    "ece": calibration_error(after[cells], correct[cells]),
                }
        return pd.DataFrame.from_dict(rows, orient="index")

    def summary(self) -> dict[str, Any]:
        """Temperature, number of validation cells, and their expected calibration error without and with it."""
        return {
            "temperature": self.temperature,
            "n_validation": self.n,
            "ece_uncalibrated": self.error_before,
            "ece": self.error_after,
        }

    def to_config(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        curve = {name: list(getattr(self.curve, name)) for name in ("thresholds", "labelled", "wrong")}
        return {**self.summary(), "novelty_threshold": self.novelty_threshold, "curve": curve}

    @classmethod
    def from_config(cls, content: Mapping[str, Any]) -> Self:
        """Rebuild from :meth:`to_config`."""
        curve = ErrorCurve(*(tuple(content["curve"][name]) for name in ("thresholds", "labelled", "wrong")))
        n, before, after = (content[name] for name in ("n_validation", "ece_uncalibrated", "ece"))
        temperature, novelty = float(content["temperature"]), content["novelty_threshold"]
        if not (np.isfinite(temperature) and temperature > 0):
            msg = f"temperature={temperature}: it must be a positive number"
            raise ValueError(msg)
        if len({len(curve.thresholds), len(curve.labelled), len(curve.wrong)}) > 1:
            msg = "the lists of the curve have different lengths"
            raise ValueError(msg)
        return cls(temperature, n, before, after, curve, None if novelty is None else float(novelty))


def _exceeded_by(values: NDArray[np.float64], share: float) -> float | None:
    """Value that another cell exceeds with a probability of ``share`` at most; ``None`` for too few values."""
    k = int(share * (len(values) + 1))
    return None if k == 0 else float(np.sort(values)[-k])
