"""Strategies for ranking genes, and interleaving of several sources into one ranking."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np

from scgalore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = [
    "EXPRESSED",
    "MUST_INCLUDE",
    "RESPONSIVE",
    "STRATEGIES",
    "TARGETS",
    "USER_WEIGHT",
    "VARIABLE",
    "Merged",
    "Strategy",
    "best_first",
    "get_strategy",
    "merge",
]

# Sources computed from the data. All others are names of gene sets.
VARIABLE, EXPRESSED, RESPONSIVE = "variable", "expressed", "responsive"
# Sources placed before all others.
MUST_INCLUDE, TARGETS = "must_include", "targets"

USER_WEIGHT = 0.15
"""Weight of each user gene set, relative to those of a strategy, which sum to 1."""


@dataclass(frozen=True)
class Strategy:
    """Sources of a ranking.

    Attributes
    ----------
    weights
        Weight of each source: :data:`VARIABLE`, :data:`RESPONSIVE`, :data:`EXPRESSED`, or the name of a gene set. One
        of them is :data:`VARIABLE` or :data:`EXPRESSED`, which rank all genes, so that every gene is ranked.
    targets
        Whether perturbed genes come first.
    """

    weights: Mapping[str, float]
    targets: bool = False


STRATEGIES: Mapping[str, Strategy] = {
    "biological": Strategy(
        {
            VARIABLE: 0.5,
            "transcription_factors": 0.15,
            "cell_cycle": 0.1,
            "metabolism": 0.1,
            "pluripotency": 0.05,
            "stress": 0.1,
        }
    ),
    "hvg": Strategy({VARIABLE: 1.0}),
    "perturbation": Strategy(
        {RESPONSIVE: 0.5, "transcription_factors": 0.15, "cell_cycle": 0.1, "stress": 0.1, VARIABLE: 0.15},
        targets=True,
    ),
    "expressed": Strategy({EXPRESSED: 1.0}),
}
"""Values of ``gene_strategy=``."""


def get_strategy(name: str) -> Strategy:
    """Find a strategy.

    Parameters
    ----------
    name
        Key of :data:`STRATEGIES`.

    Raises
    ------
    OptionError
        If the strategy does not exist.
    """
    if name not in STRATEGIES:
        close = get_close_matches(str(name), STRATEGIES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        msg = f"gene_strategy={name!r}: {hint}Choose one of {', '.join(map(repr, STRATEGIES))}."
        raise OptionError(msg)
    return STRATEGIES[name]


@dataclass(frozen=True)
class Merged:
    """A ranked list of columns.

    Attributes
    ----------
    columns
        Best first, int64.
    sources
        Source of each column, object.
    """

    columns: NDArray[np.int64] = field(repr=False)
    sources: NDArray[np.object_] = field(repr=False)


def best_first(
    scores: NDArray[np.floating], names: NDArray[np.int64], among: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Columns by descending score; ties by name, NaN last.

    Parameters
    ----------
    scores
        One score per column. They are compared in float32, because sums over cells in another order differ in their
        last digits, and the ranking must not depend on that.
    names
        Position of each column's name among the sorted names.
    among
        Columns to order; ``None`` orders all.
    """
    columns = np.arange(len(names)) if among is None else among
    with np.errstate(over="ignore"):
        falling = -scores[columns].astype(np.float32)
    return columns[np.lexsort((names[columns], falling))].astype(np.int64)


def merge(
    first: Mapping[str, NDArray[np.int64]], lists: Mapping[str, NDArray[np.int64]], weights: Mapping[str, float]
) -> Merged:
    """Interleave sources in proportion to their weights.

    In its turn, a source places its best gene that is not yet placed; genes already placed by
    other sources do not count. A source without remaining genes drops out and its weight passes to the others. The
    ranking does not depend on a number of genes, so any prefix of it is a selection.

    Parameters
    ----------
    first
        Sources and their columns that are placed first.
    lists
        Columns of each source, best first.
    weights
        Weight of each source.
    """
    placed: dict[int, str] = {}
    for source, columns in first.items():
        for column in columns.tolist():
            placed.setdefault(column, source)
    waiting = {source: iter(columns.tolist()) for source, columns in lists.items()}
    # A source is next due at (genes counted + 1) / weight; ties are broken by the order of the sources.
    due = [(1 / weights[source], number, 1, source) for number, source in enumerate(lists)]
    heapq.heapify(due)
    while len(due) > 1:
        _, number, turn, source = due[0]
        for column in waiting[source]:
            if column not in placed:
                placed[column] = source
                heapq.heapreplace(due, ((turn + 1) / weights[source], number, turn + 1, source))
                break
        else:
            heapq.heappop(due)
    for *_, source in due:  # a single source remains
        placed.update((column, source) for column in waiting[source] if column not in placed)
    sources = np.fromiter(placed.values(), dtype=object, count=len(placed))
    return Merged(np.fromiter(placed, dtype=np.int64, count=len(placed)), sources)
