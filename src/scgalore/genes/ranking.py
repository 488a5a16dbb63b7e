"""One ranked list of genes from several sources: which sources there are, and how they take turns."""

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

# Sources that come from the data. All others are names of gene sets.
VARIABLE, EXPRESSED, RESPONSIVE = "variable", "expressed", "responsive"
# Sources that come before all others.
MUST_INCLUDE, TARGETS = "must_include", "targets"

USER_WEIGHT = 0.15
"""Weight of each gene set of the user, beside those of a strategy, which sum to 1."""


@dataclass(frozen=True)
class Strategy:
    """Where genes come from.

    Attributes
    ----------
    weights
        Share of each source: :data:`VARIABLE`, :data:`RESPONSIVE`, :data:`EXPRESSED`, or the name of a gene set. One of them
        is :data:`VARIABLE` or :data:`EXPRESSED`, which rank all genes, so that none is left over.
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
"""What ``gene_strategy=`` may be."""


def get_strategy(name: str) -> Strategy:
    """Find a strategy.

    Parameters
    ----------
    name
        Key of :data:`STRATEGIES`.

    Raises
    ------
    OptionError
        If there is none of that name.
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
        Source that placed each of them, object.
    """

    columns: NDArray[np.int64] = field(repr=False)
    sources: NDArray[np.object_] = field(repr=False)


def best_first(
    scores: NDArray[np.floating], names: NDArray[np.int64], among: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Columns by falling score; equal scores by name, NaN last.

    Parameters
    ----------
    scores
        One for each column. They are compared in float32, because sums over cells in another order differ in their last
        digits, and the order must not hang on that.
    names
        Place of each column's name among the sorted names.
    among
        Columns to order; all when left out.
    """
    columns = np.arange(len(names)) if among is None else among
    with np.errstate(over="ignore"):
        falling = -scores[columns].astype(np.float32)
    return columns[np.lexsort((names[columns], falling))].astype(np.int64)


def merge(
    first: Mapping[str, NDArray[np.int64]], lists: Mapping[str, NDArray[np.int64]], weights: Mapping[str, float]
) -> Merged:
    """Let sources take turns, each as often as its weight says.

    A source whose turn it is places its best gene that is not placed yet, and that is counted for it; a gene that another
    source has placed costs it nothing. One without genes left drops out and its share passes to the others. The list is made
    without a size in mind, so that any beginning of it is a selection of its own.

    Parameters
    ----------
    first
        Sources and their columns that come before all turns.
    lists
        Columns of each source, best first.
    weights
        Weight of each of them.
    """
    placed: dict[int, str] = {}
    for source, columns in first.items():
        for column in columns.tolist():
            placed.setdefault(column, source)
    waiting = {source: iter(columns.tolist()) for source, columns in lists.items()}
    # (genes counted + 1) / weight is when a source is due next; equal times go by the order of the sources.
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
    for *_, source in due:  # nobody to take turns with any more
        placed.update((column, source) for column in waiting[source] if column not in placed)
    sources = np.fromiter(placed.values(), dtype=object, count=len(placed))
    return Merged(np.fromiter(placed, dtype=np.int64, count=len(placed)), sources)
