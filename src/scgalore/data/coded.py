"""A column of labels of many sources as integer codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgalore._words import few
from scgalore.data.labels import class_codes, classes_of, in_order, refuse_measurement
from scgalore.data.texts import same_label, texts_of
from scgalore.errors import DataError, MissingKeyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from scgalore.data.tables import Table

__all__ = ["CodedColumn", "refuse_unknown"]


class CodedColumn:
    """Labels of the selected cells, by source.

    Parameters
    ----------
    key
        Column of ``obs``.
    known
        Names of the labels; ``None`` allows any.
    """

    def __init__(self, key: str, known: Sequence[str] | None = None) -> None:
        self._key, self._known = key, known
        self._found: list[tuple[str, ...]] = []
        self._codes: list[NDArray[np.integer[Any]]] = []
        self._labels: list[pd.Series] = []
        self._lacking: list[Table] = []

    def read(self, obs: Table, rows: NDArray[np.integer[Any]] | None) -> None:
        """Read the labels of one source; a source without the column is recorded for :meth:`require`.

        Parameters
        ----------
        obs
            Table of cells of the source.
        rows
            Selected cells; ``None`` for all.

        Raises
        ------
        DataError
            If a label is missing or unknown.
        """
        if self._key not in obs.columns:
            self._lacking.append(obs)
            return
        labels = obs.column(self._key)
        labels = labels if rows is None else labels.iloc[rows]
        where = f"obs[{self._key!r}] of {obs.of}"
        found = classes_of(labels, where)
        refuse_measurement(labels, where, n_classes=len(found))
        if self._known is not None:
            refuse_unknown(found, self._known, obs.of)
        codes, once = pd.factorize(labels)
        self._found.append(found)
        self._codes.append(codes.astype(np.min_scalar_type(-len(once) - 1)))
        self._labels.append(pd.Series(once))

    def require(self) -> None:
        """Raise an error if sources do not have the column.

        Raises
        ------
        MissingKeyError
            If there are such sources; the message has their number and the first ones.
        """
        if not self._lacking:
            return
        first, n = self._lacking[0], len(self._lacking) + len(self._found)
        msg = (
            f"obs has no column {self._key!r} in {len(self._lacking)} of {n} sources: {few(one.of for one in self._lacking)}. That of {first.of} "
            f"has {list(first.columns)}. Omit these sources, or pass a column that all have."
        )
        raise MissingKeyError(msg)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all labels: in the order of the sources if these agree, otherwise sorted, numbers numerically."""
        if self._known is not None:
            return tuple(self._known)
        # A label may be text in one source and a number in another.
        agreed = len(set(self._found)) == 1
        return self._found[0] if agreed else in_order(texts_of([name for names in self._found for name in names]))

    def codes(self) -> list[NDArray[np.integer[Any]]]:
        """Codes of the labels of each source, in the smallest integer type."""
        names = self.names
        small = np.min_scalar_type(-len(names) - 1)
        pairs = zip(self._codes, self._labels, strict=True)
        return [class_codes(labels, names).astype(small)[codes] for codes, labels in pairs]


def refuse_unknown(found: Iterable[str], known: Sequence[str], name: str) -> None:
    """Raise :class:`~scgalore.errors.DataError` if a source has labels that are not among the classes."""
    unknown = sorted(label for label in set(found) if same_label(label, known) is None)
    if unknown:
        msg = f"{name} has the labels {unknown[:5]}, which are not among the {len(known)} classes: {list(known)[:10]}."
        raise DataError(msg)
