"""Unknown cells: those with a too uncertain label, and those dissimilar to all training cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from scgalore import _logging as logg
from scgalore._keys import UNKNOWN
from scgalore._options import is_number
from scgalore.errors import DataError, OptionError
from scgalore.tasks.calibration import CONFIDENCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scgalore._keys import CellKeys
    from scgalore.data.cells import TokenCells
    from scgalore.data.results import Results
    from scgalore.tasks.calibration import Calibration, ErrorCurve
    from scgalore.tasks.novelty import Novelty

__all__ = ["UnknownRule"]

LEAST_PRESENT = 0.5
"""Minimum fraction of the training cells' counts in measured genes for computing novelty."""


@dataclass(frozen=True)
class UnknownRule:
    """Thresholds for unknown cells.

    Attributes
    ----------
    error_rate
        Accepted fraction of wrong labels.
    threshold
        Minimum calibrated probability of a label.
    promise
        Numbers on the validation cells: ``n``, ``labelled``, ``wrong``, and ``error_bound``, the upper bound on
        the fraction of wrong labels; ``promised`` is whether this bound is at most ``error_rate``.
    novelty
        Statistics of training cells; ``None`` if the model has none.
    novelty_threshold
        Maximum novelty of a cell with a label.
    """

    error_rate: float
    threshold: float
    promise: dict[str, Any]
    novelty: Novelty | None = field(repr=False)
    novelty_threshold: float | None

    @classmethod
    def of(
        cls, unknown: float, classes: Sequence[str], calibration: Calibration | None, novelty: Novelty | None
    ) -> Self:
        """Choose the thresholds for an error rate.

        Parameters
        ----------
        unknown
            Accepted fraction of wrong labels among the labelled cells.
        classes, calibration, novelty
            Classes, calibration and statistics of the model.

        Raises
        ------
        OptionError
            If the rate is not between 0 and 1, or the model has no calibration.
        """
        if not (is_number(unknown) and 0 < unknown < 1):
            msg = (
                f"unknown={unknown!r}: it must be a number between 0 and 1, the accepted fraction of wrong labels among the "
                "labelled cells, such as 0.05."
            )
            raise OptionError(msg)
        if UNKNOWN in classes:
            msg = (
                f"unknown={unknown}: the model has a class named {UNKNOWN!r}, which would be ambiguous. "
                "Omit unknown= and use the probabilities, or rename the class and train again."
            )
            raise OptionError(msg)
        if calibration is None:
            msg = (
                f"unknown={unknown}: the model has no calibration on validation cells. "
                "It was trained without validation cells or on a stream without a validation AnnData, was trained "
                "for another task afterwards, or was saved by an older version. Fine-tune again with "
                "validation_size=0.1 or more, or omit unknown= and apply your own threshold to the probabilities in "
                "adata.obs['scgpt_label_score']."
            )
            raise OptionError(msg)
        curve, rate = calibration.curve, float(unknown)
        at, promised = curve.at(rate)
        if not promised:
            _warn(rate, curve, at)
        promise = {
            "n": calibration.n,
            "labelled": curve.labelled[at],
            "wrong": curve.wrong[at],
            "error_bound": float(curve.bounds()[at]),
            "promised": promised,
        }
        # If even the least certain validation cells may keep their labels, no threshold is needed.
        threshold = 0.0 if at == len(curve.thresholds) - 1 else curve.thresholds[at]
        return cls(rate, threshold, promise, novelty, calibration.novelty_threshold)

    def apply(self, results: Results, cells: TokenCells, keys: CellKeys) -> dict[str, Any]:
        """Set the label of unknown cells.

        Parameters
        ----------
        results
            Results with labels and probabilities; modified in place.
        cells
            The cells.
        keys
            Names of the slots.

        Returns
        -------
        Record for ``uns``.
        """
        labels, what = results.obs[keys.label]
        uncertain = np.asarray(results.obs[keys.score][0]) < self.threshold
        novel, values = np.zeros(len(labels), dtype=bool), self._novelties(cells)
        if values is not None and self.novelty_threshold is not None:
            novel = values > self.novelty_threshold
            results.obs[keys.novelty] = (values, "dissimilarity to the training cells")
        unknown = uncertain | novel
        codes = np.where(unknown, len(labels.categories), labels.codes)
        categories = labels.categories.append(pd.Index([UNKNOWN]))
        results.obs[keys.label] = (pd.Categorical.from_codes(codes, categories=categories), what)
        n = len(labels)
        logg.info(
            f"    {unknown.sum():,} of {n:,} cells are unknown: {uncertain.sum():,} with an uncertain label, {novel.sum():,} "
            "dissimilar to the training cells"
        )
        if 2 * novel.sum() > n:
            logg.warning(
                f"{novel.sum():,} of {n:,} cells are dissimilar to the training cells: new cell types, or a technical difference "
                "in measurement or normalisation. For the latter, fine-tune with some cells of this data set."
            )
        return {
            "error_rate": self.error_rate,
            "threshold": self.threshold,
            "novelty_threshold": None if values is None else self.novelty_threshold,
            "n_unknown": int(unknown.sum()),
            "n_uncertain": int(uncertain.sum()),
            "n_novel": int(novel.sum()),
            "validation": self.promise,
        }

    def _novelties(self, cells: TokenCells) -> NDArray[np.float32] | None:
        """Novelty of each cell; ``None``, with a warning, if it cannot be computed."""
        if self.novelty is None or self.novelty_threshold is None:
            logg.info("    the model has no statistics of its training cells: only uncertain labels become 'unknown'")
            return None
        present = self.novelty.present(cells)
        reason = f"their genes have only {100 * present:.0f} % of the counts of the training cells"
        if present >= LEAST_PRESENT:
            try:
                return self.novelty.of(cells)
            except DataError as error:
                reason = str(error)
        logg.warning(
            f"Cells dissimilar to the training cells cannot be detected, and only uncertain labels become 'unknown': {reason}"
        )
        return None


def _warn(rate: float, curve: ErrorCurve, at: int) -> None:
    """Warn that the error rate cannot be guaranteed, with the reason and the threshold used."""
    needed, n = int(np.ceil(np.log(1 - CONFIDENCE) / np.log1p(-rate))), curve.labelled[-1]
    reason = (
        f"{n:,} validation cells are too few, at least {needed:,} are needed"
        if n < needed
        else f"too many of the {n:,} validation cells have a wrong label with a high probability"
    )
    logg.warning(
        f"unknown={rate:g} cannot be guaranteed with a confidence of {100 * CONFIDENCE:.0f} %: {reason}. The threshold with "
        f"the lowest bound, {curve.bounds()[at]:.3g}, is used instead: {curve.wrong[at]:,} of {curve.labelled[at]:,} labelled "
        "validation cells have a wrong label. Fine-tune with more validation cells (validation_size=), or accept a higher rate."
    )
