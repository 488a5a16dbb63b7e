"""Weights of classes in the loss, and what is doubtful about the classes of a run."""

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
    "it must be 'balanced', or a dict with a positive weight for each class that is to have another than 1",
    _fits,
    as_json,
    lambda value: value if isinstance(value, str) else {text_of(name): float(one) for name, one in value.items()},
)


def class_weights(
    asked: str | Mapping[str, float] | None, classes: Sequence[str], counts: NDArray[np.int64] | None
) -> tuple[float, ...] | None:
    """Weight of each class in the loss; ``None`` weighs every cell alike.

    Parameters
    ----------
    asked
        ``"balanced"``, or weights by class; classes that are not named have weight 1.
    classes
        Names of the classes.
    counts
        Training cells of each class, int64 ``(n_classes,)``; ``None`` where they are not known before they are read.

    Returns
    -------
    ``"balanced"`` gives ``n_cells / (n_classes * count)`` over the classes that have training cells, as scikit-learn does.

    Raises
    ------
    OptionError
        If a class that is named does not exist, or the cells of the classes are not known.
    """
    if asked is None:
        return None
    if not isinstance(asked, str):
        of_class = {same_label(name, classes): weight for name, weight in asked.items()}
        if None in of_class:
            unknown = [name for name in asked if same_label(name, classes) is None]
            msg = f"class_weight names {few(unknown)}, and the classes are {few(classes, 10)}."
            raise OptionError(msg)
        return tuple(of_class.get(name, 1.0) for name in classes)
    if counts is None:
        msg = (
            "class_weight='balanced' needs the number of cells of each class, and a loader shows its labels only while it is "
            "read. Pass a dict of weights, or stream the files themselves."
        )
        raise OptionError(msg)
    present = counts > 0
    balanced = np.divide(counts.sum(), present.sum() * counts, out=np.ones(len(counts)), where=present)
    return tuple(balanced.tolist())


def untrained_classes(classes: Sequence[str], counts: NDArray[np.int64], trained: NDArray[np.int64]) -> str | None:
    """Warning of classes without training cells, with what to do; ``None`` if there are none.

    Parameters
    ----------
    classes
        Names of the classes.
    counts, trained
        Cells, and training cells, of each class, int64 ``(n_classes,)``.
    """
    without = np.flatnonzero(trained == 0)
    if not len(without):
        return None
    shown = ", ".join(f"{classes[code]!r} ({counts[code]:,} cells)" for code in without[:5].tolist())
    return (
        f"{len(without):,} of {len(classes):,} classes have no training cell and cannot be learned: {shown}"
        f"{', ...' if len(without) > 5 else ''}. Their cells outside of training count as errors. Put some of them into 'train', "
        "or leave them out."
    )
