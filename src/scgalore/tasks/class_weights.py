"""Class weights in the loss, and warnings about the classes of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scgalore._options import Kind, as_json, is_number
from scgalore._words import few
from scgalore.data.texts import same_label, text_of
from scgalore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["CLASS_WEIGHT", "class_weights", "untrained_classes"]


def _fits(value: Any) -> bool:
    if isinstance(value, str):
        return value == "balanced"
    if not isinstance(value, Mapping) or None in (names := [text_of(name) for name in value]):
        return False
    return 0 < len(names) == len(set(names)) and all(is_number(one) and 0 < one < math.inf for one in value.values())


CLASS_WEIGHT = Kind(
    "it must be 'balanced', or a dict with positive weights of classes (default 1)",
    _fits,
    as_json,
    lambda value: value if isinstance(value, str) else {text_of(name): float(one) for name, one in value.items()},
)


def class_weights(
    asked: str | Mapping[str, float] | None, classes: Sequence[str], counts: NDArray[np.int64] | None
) -> tuple[float, ...] | None:
    """Weight of each class in the loss; ``None`` for equal weights of cells.

    Parameters
    ----------
    asked
        ``"balanced"``, or weights by class; classes that are not listed have weight 1.
    classes
        Names of the classes.
    counts
        Number of training cells of each class, int64 ``(n_classes,)``; ``None`` if unknown before reading.

    Returns
    -------
    ``"balanced"`` is ``n_cells / (n_classes * count)`` over the classes with training cells, as in scikit-learn.

    Raises
    ------
    OptionError
        If a listed class does not exist, or the numbers of cells are unknown.
    """
    if asked is None:
        return None
    if not isinstance(asked, str):
        of_class = {same_label(name, classes): weight for name, weight in asked.items()}
        if None in of_class:
            unknown = [name for name in asked if same_label(name, classes) is None]
            msg = f"class_weight contains {few(unknown)}, but the classes are {few(classes, 10)}."
            raise OptionError(msg)
        return tuple(of_class.get(name, 1.0) for name in classes)
    if counts is None:
        msg = (
            "class_weight='balanced' needs the number of cells of each class, which is unknown before a loader is "
            "read. Pass a dict of weights, or stream the files themselves."
        )
        raise OptionError(msg)
    present = counts > 0
    balanced = np.divide(counts.sum(), present.sum() * counts, out=np.ones(len(counts)), where=present)
    return tuple(balanced.tolist())


def untrained_classes(classes: Sequence[str], counts: NDArray[np.int64], trained: NDArray[np.int64]) -> str | None:
    """Warning about classes without training cells, with advice; ``None`` if there are none.

    Parameters
    ----------
    classes
        Names of the classes.
    counts, trained
        Number of cells, and of training cells, of each class, int64 ``(n_classes,)``.
    """
    without = np.flatnonzero(trained == 0)
    if not len(without):
        return None
    shown = ", ".join(f"{classes[code]!r} ({counts[code]:,} cells)" for code in without[:5].tolist())
    return (
        f"{len(without):,} of {len(classes):,} classes have no training cells and cannot be learned: {shown}"
        f"{', ...' if len(without) > 5 else ''}. Their other cells count as errors. Assign some of them to 'train', "
        "or exclude them."
    )
