"""Converts labels to strings in a canonical form for comparison.

The same label may be given as ``1``, ``1.0``, ``"1"``, ``np.int64(1)`` or a category: pandas converts integers to
floats if a value is missing, files contain categories of numbers, and users type what they see. Labels are converted
with these functions wherever they are read or compared.
"""

from __future__ import annotations

import math
import re
from numbers import Integral, Real
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["looks_missing", "same_label", "text_of", "texts_of"]

_WHOLE = re.compile(r"([+-]?\d+)(\.0+)?")
_MISSING = frozenset({"", "nan", "na", "n/a", "<na>", "none", "null", "nat"})


def text_of(label: object) -> str | None:
    """Convert a label to a string; ``None`` if it is missing.

    Parameters
    ----------
    label
        String, bytes, number, boolean, or anything else that ``str`` converts. Integers get no decimal point.

    Examples
    --------
    >>> text_of(1.0), text_of(np.int64(1)), text_of("1"), text_of(0.5), text_of(True), text_of(float("nan"))
    ('1', '1', '1', '0.5', 'True', None)
    """
    if isinstance(label, str):
        return str(label)
    if isinstance(label, bytes):
        return label.decode(errors="replace")
    if label is None or label is pd.NA or label is pd.NaT:
        return None
    if isinstance(label, bool | np.bool_):
        return str(bool(label))
    if isinstance(label, Integral):
        return str(int(label))
    if isinstance(label, Real):
        if math.isnan(label):
            return None
        return f"{float(label):.0f}" if float(label).is_integer() else str(label)
    return str(label)


def texts_of(labels: Iterable[object] | pd.Series) -> NDArray[np.object_]:
    """Convert labels to strings, object ``(n_obs,)``; ``None`` for missing labels.

    Parameters
    ----------
    labels
        A column of ``obs``, or any sequence of labels. Decimals of strings such as ``"1.0"`` are removed if the column
        also contains ``"1"``, or contains only integers and missing values, since these were numbers converted to
        strings.
    """
    codes, found = pd.factorize(pd.Series(labels, dtype=getattr(labels, "dtype", object)))
    texts = [text_of(label) for label in found]
    named = {text for text in texts if text is not None and not looks_missing(text)}
    if all(map(_WHOLE.fullmatch, named)):
        texts = [text and _without_decimals(text) for text in texts]
    texts = [whole if text and (whole := _without_decimals(text)) in named else text for text in texts]
    return np.array([*texts, None], dtype=object)[codes]  # the code of missing labels is -1


def same_label(label: object, labels: Iterable[str]) -> str | None:
    """Find a label among the labels of a column, in their spelling; ``None`` if it is not found.

    Parameters
    ----------
    label
        Label passed by the user, such as ``0`` or ``"0.0"``.
    labels
        Labels of a column from :func:`texts_of`, or names of classes.
    """
    text, among = text_of(label), set(labels) - {None}
    if text is None or text in among:
        return text
    found = [one for one in among if _without_decimals(one) == _without_decimals(text)]
    return found[0] if len(found) == 1 else None


def _without_decimals(text: str) -> str:
    match = _WHOLE.fullmatch(text)
    return text if match is None else match[1]


def looks_missing(text: str) -> bool:
    """Whether a label is a common notation for missing values, such as ``"nan"``.

    Parameters
    ----------
    text
        Label.
    """
    return text.strip().lower() in _MISSING
