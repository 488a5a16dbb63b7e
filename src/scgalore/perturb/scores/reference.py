"""References for real perturbations other than control: other perturbations, and all other cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgalore.perturb.labels.profiles import Profiles

    Values = NDArray[np.float64]

__all__ = ["centroids", "gene_weights", "pooled_means"]


def centroids(train: Profiles) -> Values | None:
    """Mean profile of the training perturbations of each context, each perturbation counting once.

    Parameters
    ----------
    train
        Rows that are not held out.

    Returns
    -------
    ``(n_contexts, n_genes)``, or ``None`` without rows. A context without training perturbations gets its control
    mean plus the mean effect over the rows of the other contexts.
    """
    if len(train) == 0:
        return None
    result = train.control_means + train.effects.mean(axis=0)
    for context in np.unique(train.contexts):
        result[context] = train.means[train.contexts == context].mean(axis=0)
    return result


def pooled_means(*parts: Profiles) -> Values:
    """Mean profile of all perturbations of each context, with equal weight per row.

    Parameters
    ----------
    *parts
        Rows of the same genes and contexts.

    Returns
    -------
    ``(n_contexts, n_genes)``; the control mean for contexts without rows.
    """
    contexts = np.concatenate([part.contexts for part in parts])
    means = np.concatenate([part.means for part in parts])
    result = parts[0].control_means.copy()
    for context in np.unique(contexts):
        result[context] = means[contexts == context].mean(axis=0)
    return result


def gene_weights(real: Profiles, *others: Profiles) -> Values:
    """Weights of genes after Mejia et al. (arXiv 2506.22641): the squares of |t|, scaled to 0 to 1 in each row.

    t is Welch's statistic of the cells of a row against all other cells of its context, including control cells.

    Parameters
    ----------
    real
        Rows to weight.
    *others
        Additional rows of the same genes and contexts.

    Returns
    -------
    ``(n, n_genes)``; all zeros for a row without differences. For a row with a single cell, the variance of the others
    is used.
    """
    n, total, squares = _context_moments(real, *others)
    own_n, context = real.n_cells[:, None], real.contexts
    rest_n = n[context][:, None] - own_n
    own_square = (own_n - 1) * real.variances + own_n * real.means**2
    rest_mean = (total[context] - own_n * real.means) / rest_n
    rest_variance = squares[context] - own_square - rest_n * rest_mean**2
    rest_variance = np.maximum(rest_variance, 0) / np.maximum(rest_n - 1, 1)
    own_variance = np.where(own_n > 1, real.variances, rest_variance)
    error = np.sqrt(own_variance / own_n + rest_variance / rest_n)
    # Remainders after subtracting equal sums above are rounding errors.
    error[error**2 <= 1e-12 * (own_square / own_n + 1e-300)] = 0
    t = np.zeros_like(error)
    np.divide(np.abs(real.means - rest_mean), error, out=t, where=error > 0)
    low, high = t.min(axis=1, keepdims=True), t.max(axis=1, keepdims=True)
    return ((t - low) / np.where(high > low, high - low, 1)) ** 2


def _context_moments(*parts: Profiles) -> tuple[NDArray[np.int64], Values, Values]:
    """Number of cells, sums and sums of squares of each context over all rows and control cells."""
    first = parts[0]

    def moments(n: NDArray[np.int64], mean: Values, variance: Values) -> tuple[Values, Values]:
        count = n[:, None]
        return count * mean, np.maximum(count - 1, 0) * variance + count * mean**2

    n = first.n_controls.copy()
    total, squares = moments(n, first.control_means, first.control_variances)
    for part in parts:
        np.add.at(n, part.contexts, part.n_cells)
        sums, sums_of_squares = moments(part.n_cells, part.means, part.variances)
        np.add.at(total, part.contexts, sums)
        np.add.at(squares, part.contexts, sums_of_squares)
    return n, total, squares
