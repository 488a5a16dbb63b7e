"""Highly variable genes from sums over chunks, as defined by scanpy's ``highly_variable_genes``.

For counts, flavor ``"seurat_v3"`` (:cite:p:`Stuart2019`): the variance of a gene after standardising values by the
standard deviation expected from its mean and clipping large values. For log-normalised values, flavor ``"seurat"``
(:cite:p:`Satija2015`): dispersions, standardised within bins of the mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgalore.data.moments import Chunked, Moments

__all__ = ["median_rank", "normalised_dispersions", "standardised_variances"]

SPAN = 0.3  # fraction of the genes in each fit of the local regression
N_BINS = 20
# Local quadratic regression needs several points within each span.
_FEWEST_FOR_LOESS = 30


def standardised_variances(counts: Chunked, batch: NDArray[np.int64], moments: Moments) -> NDArray[np.float64]:
    """Standardised variance of each gene; the matrix is read once.

    Parameters
    ----------
    counts
        Cells by genes.
    batch
        Batch of each cell, -1 for cells to ignore.
    moments
        Moments of the same cells, grouped by batch.

    Returns
    -------
    float64 ``(n_batches, n_vars)``; 0 for a gene without variance. Batches with fewer than two cells are omitted.
    """
    used = np.flatnonzero(moments.n_cells > 1)
    n, mean = moments.n_cells[used, None], moments.means[used]
    # The fit is unstable if equal means differ in their last digits, as for scaled counts.
    is_whole = bool((moments.sums == np.rint(moments.sums)).all())
    pairs = zip(mean, moments.variances[used], strict=True)
    spread = np.array([_expected_deviation(*pair, is_whole=is_whole) for pair in pairs])
    spread = spread.reshape(mean.shape)
    sums, squares = moments.sums[used], moments.squares[used]
    _clip(counts, batch, used, spread * np.sqrt(n) + mean, sums, squares)
    return (n * mean**2 + squares - 2 * sums * mean) / ((n - 1) * spread**2)


def _clip(
    counts: Chunked,
    batch: NDArray[np.int64],
    used: NDArray[np.int64],
    limits: NDArray[np.float64],
    sums: NDArray[np.float64],
    squares: NDArray[np.float64],
) -> None:
    """Clip sums and sums of squares to the limits in place; all ``(len(used), n_vars)``."""
    # Slightly below the limit, so that rounding to float32 loses no candidate; these few values are compared exactly.
    low = np.nextafter(limits.astype(np.float32), np.float32(-np.inf))
    n_vars = limits.shape[1]
    for start, rows in counts.chunks():
        of_row = batch[start : start + rows.shape[0]]
        for row, number in enumerate(used):
            part = rows if (of_row == number).all() else rows[np.flatnonzero(of_row == number)]
            high = np.flatnonzero(part.data > low[row].take(part.indices))
            column, value = part.indices[high], part.data[high].astype(np.float64)
            limit = np.minimum(value, limits[row, column])
            sums[row] -= np.bincount(column, weights=value - limit, minlength=n_vars)
            squares[row] -= np.bincount(column, weights=value**2 - limit**2, minlength=n_vars)


def median_rank(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median over batches of the rank within each batch, 0 for the largest score; equal scores share the best rank.

    Parameters
    ----------
    scores
        Scores, float64 ``(n_batches, n_vars)``, compared in float32: genes with the same counts in different cells have
        equal scores that differ only in the last digits of their sums.
    """
    from scipy.stats import rankdata  # slow to import

    return np.median(rankdata(-scores.astype(np.float32), method="min", axis=1) - 1, axis=0)


def normalised_dispersions(moments: Moments) -> NDArray[np.float64]:
    """Dispersion of each gene relative to genes with a similar mean, averaged over batches.

    Parameters
    ----------
    moments
        Moments of values with the logarithm undone, grouped by batch.

    Returns
    -------
    float64 ``(n_vars,)``; NaN for a gene without variance in any batch.
    """
    n_batches, n_vars = moments.sums.shape
    scores = np.zeros((n_batches, n_vars))
    for number in range(n_batches):
        # As in scanpy, genes without expression are included in the bins only if there is a single batch.
        present = moments.sums[number] > 0 if n_batches > 1 else np.ones(n_vars, dtype=bool)
        scores[number, present] = _binned(moments.means[number, present], moments.variances[number, present])
    found = np.isfinite(scores)
    total = np.where(found, scores, 0).sum(axis=0)
    return np.where(found.any(axis=0), total / np.maximum(found.sum(axis=0), 1), np.nan)


def _expected_deviation(
    mean: NDArray[np.float64], variance: NDArray[np.float64], *, is_whole: bool
) -> NDArray[np.float64]:
    """Standard deviation expected at each mean from a curve through all genes; 1 for genes without variance."""
    fitted = np.zeros(len(mean))
    varies = np.flatnonzero(variance > 0)
    # Sorted, so that the last digits of the fit do not depend on the order of the columns.
    varies = varies[np.lexsort((variance[varies], mean[varies]))]
    if len(varies):
        x = np.log10(mean[varies])
        fitted[varies] = _curve(x if is_whole else x.round(6), np.log10(variance[varies]))
    return np.sqrt(10**fitted)


def _curve(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    n_distinct = 1 + int(np.count_nonzero(np.diff(x)))  # x is sorted
    if n_distinct >= _FEWEST_FOR_LOESS:
        from skmisc.loess import loess

        try:
            model = loess(x, y, span=SPAN, degree=2)
            model.fit()
            return np.asarray(model.outputs.fitted_values)
        except ValueError:  # many genes with equal means, as in very sparse data, leave too few points for a local fit
            pass
    return (
        np.polynomial.Polynomial.fit(x, y, min(2, n_distinct - 1))(x) if n_distinct > 1 else np.full(len(x), y.mean())
    )


def _binned(mean: NDArray[np.float64], variance: NDArray[np.float64]) -> NDArray[np.float64]:
    mean = np.where(mean == 0, 1e-12, mean)
    with np.errstate(divide="ignore"):
        dispersion = np.log(variance / mean)
    dispersion[np.isneginf(dispersion)] = np.nan
    log_mean = np.log1p(mean)
    if len(log_mean) == 0:
        return dispersion
    bins = pd.cut(pd.Series(log_mean), bins=N_BINS, labels=False)
    grouped = pd.Series(dispersion).groupby(bins)
    centre, spread = grouped.transform("mean").to_numpy(copy=True), grouped.transform("std").to_numpy(copy=True)
    # A gene alone in its bin gets 1: its dispersion divided by itself.
    alone = np.isnan(spread)
    spread[alone], centre[alone] = centre[alone], 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        return (dispersion - centre) / spread
