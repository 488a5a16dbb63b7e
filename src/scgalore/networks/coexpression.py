"""Correlations of genes across cells, read in chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    import scipy.sparse as sp
    from numpy.typing import NDArray

__all__ = ["correlations"]


def correlations(
    chunks: Iterable[tuple[int, sp.csr_matrix]],
    groups: NDArray[np.int64],
    sources: NDArray[np.int64],
    targets: NDArray[np.int64],
    *,
    n_groups: int,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Pearson correlation of pairs of genes within groups of cells.

    Parameters
    ----------
    chunks
        Index of the first cell and expression of the cells of each chunk.
    groups
        Index of the group of each cell, -1 for excluded cells, int64 ``(n_obs,)``.
    sources, targets
        Columns of the genes.
    n_groups
        Number of groups.

    Returns
    -------
    Correlations, float32 ``(n_groups, n_sources, n_targets)``, NaN if a gene is constant in a group, and the number of
    cells that express the less widely expressed gene of the pair, int64 of the same shape.
    """
    shape = (n_groups, len(sources), len(targets))
    n, products = np.zeros(n_groups), np.zeros(shape)
    sums = [np.zeros((n_groups, len(columns))) for columns in (sources, targets)]
    squares, expressed = [np.zeros_like(part) for part in sums], [np.zeros_like(part) for part in sums]
    for start, rows in chunks:
        codes = groups[start : start + rows.shape[0]]
        for group in np.unique(codes[codes >= 0]):
            # In float64, since variances are differences of sums.
            here = rows[np.flatnonzero(codes == group)]
            x, y = (here[:, columns].toarray().astype(np.float64) for columns in (sources, targets))
            n[group] += len(x)
            products[group] += x.T @ y
            for part, total, square, cells in zip((x, y), sums, squares, expressed, strict=True):
                total[group] += part.sum(axis=0)
                square[group] += np.square(part).sum(axis=0)
                cells[group] += (part > 0).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        means, power = ([part / n[:, None] for part in parts] for parts in (sums, squares))
        variances = [square - mean**2 for square, mean in zip(power, means, strict=True)]
        # The variance of a constant gene consists of rounding errors.
        x, y = (np.sqrt(np.where(v > 1e-12 * square, v, np.nan)) for v, square in zip(variances, power, strict=True))
        found = products / n[:, None, None] - means[0][:, :, None] * means[1][:, None]
        found /= x[:, :, None] * y[:, None]
    n_cells = np.minimum(expressed[0][:, :, None], expressed[1][:, None]).astype(np.int64)
    return np.clip(found, -1, 1).astype(np.float32), n_cells
