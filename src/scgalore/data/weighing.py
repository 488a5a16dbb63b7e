"""Probabilities of drawing cells: shares of named sources, and weights of the values of a column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from scgalore._words import few
from scgalore.data.texts import same_label
from scgalore.errors import DataError, OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scgalore.data.collection import Collection

__all__ = ["Weighing"]


@dataclass(frozen=True)
class Weighing:
    """Composition of the draws of an epoch.

    Attributes
    ----------
    shares
        Fraction of each named source; ``None`` for the fraction of its cells.
    key
        Column of ``obs`` whose values have weights; ``None`` for no weights.
    weights
        Weight of each value; 1 for values that are not listed.
    """

    shares: Mapping[str, float] | None = None
    key: str | None = None
    weights: Mapping[Any, float] | None = None

    @classmethod
    def of(cls, collection: Collection, shares: Any, key: str | None, weights: Any) -> Weighing | None:
        """Check the options; ``None`` if none is given.

        Raises
        ------
        OptionError
            If a share or weight is not a number or negative, or a source has no name.
        """
        if weights is not None and key is None:
            msg = "weights= requires a column of obs. Pass it as weights_key=."
            raise OptionError(msg)
        for name, given, least in (("shares", shares, "positive"), ("weights", weights, "0 or more")):
            if given is None:
                continue
            if not isinstance(given, Mapping) or not given:
                msg = f"{name}={given!r}: it must be a mapping of names to numbers."
                raise OptionError(msg)
            wrong = [one for one, value in given.items() if not _is_weight(value, positive=name == "shares")]
            if wrong:
                msg = f"{name} has {given[wrong[0]]!r} for {wrong[0]!r}; it must be a number, {least}."
                raise OptionError(msg)
        if shares is not None:
            if not collection.named:
                msg = 'shares= needs sources with names: {"blood": [...], "pancreas": "folder/"}.'
                raise OptionError(msg)
            collection.check_names("shares", shares)
            lacking = [name for name in collection.names if name not in shares]
            if lacking:
                msg = f"shares has no entry for the source {lacking[0]!r}. Add one, or omit the source."
                raise OptionError(msg)
        return None if shares is None and key is None else cls(shares, key, weights)

    def of_cells(
        self,
        names: Sequence[str],
        groups: Sequence[int],
        sizes: Sequence[int],
        values: Sequence[str],
        codes: Sequence[NDArray[np.integer[Any]]] | None,
    ) -> NDArray[np.float64]:
        """Weight of a cell by group and value, float64 ``(n_groups, n_values)``.

        Parameters
        ----------
        names
            Names of the groups.
        groups
            Group of each source.
        sizes
            Number of cells of each source.
        values
            Names of the values.
        codes
            Codes of the values of each cell of each source; ``None`` without a column.

        Raises
        ------
        DataError
            If a group has no cells.
        OptionError
            If a weight is for a value that no cell has, or no cell has a positive weight.
        """
        counts = np.zeros((len(names), max(len(values), 1)))
        for number, (group, size) in enumerate(zip(groups, sizes, strict=True)):
            counts[group] += [size] if codes is None else np.bincount(codes[number], minlength=len(values))
        wanted = self._wanted(values)
        if self.shares is None:
            counts = np.broadcast_to(counts.sum(axis=0), counts.shape)
        present = np.where(counts > 0, wanted, 0.0)  # (n_groups, n_values)
        totals = present.sum(axis=1, keepdims=True)
        if self.shares is not None:
            for name, total, n in zip(names, totals[:, 0], counts.sum(axis=1), strict=True):
                if total == 0:
                    why = "no cells" if n == 0 else f"only cells of weight 0 (by obs[{self.key!r}])"
                    msg = f"The source {name!r} has a share but {why}. Remove it from the sources."
                    raise DataError(msg)
        elif not totals.any():
            msg = f"weights={dict(self.weights or {})}: no cell has a weight above 0."
            raise OptionError(msg)
        shares = np.array([[1.0 if self.shares is None else self.shares[name]] for name in names])
        return np.divide(
            shares * present / np.maximum(totals, 1e-300), counts, out=np.zeros_like(present), where=counts > 0
        )

    def _wanted(self, values: Sequence[str]) -> NDArray[np.float64]:
        found = dict.fromkeys(values, 1.0)
        for label, weight in (self.weights or {}).items():
            name = same_label(label, values)
            if name is None:
                msg = f"weights has {label!r}, which no cell has in obs[{self.key!r}]; choose from {few(values, 10)}."
                raise OptionError(msg)
            found[name] = float(weight)
        return np.array(list(found.values()) or [1.0])


def _is_weight(value: object, *, positive: bool) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool) or not np.isfinite(float(value)):
        return False
    return float(value) > 0 if positive else float(value) >= 0
