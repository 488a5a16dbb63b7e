"""Calibrate class probabilities on validation cells, and choose the threshold for unknown cells."""

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
"""Minimum number of validation cells for fitting a temperature; with fewer it is 1."""
CONFIDENCE = 0.95
"""Confidence of the upper bound on the fraction of wrong labels."""
N_BINS = 15
"""Number of bins for the expected calibration error, as in Guo et al. 2017."""
MOST_POINTS = 256
"""Maximum number of stored thresholds; with more validation cells, evenly spaced ranks are used."""
NOVEL_SHARE = 0.05
"""Fraction of cells of known classes that are considered too dissimilar to the training cells."""
LOG_TEMPERATURES = (-3.0, 3.0)


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """Probability of each class, float32 ``(n_obs, n_classes)``.

    Parameters
    ----------
    logits
        Outputs of the head, float32 ``(n_obs, n_classes)``.
    temperature
        Divisor of the logits; it does not change the order of the classes.
    """
    import torch

    scaled = torch.from_numpy(logits)
    return (scaled if temperature == 1 else scaled / temperature).softmax(dim=1).numpy()


def fit_temperature(logits: NDArray[np.float32], codes: NDArray[np.int64]) -> float:
    """Temperature with the lowest negative log-likelihood :cite:p:`Guo2017`; 1 for fewer than ``MIN_CELLS`` cells.

    Targets are smoothed as in Platt scaling, by one wrong cell in ``n + 2``. Otherwise, probabilities would become 1 if
    all cells are labelled correctly.

    Parameters
    ----------
    logits
        Logits of the validation cells, ``(n_obs, n_classes)``.
    codes
        Classes of these cells, ``(n_obs,)``.
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
        Whether this class is correct, ``(n,)``.
    """
    bins = np.minimum((np.asarray(confidence, np.float64) * N_BINS).astype(np.int64), N_BINS - 1)
    gap = np.bincount(bins, weights=np.asarray(confidence, np.float64) - correct, minlength=N_BINS)
    return float(np.abs(gap).sum() / len(correct))


def error_bound(n_wrong: NDArray[np.int64], n_labelled: NDArray[np.int64]) -> NDArray[np.float64]:
    """Upper 95 % confidence bound on the fraction of wrong labels (Clopper and Pearson).

    Parameters
    ----------
    n_wrong, n_labelled
        Number of wrong labels, and number of labels.
    """
    from scipy.stats import beta

    bound = beta.ppf(CONFIDENCE, np.asarray(n_wrong) + 1, np.maximum(np.asarray(n_labelled) - n_wrong, 1e-12))
    return np.where(np.asarray(n_wrong) >= n_labelled, 1.0, bound)


@dataclass(frozen=True)
class ErrorCurve:
    """Numbers of labelled and wrongly labelled validation cells at each probability threshold.

    Attributes
    ----------
    thresholds
        Thresholds in descending order; a cell is labelled if its probability is at least the threshold.
    labelled, wrong
        Number of validation cells with a label, and with a wrong label.
    """

    thresholds: tuple[float, ...]
    labelled: tuple[int, ...]
    wrong: tuple[int, ...]

    @classmethod
    def of(cls, confidence: NDArray[np.floating], correct: NDArray[np.bool_]) -> Self:
        """Count cells at all occurring probabilities, or at ``MOST_POINTS`` of them.

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
        """Upper bound on the fraction of wrong labels at each threshold."""
        return error_bound(np.array(self.wrong), np.array(self.labelled))

    def at(self, error_rate: float) -> tuple[int, bool]:
        """Position of the lowest threshold whose bound is at most ``error_rate``, and ``True``.

        If there is none, position of the lowest bound and ``False``.
        """
        bounds = self.bounds()
        fits = np.flatnonzero(bounds <= error_rate)
        if len(fits):
            return int(fits[-1]), True
        return int(np.flatnonzero(bounds == bounds.min())[-1]), False


@dataclass(frozen=True)
class Calibration:
    """Calibration of a model's probabilities on the validation cells of training.

    Attributes
    ----------
    temperature
        Divisor of the logits; 1 with fewer than 50 validation cells.
    n
        Number of validation cells.
    error_before, error_after
        Their expected calibration error without and with the temperature.
    curve
        Numbers of labels at each threshold of the calibrated probability, over cells whose novelty is not above its
        threshold.
    novelty_threshold
        Novelty that 5 % of cells of the training data exceed; ``None`` if novelty is not available, or with fewer than
        19 cells.
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
        """Fit the temperature and measure its effect.

        Parameters
        ----------
        logits
            Logits of the validation cells, float32 ``(n, n_classes)``.
        codes
            Classes of these cells, ``(n,)``.
        novelty
            Dissimilarity of each cell to the training cells, ``(n,)``.
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
        """Expected calibration error of each split.

        Parameters
        ----------
        logits, codes
            Logits and classes of all cells.
        parts
            Row numbers of each split.

        Returns
        -------
        One row per split with cells: ``n``, ``accuracy``, ``confidence`` (mean probability of the label), and the
        expected calibration error ``ece`` and, without the temperature, ``ece_uncalibrated``.
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
        """Content in JSON types."""
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
    """Value that a new cell exceeds with a probability of at most ``share``; ``None`` for too few values."""
    k = int(share * (len(values) + 1))
    return None if k == 0 else float(np.sort(values)[-k])
