"""Simulate cells with a predicted mean, and with the zeros and variance of real cells.

Tests of differential expression compare cells. Control cells shifted by an effect, or copies of the mean, have fewer
zeros than real cells, and nearly every gene would appear significant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scgalore.data.hashing import uniforms
from scgalore.errors import DataError, OptionError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["synthesise"]

_BLOCK = 1024
"""Number of genes processed at once, which limits memory; results do not depend on it."""


def synthesise(mean: ArrayLike, control: sp.csr_matrix | sp.csr_array, *, n_cells: int, seed: int) -> sp.csr_matrix:
    """Sample cells around a predicted mean.

    Each cell starts as a control cell. The fraction of cells that express a gene changes as for a Poisson rate
    proportional to the mean: ``1 - (1 - p) ** (mean / control mean)``; the values follow the
    distribution of the non-zero control values, scaled to match the mean. Within each gene, the order of
    the control cells is kept, which preserves most correlations between genes. For the control mean itself, the result
    consists of control cells, each used equally often.

    A gene that no control cell expresses gets single counts: the smallest value of each control cell.

    Parameters
    ----------
    mean
        Predicted mean of log-normalised expression, ``(n_genes,)``; negative values count as 0.
    control
        Log-normalised expression of control cells, ``(n_control, n_genes)``.
    n_cells
        Number of cells to sample.
    seed
        Random seed; draws depend on it and on the positions of gene and cell.

    Returns
    -------
    float32 ``(n_cells, n_genes)``. Its mean equals ``mean`` up to rounding for every gene expected in at least half a
    cell; rarer genes are expressed in one cell or none, which is correct on average and keeps rare genes rare.

    Raises
    ------
    DataError
        If there is no control cell, shapes do not match, or a value is not finite.
    OptionError
        If ``n_cells`` is below 1.
    """
    target = np.asarray(mean, dtype=np.float64)
    _check(target, control, n_cells)
    target = np.maximum(target, 0)
    columns = sp.csc_matrix(control, dtype=np.float64, copy=True)
    columns.eliminate_zeros()
    source = _values_of(columns, target)
    n_expressing, share = _n_expressing(target, columns, source, n_cells, seed)
    values = _values(target, source, n_expressing, share, n_cells, seed)
    rows = _cells(columns, n_expressing, n_cells, seed)
    indptr = np.concatenate([[0], np.cumsum(n_expressing)])
    cells = sp.csc_matrix((values.astype(np.float32), rows, indptr), shape=(n_cells, len(target))).tocsr()
    cells.eliminate_zeros()
    return cells


@dataclass(frozen=True)
class _Source:
    """Sorted non-zero values to sample from for each gene: ``values[start : start + length]``, with their ``mean``."""

    values: NDArray[np.float64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    mean: NDArray[np.float64]


def _check(mean: NDArray[np.float64], control: sp.csr_matrix, n_cells: int) -> None:
    if control.shape[0] == 0:
        msg = "There are no control cells to sample from; pass at least one from the context of the prediction."
        raise DataError(msg)
    if mean.shape != (control.shape[1],):
        msg = f"mean has shape {mean.shape} and control {control.shape}; expected one mean per gene of control."
        raise DataError(msg)
    values = control.data
    if not (np.isfinite(mean).all() and np.isfinite(values).all() and values.min(initial=0) >= 0):
        msg = "mean or control contains NaN or infinite values, or control contains negative values; expected log-normalised expression."
        raise DataError(msg)
    if n_cells < 1:
        msg = f"n_cells={n_cells}; expected at least 1."
        raise OptionError(msg)


def _values_of(columns: sp.csc_matrix, target: NDArray[np.float64]) -> _Source:
    length = np.diff(columns.indptr).astype(np.int64)
    gene = np.repeat(np.arange(columns.shape[1]), length)
    own = _sorted_within(gene, columns.data)
    ones = _single_counts(columns.tocsr())
    unseen = length == 0
    start = np.where(unseen, len(own), columns.indptr[:-1]).astype(np.int64)
    total = np.bincount(gene, weights=columns.data, minlength=len(target))
    mean = np.where(unseen, ones.mean(), total / np.maximum(length, 1))
    return _Source(np.concatenate([own, ones]), start, np.where(unseen, len(ones), length), mean)


def _sorted_within(group: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sort positive values within each group, ten times faster than lexsort."""
    # The bit patterns of positive float32 numbers have the order of the numbers.
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    keys = np.sort((group.astype(np.uint64) << np.uint64(32)) | bits)
    return keys.astype(np.uint32).view(np.float32).astype(np.float64)


