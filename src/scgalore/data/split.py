"""Split of cells into training, validation and test cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scgalore.data.texts import texts_of
from scgalore.errors import DataError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["PARTS", "Split", "random_split", "split_from_labels"]

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Row numbers of the three parts, int64 and sorted; each cell is in exactly one part."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]

    @property
    def known(self) -> NDArray[np.int64]:
        """Training and validation cells, whose targets can be used."""
        return np.sort(np.concatenate([self.train, self.validation]))

    def labels(self) -> NDArray[np.str_]:
        """Part of each cell, shape ``(n_obs,)``."""
        names = np.empty(len(self.train) + len(self.validation) + len(self.test), dtype="U10")
        for part in PARTS:
            names[getattr(self, part)] = part
        return names

    def check(self, n_obs: int) -> None:
        """Raise :class:`~scgalore.errors.DataError` unless each cell of the data is in exactly one part."""
        rows = np.sort(np.concatenate([self.train, self.validation, self.test]))
        if not np.array_equal(rows, np.arange(n_obs)):
            msg = (
                f"The split has {len(rows):,} rows and the data {n_obs:,} cells; each cell must be in exactly one "
                "part. Create the split for these cells: random_split(adata.n_obs) or split_from_labels(...)."
            )
            raise DataError(msg)

    def sizes(self) -> dict[str, int]:
        """Number of cells in each part."""
        return {part: len(getattr(self, part)) for part in PARTS}


def random_split(
    n_obs: int,
    *,
    validation_size: float = 0.1,
    test_size: float = 0.1,
    strata: NDArray[np.integer] | None = None,
    seed: int = 0,
) -> Split:
    """Split cells at random, within each stratum.

    Parameters
    ----------
    n_obs
        Number of cells.
    validation_size, test_size
        Fractions of the cells, each in [0, 1), with a sum below 1.
    strata
        Class codes, shape ``(n_obs,)``; each part then contains the same fraction of every class, up to rounding, and
        each class keeps at least one training cell.
    seed
        Seed of the split.

    Raises
    ------
    OptionError
        If the fractions are out of range.
    DataError
        If no training cell is left.
    """
    if not (validation_size >= 0 and test_size >= 0 and validation_size + test_size < 1):
        msg = (
            f"validation_size={validation_size} and test_size={test_size}: both must be at least 0 and their sum below "
            "1, so that training cells are left."
        )
        raise OptionError(msg)
    generator = np.random.default_rng(seed)
    order = generator.permutation(n_obs)
    if strata is not None:
        # Cells are ordered by class, so evenly spaced cells contain the same fraction of each class.
        order = order[np.argsort(np.asarray(strata)[order], kind="stable")]
    part = np.zeros(n_obs, dtype=np.int64)
    n_test = round(n_obs * test_size)
    part[_evenly(order, n_test, generator)] = PARTS.index("test")
    rest = order[part[order] == 0]
    part[_evenly(rest, min(round(n_obs * validation_size), len(rest)), generator)] = PARTS.index("validation")
    if strata is not None:
        _keep_one_of_each(part, np.asarray(strata))
    return _from_codes(part)


def split_from_labels(labels: Iterable[object] | pd.Series) -> Split:
    """Create a split from the part of each cell.

    Parameters
    ----------
    labels
        ``"train"``, ``"validation"`` (or ``"val"``, ``"valid"``) or ``"test"`` for each cell.

    Raises
    ------
    DataError
        If another value occurs, a value is missing, or there are no training cells.
    """
    codes = {"train": 0, "validation": 1, "val": 1, "valid": 1, "test": 2}
    names = texts_of(labels)
    unknown = sorted({name for name in names if name is not None} - set(codes))
    n_missing = int(sum(name is None for name in names))
    if unknown or n_missing:
        found = [
            *([f"{unknown[:5]}"] if unknown else []),
            *([f"missing values for {n_missing:,} cells"] if n_missing else []),
        ]
        msg = f"The split contains {' and '.join(found)}; each cell must be 'train', 'validation' or 'test'."
        raise DataError(msg)
    return _from_codes(np.array([codes[name] for name in names], dtype=np.int64))


def _evenly(order: NDArray[np.int64], n: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Take ``n`` evenly spaced members from a random start."""
    if len(order) == 0:
        return order
    # With integers, since a running sum of fractions could round to one cell more or less.
    steps = (np.arange(len(order) + 1) * n + generator.integers(len(order))) // len(order)
    return order[np.diff(steps) > 0]


def _keep_one_of_each(part: NDArray[np.int64], strata: NDArray[np.integer]) -> None:
    for stratum in np.setdiff1d(strata, strata[part == 0]):
        part[np.flatnonzero(strata == stratum)[0]] = 0


def _from_codes(part: NDArray[np.int64]) -> Split:
    split = Split(*(np.flatnonzero(part == code) for code in range(len(PARTS))))
    if len(split.train) == 0:
        msg = f"No training cell is left ({split.sizes()}). Use more cells or a smaller test_size."
        raise DataError(msg)
    return split
