"""Which cells get no label: those whose label is too uncertain, and those that are unlike all training cells."""

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
"""Share of the training cells' counts in genes that were measured, below which novelty is not judged."""


@dataclass(frozen=True)
class UnknownRule:
    """When a cell is called unknown.

    Attributes
    ----------
    error_rate
        Share of wrong labels that was asked for.
    threshold
        Least calibrated probability of a label.
    promise
        What the threshold does on the validation cells: ``n``, ``labelled``, ``wrong``, and ``error_bound``, the upper bound on
        the share of wrong labels; ``promised`` is whether that is at most ``error_rate``.
    novelty
        Compares cells with those of training; ``None`` where the model does not know them.
    novelty_threshold
        Most novelty of a cell with a label.
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
            Wanted share of wrong labels among the cells that get one.
        classes, calibration, novelty
            Of the model.

        Raises
        ------
        OptionError
            If the rate is not between 0 and 1, or the model keeps nothing of validation cells.
        """
        if not (is_number(unknown) and 0 < unknown < 1):
            msg = (
                f"unknown={unknown!r}: it must be a number between 0 and 1, the share of wrong labels to accept among the "
                "labelled cells, such as 0.05."
            )
            raise OptionError(msg)
        if UNKNOWN in classes:
            msg = (
                f"unknown={unknown}: the model has a class of the name {UNKNOWN!r}, which cells without a label could not be "
                "told from. Leave unknown out, and read the probabilities, or train with another name for the class."
            )
            raise OptionError(msg)
        if calibration is None:
            msg = (
                f"unknown={unknown}: the model keeps no scores of validation cells, so there is no threshold for an error rate. "
                "It was trained without validation cells or on a stream without an AnnData to validate on, was trained further "
                "for something else, or was saved by a version of scgalore that did not keep them. Fine-tune again with "
                "validation_size=0.1 or more, or leave unknown out and apply a threshold of your own to the probabilities in "
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
        # Where even the least certain validation cells may keep their labels, no probability is too low.
        threshold = 0.0 if at == len(curve.thresholds) - 1 else curve.thresholds[at]
        return cls(rate, threshold, promise, novelty, calibration.novelty_threshold)

    def apply(self, results: Results, cells: TokenCells, keys: CellKeys) -> dict[str, Any]:
        """Take the label from cells that are unknown.

        Parameters
        ----------
        results
            With labels and their probabilities; changed in place.
        cells
            The cells.
        keys
            Names of the slots.

        Returns
        -------
        What was done, for ``uns``.
        """
        labels, what = results.obs[keys.label]
        uncertain = np.asarray(results.obs[keys.score][0]) < self.threshold
        novel, values = np.zeros(len(labels), dtype=bool), self._novelties(cells)
        if values is not None and self.novelty_threshold is not None:
            novel = values > self.novelty_threshold
            results.obs[keys.novelty] = (values, "how unlike the training cells they are")
        unknown = uncertain | novel
        codes = np.where(unknown, len(labels.categories), labels.codes)
        categories = labels.categories.append(pd.Index([UNKNOWN]))
        results.obs[keys.label] = (pd.Categorical.from_codes(codes, categories=categories), what)
        n = len(labels)
        logg.info(
            f"    {unknown.sum():,} of {n:,} cells are unknown: {uncertain.sum():,} with an uncertain label, {novel.sum():,} "
            "unlike the training cells"
        )
        if 2 * novel.sum() > n:
            logg.warning(
                f"{novel.sum():,} of {n:,} cells are unlike the training cells. Where that is not a new type, it is a difference "
                "in how the cells were measured or normalised; fine-tune with some cells of this data set in that case."
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
        """Novelty of each cell; ``None``, with a warning, where it cannot be judged."""
        if self.novelty is None or self.novelty_threshold is None:
            logg.info(
                "    the model cannot tell cells that are unlike its training cells: only uncertain labels become 'unknown'"
            )
            return None
        present = self.novelty.present(cells)
        reason = f"the genes of these cells hold {100 * present:.0f} % of the counts of the training cells"
        if present >= LEAST_PRESENT:
            try:
                return self.novelty.of(cells)
            except DataError as error:
                reason = str(error)
        logg.warning(
            f"It cannot be said which cells are unlike the training cells, and only uncertain labels become 'unknown': {reason}"
        )
        return None


def _warn(rate: float, curve: ErrorCurve, at: int) -> None:
    """Say why the rate is not kept, and what is done instead."""
    needed, n = int(np.ceil(np.log(1 - CONFIDENCE) / np.log1p(-rate))), curve.labelled[-1]
    reason = (
        f"{n:,} validation cells are too few, at least {needed:,} are needed"
        if n < needed
        else f"too many of the {n:,} validation cells have a wrong label with a high probability"
    )
    logg.warning(
        f"unknown={rate:g} cannot be promised with a confidence of {100 * CONFIDENCE:.0f} %: {reason}. The threshold is the one with "
        f"the lowest bound instead, {curve.bounds()[at]:.3g}, at which {curve.wrong[at]:,} of {curve.labelled[at]:,} labelled "
        "validation cells have a wrong label. Fine-tune with more validation cells (validation_size=), or ask for a higher rate."
    )