def _single_counts(rows: sp.csr_matrix) -> NDArray[np.float64]:
    """Value of a single count in each control cell (its smallest value), sorted."""
    expressing = np.diff(rows.indptr) > 0
    if not expressing.any():
        return np.log1p([1.0])  # all cells are empty: any scale works
    return np.sort(np.minimum.reduceat(rows.data, rows.indptr[:-1][expressing]))


def _n_expressing(
    target: NDArray[np.float64], columns: sp.csc_matrix, source: _Source, n_cells: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Number of cells that express each gene, and the fraction before rounding."""
    n_control = columns.shape[0]
    detected = np.diff(columns.indptr) / n_control
    # A gene in every cell has no finite rate; the cap is too close to 1 to cost it a cell.
    rate = -np.log1p(-np.minimum(detected, 1 - 0.25 / max(n_control, n_cells)))
    # Counts and logarithms are proportional where zeros are common, so the ratio of means serves as that of rates; on
    # real perturbations it matched the fraction of zeros better than the ratio of expm1.
    expected = (
        np.where(detected > 0, rate / np.where(detected > 0, detected * source.mean, 1), 1 / source.mean) * target
    )
    share = -np.expm1(-expected)
    n = np.rint(share * n_cells).astype(np.int64)
    # If every rare gene were in at least one cell, thousands of genes would be slightly too common at the same time.
    rare = share * n_cells < 0.5
    lucky = uniforms(seed, "expressed", 0, np.arange(len(target))) < share * n_cells
    return np.where(rare, lucky, n).astype(np.int64), share


def _values(
    target: NDArray[np.float64],
    source: _Source,
    n_expressing: NDArray[np.int64],
    share: NDArray[np.float64],
    n_cells: int,
    seed: int,
) -> NDArray[np.float64]:
    """Sorted non-zero values, gene by gene: evenly spaced quantiles of the control values."""
    gene = np.repeat(np.arange(len(target)), n_expressing)
    first = np.cumsum(n_expressing) - n_expressing
    rank = np.arange(len(gene)) - first[gene]
    offset = uniforms(seed, "quantile", 0, np.arange(len(target)))[gene]
    quantile = (rank + offset) / n_expressing[gene]
    position = np.minimum((quantile * source.length[gene]).astype(np.int64), source.length[gene] - 1)
    values = source.values[source.start[gene] + position]
    total = np.bincount(gene, weights=values, minlength=len(target))
    present = n_expressing > 0
    rare = share * n_cells < 0.5
    missing = np.where(present & ~rare, target * n_cells - total, 0)
    last = (first + n_expressing - 1)[present]
    largest = np.zeros(len(target))
    largest[present] = values[last]
    # The rounding error is added to one cell. Scaling all values slightly would break ties with discrete control
    # values in one direction, which a rank test would detect as an effect.
    local = np.abs(missing) <= largest
    scale = np.ones(len(target))
    np.divide(target * n_cells, total, out=scale, where=present & ~rare & ~local)
    np.divide(target, share * source.mean, out=scale, where=present & rare)
    values *= scale[gene]
    cell = np.where(missing < 0, first + n_expressing - 1, first)[present & local]
    values[cell] += missing[present & local]
    return np.maximum(values, 0)


def _cells(columns: sp.csc_matrix, n_expressing: NDArray[np.int64], n_cells: int, seed: int) -> NDArray[np.int64]:
    """Cells that express each gene, in the order of the values, gene by gene."""
    n_control = columns.shape[0]
    generator = np.random.default_rng(seed)
    rounds = [generator.permutation(n_control) for _ in range(-(-n_cells // n_control))]
    template = columns.tocsr()[np.concatenate(rounds)[:n_cells]]
    richness = np.maximum(np.diff(template.indptr), 1)[:, None]
    template = template.tocsc()
    chosen = []
    for start in range(0, columns.shape[1], _BLOCK):
        block = template[:, start : start + _BLOCK].toarray()
        genes = np.arange(start, start + block.shape[1])
        # Waiting times: among cells without the gene, those that express more genes come first.
        draws = uniforms(seed, "order", np.arange(n_cells)[:, None], genes)
        order = np.argsort(np.where(block > 0, block, np.log1p(-draws) / richness), axis=0, kind="stable")
        taken = np.arange(n_cells)[:, None] >= n_cells - n_expressing[genes]
        chosen.append(order.T[taken.T])
    return np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64)
