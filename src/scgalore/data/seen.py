"""How much of the expression of cells lies in genes that a model knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scgalore import _logging as logg
from scgalore._words import few
from scgalore.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    import scipy.sparse as sp
    from numpy.typing import ArrayLike, NDArray

    from scgalore.data.match import GeneMatch

__all__ = ["FEW_GENES", "FEW_UNSEEN", "LITTLE", "MIN_MATCHED", "Seen", "sums_of"]

FEW_GENES = 200
"""Fewer genes than these, and there is a warning."""

LITTLE = 0.5
"""A smaller share of the expression than this, and there is a warning."""

MIN_MATCHED = 0.05
"""A smaller share than this is an error, unless ``min_matched`` says otherwise."""

FEW_UNSEEN = 0.01
"""Share of cells in which no gene is known that is warned of; more are an error, unless ``min_matched`` is 0."""


@dataclass(frozen=True)
class Seen:
    """Share of the expression that lies in genes with a token.

    Attributes
    ----------
    share
        Of all cells together.
    quartiles
        Lower quartile, median and upper quartile of the shares of the cells.
    """

    share: float
    quartiles: tuple[float, float, float]

    @classmethod
    def of(cls, seen: ArrayLike, total: ArrayLike) -> Seen:
        """Compare sums over the genes with a token with sums over all.

        Parameters
        ----------
        seen, total
            Both sums of each cell, or of each group of cells, ``(n,)``. Those without expression do not count.
        """
        seen, total = np.asarray(seen, dtype=np.float64), np.asarray(total, dtype=np.float64)
        seen, total = seen[total > 0], total[total > 0]
        if not len(total):
            return cls(1.0, (1.0, 1.0, 1.0))
        low, middle, high = np.quantile(seen / total, (0.25, 0.5, 0.75)).tolist()
        return cls(float(seen.sum() / total.sum()), (low, middle, high))

    def report(self) -> dict[str, Any]:
        """The shares, for ``uns``."""
        low, middle, high = self.quartiles
        return {
            "share": self.share,
            "share_by_cell": {"lower_quartile": low, "median": middle, "upper_quartile": high},
        }

    def check(
        self,
        match: GeneMatch,
        min_matched: float | None,
        advice: Callable[[], str],
        *,
        where: str = "",
        what: str = "expression",
    ) -> None:
        """Warn of few genes or a small share, and refuse a share that is too small.

        Parameters
        ----------
        match
            Which genes have a token.
        min_matched
            Smallest share that is allowed; :data:`MIN_MATCHED` when left out.
        advice
            Says how more genes might match.
        where
            What is read, to begin the message with.
        what
            What the matrix holds.

        Raises
        ------
        DataError
            If the share is too small.
        """
        if match.numbered:
            logg.warning(
                f"{where}{len(match.numbered):,} genes are numbered copies of others ({few(match.numbered)}) and no vocabulary holds "
                "such names, so their counts are left out. Sum the columns of a gene before var_names_make_unique() renames them."
            )
        least = MIN_MATCHED if min_matched is None else min_matched
        if match.matched >= FEW_GENES and self.share >= max(LITTLE, least):
            return
        low, middle, high = (f"{100 * share:.3g}" for share in self.quartiles)
        text = (
            f"{where}{match.matched:,} of {match.n_vars:,} genes matched, in which the model sees {middle} % of a cell's {what} "
            f"(median; quartiles {low} and {high} %; {100 * self.share:.3g} % of all cells' together)."
        )
        hint = advice() if self.share < LITTLE else "So few genes say little about a cell."
        text = f"{text} {hint}".rstrip()
        if self.share < least:
            msg = f"{text} Expected are {100 * least:.3g} % at least; min_matched= sets another share, and min_matched=0 allows any."
            raise DataError(msg)
        logg.warning(text)


def sums_of(rows: sp.csr_matrix, token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sums of each cell over the genes with a token, and over all, ``(n, 2)``.

    Parameters
    ----------
    rows
        Expression of some cells.
    token_ids
        Token of each column, -1 for columns without.
    """
    return np.asarray(rows @ np.stack([token_ids >= 0, np.ones(len(token_ids))], axis=1), dtype=np.float64)
