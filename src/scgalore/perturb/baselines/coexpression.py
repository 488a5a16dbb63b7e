"""Effect of a change of one gene on the others, predicted by linear regression over the same cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray

__all__ = ["Coexpression"]


@dataclass(frozen=True)
class Coexpression:
    """Cells for regressing genes on each other.

    Attributes
    ----------
    rows
        Log-normalised expression, sparse float64 ``(n_cells, n_genes)``.
    means
        Mean of each gene, float64 ``(n_genes,)``.
    """

    rows: sp.csr_matrix = field(repr=False)
    means: NDArray[np.float64] = field(repr=False)

    @classmethod
    def of(cls, rows: sp.csr_matrix) -> Coexpression:
        """Use the cells of one group.

        Parameters
        ----------
        rows
            Log-normalised expression, cells by genes.
        """
        rows = rows.astype(np.float64)
        return cls(rows, np.asarray(rows.mean(axis=0)).ravel())

    def effects(self, genes: NDArray[np.int64], changes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Change of every gene in response to changes of single genes.

        Parameters
        ----------
        genes
            Columns of the changed genes, int64 ``(b,)``.
        changes
            Change of their mean, float64 ``(b,)``.

        Returns
        -------
        float64 ``(b, n_genes)``: the slope of each gene on the changed gene, times the change; 0 for a constant gene.
        """
        n = self.rows.shape[0]
        chosen = self.rows[:, genes]
        products = np.asarray((chosen.T @ self.rows).todense()) / n
        covariances = products - np.outer(self.means[genes], self.means)
        variances = covariances[np.arange(len(genes)), genes]
        slopes = np.divide(changes, variances, out=np.zeros(len(genes)), where=variances > 1e-12)
        return covariances * slopes[:, None]
