"""Fraction of a cell's expression in genes of the vocabulary."""

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
"""Minimum number of genes without a warning."""

LITTLE = 0.5
"""Minimum fraction of the expression without a warning."""

MIN_MATCHED = 0.05
"""Minimum fraction without an error; default of ``min_matched``."""

FEW_UNSEEN = 0.01
"""Maximum fraction of cells without a gene of the vocabulary; more are an error, unless ``min_matched`` is 0."""


@dataclass(frozen=True)
class Seen:
    """Fraction of the expression in genes with a token.

    Attributes
    ----------
    share
        Fraction over all cells together.
    quartiles
        Lower quartile, median and upper quartile over cells.
    """

    share: float
    quartiles: tuple[float, float, float]

    @classmethod
    def of(cls, seen: ArrayLike, total: ArrayLike) -> Seen:
        """Compute from sums over the genes with a token and over all genes.

        Parameters
        ----------
        seen, total
            Sums of each cell or group of cells, ``(n,)``. Cells without expression are ignored.
        """
        seen, total = np.asarray(seen, dtype=np.float64), np.asarray(total, dtype=np.float64)
        seen, total = seen[total > 0], total[total > 0]
        if not len(total):
            return cls(1.0, (1.0, 1.0, 1.0))
        low, middle, high = np.quantile(seen / total, (0.25, 0.5, 0.75)).tolist()
        return cls(float(seen.sum() / total.sum()), (low, middle, high))

    def report(self) -> dict[str, Any]:
        """The fractions, for ``uns``."""
        low, middle, high = self.quartiles
        return {
            "share": self.share,
            "share_by_cell": {"lower_quartile": low, "median": middle, "upper_quartile": high},
        }

    def suffices(self, match: GeneMatch, min_matched: float | None) -> bool:
        """Whether enough genes and expression match, so that :meth:`check` neither warns about them nor raises an error.

        Parameters
        ----------
        match
            Matched genes.
        min_matched
            Minimum fraction; ``None`` is :data:`MIN_MATCHED`.
        """
        least = MIN_MATCHED if min_matched is None else min_matched
        return match.matched >= FEW_GENES and self.share >= max(LITTLE, least)

    def check(
        self,
        match: GeneMatch,
        min_matched: float | None,
        advice: Callable[[], str],
        *,
        where: str = "",
        what: str = "expression",
    ) -> None:
        """Warn about few genes or a small fraction, and raise an error if it is too small.

        Parameters
        ----------
        match
            Matched genes.
        min_matched
            Minimum fraction; ``None`` is :data:`MIN_MATCHED`.
        advice
            Returns advice on how to match more genes.
        where
            Start of the message: what was read.
        what
            Content of the matrix.

        Raises
        ------
        DataError
            If the fraction is too small.
        """
        if match.numbered:
            logg.warning(
                f"{where}{len(match.numbered):,} genes are numbered duplicates of others ({few(match.numbered)}) and not in the "
                "vocabulary, so their counts are ignored. Sum the columns of a gene before calling var_names_make_unique()."
            )
        if self.suffices(match, min_matched):
            return
        least = MIN_MATCHED if min_matched is None else min_matched
        low, middle, high = (f"{100 * share:.3g}" for share in self.quartiles)
        text = (
            f"{where}{match.summary()}. The matched genes have {middle} % of a cell's {what} "
            f"(median; quartiles {low} and {high} %; {100 * self.share:.3g} % over all cells)."
        )
        hint = advice() if self.share < LITTLE else "Results from so few genes are unreliable."
        text = f"{text} {hint}".rstrip()
        if self.share < least:
            msg = f"{text} Expected at least {100 * least:.3g} %; change this with min_matched= (0 accepts any data)."
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
