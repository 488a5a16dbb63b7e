"""Genes that respond to perturbations: how much their means differ, beyond what the number of cells explains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scgalore.data.moments import add_sums, column_sums

if TYPE_CHECKING:
    from typing import Self

    import scipy.sparse as sp
    from numpy.typing import NDArray

    from scgalore.data.moments import Chunked

__all__ = ["Responses"]


@dataclass(frozen=True)
class Responses:
    """Sums of log-normalised expression from which the response of each gene follows.

    Make it with :meth:`of`, or with :meth:`empty` and :meth:`add` where one reading serves several purposes.

    Attributes
    ----------
    n_cells, contexts
        Cells of each group (a perturbation in a context; control is one), and its context, int64 ``(n_groups,)``. A negative
        context is for cells that are no group.
    weights
        Share of each cell's squares in the noise, by group.
    sums
        Of each group, float64 ``(n_groups, n_vars)``.
    squares
        Of all cells, weighted, float64 ``(n_vars,)``: squares of each group are not needed, which would take as much memory as
        the sums.
    """

    n_cells: NDArray[np.int64] = field(repr=False)
    contexts: NDArray[np.int64] = field(repr=False)
    weights: NDArray[np.float64] = field(repr=False)
    sums: NDArray[np.float64] = field(repr=False)
    squares: NDArray[np.float64] = field(repr=False)

    @classmethod
    def empty(cls, n_cells: NDArray[np.int64], contexts: NDArray[np.int64], n_vars: int) -> Self:
        """Nothing added yet; the sizes of the groups are known from the labels."""
        # A single cell has no variance, and a single group nothing to differ from.
        used = (n_cells > 1) & (contexts >= 0)
        n_groups = np.array([(used & (contexts == context)).sum() for context in contexts])
        used &= n_groups > 1
        n_contexts = len(np.unique(contexts[used]))
        weights = np.zeros(len(n_cells))
        weights[used] = 1 / (n_cells[used] * (n_cells[used] - 1.0) * n_groups[used] * n_contexts)
        return cls(n_cells, contexts, weights, np.zeros((len(n_cells), n_vars)), np.zeros(n_vars))

    @classmethod
    def of(cls, rows: Chunked, group: NDArray[np.int64], contexts: NDArray[np.int64]) -> Self:
        """Read a matrix once.

        Parameters
        ----------
        rows
            Log-normalised expression, cells by genes.
        group
            Group of each cell, int64 ``(n_obs,)``; -1 for cells that do not count.
        contexts
            Context of each group, int64 ``(n_groups,)``.
        """
        made = cls.empty(np.bincount(group[group >= 0], minlength=len(contexts)), contexts, rows.n_vars)
        for start, chunk in rows.chunks():
            made.add(chunk, group[start : start + chunk.shape[0]])
        return made

    def add(self, rows: sp.csr_matrix, group: NDArray[np.int64]) -> None:
        """Add some rows.

        Parameters
        ----------
        rows
            Log-normalised expression.
        group
            Group of each of the rows; -1 for those that do not count.
        """
        counted = group >= 0
        if not counted.all():
            rows, group = rows[np.flatnonzero(counted)], group[counted]
        values = rows.data.astype(np.float64)
        add_sums(self.sums, rows, values, group)
        if self.weights.any():
            self.squares[:] += column_sums(rows, np.square(values, out=values), self.weights[group])

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean expression of each gene over all cells that count."""
        return self.sums.sum(axis=0) / max(1, self.n_cells.sum())

    def responsiveness(self) -> NDArray[np.float64]:
        """Variance of the means of perturbations within a context, minus its sampling noise, averaged over contexts.

        The noise is the mean over perturbations of the variance within one, divided by its number of cells. What is left is
        unbiased: 0 on average for a gene that nothing changes, and the variance of the true means for any other.

        Returns
        -------
        float64 ``(n_vars,)``; NaN if no context has two groups of two cells.
        """
        used = np.flatnonzero(self.weights)
        if len(used) == 0:
            return np.full(self.sums.shape[1], np.nan)
        n, w = self.n_cells[used, None], self.weights[used, None]
        means = self.sums[used] / n
        noise = self.squares - (w * n * means**2).sum(axis=0)
        of_group = self.contexts[used]
        between = [means[of_group == context].var(axis=0, ddof=1) for context in np.unique(of_group)]
        return np.mean(between, axis=0) - noise
