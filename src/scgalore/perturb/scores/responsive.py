"""Response of genes to perturbations: variance of their means beyond sampling noise."""

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
    """Sums of log-normalised expression from which the response of each gene is computed.

    Create it with :meth:`of`, or with :meth:`empty` and :meth:`add` to share one pass over the data.

    Attributes
    ----------
    n_cells, contexts
        Number of cells of each group (a perturbation, or control, in a context), and its context, int64
        ``(n_groups,)``. A negative context marks ungrouped cells.
    weights
        Weight of each cell's squares in the noise, by group.
    sums
        Sums of each group, float64 ``(n_groups, n_vars)``.
    squares
        Weighted squares of all cells, float64 ``(n_vars,)``: squares by group are not needed and would take as much
        memory as the sums.
    """

    n_cells: NDArray[np.int64] = field(repr=False)
    contexts: NDArray[np.int64] = field(repr=False)
    weights: NDArray[np.float64] = field(repr=False)
    sums: NDArray[np.float64] = field(repr=False)
    squares: NDArray[np.float64] = field(repr=False)

    @classmethod
    def empty(cls, n_cells: NDArray[np.int64], contexts: NDArray[np.int64], n_vars: int) -> Self:
        """Create empty sums for groups of known sizes."""
        # A single cell has no variance, and a single group cannot differ from others.
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
            Group of each cell, int64 ``(n_obs,)``; -1 for excluded cells.
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
            Group of each row; -1 for excluded rows.
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
        """Mean expression of each gene over all included cells."""
        return self.sums.sum(axis=0) / max(1, self.n_cells.sum())

    def responsiveness(self) -> NDArray[np.float64]:
        """Variance of the means of perturbations within a context, minus its sampling noise, averaged over contexts.

        The noise is the mean over perturbations of the variance within a perturbation divided by its number of cells.
        The difference is unbiased: its expectation is the variance of the true means, 0 for a gene that does not
        respond.

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
