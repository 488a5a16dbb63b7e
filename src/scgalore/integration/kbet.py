"""kBET :cite:p:`Buttner2019` within each label, as in scib: whether neighbours of a cell are a random sample of the batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from scgalore.integration.neighbors import nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["acceptance", "diffusion_neighbors", "kbet_by_label"]

FEWEST_CELLS = 10
FEWEST_NEIGHBORS, MOST_NEIGHBORS = 10, 70
N_COMPONENTS = 100
USABLE = 0.75
ALPHA = 0.05
_DENSE = 500  # up to this number of cells, all eigenvectors are computed at once


def acceptance(indices: NDArray[np.int64], batches: NDArray[np.int64]) -> float:
    """Fraction of cells whose neighbours are a random sample of the batches by a chi-squared test.

    Parameters
    ----------
    indices
        Neighbours of each cell, ``(n_obs, k)``.
    batches
        Batch of each cell, from 0.
    """
    from scipy.stats import chi2  # slow to import

    expected = np.bincount(batches) / len(batches) * indices.shape[1]
    observed = np.stack([(batches[indices] == batch).sum(axis=1) for batch in range(len(expected))], axis=1)
    statistic = (np.square(observed - expected) / expected).sum(axis=1)
    return float(np.mean(chi2.sf(statistic, len(expected) - 1) >= ALPHA))


def kbet_by_label(
    graph: sp.csr_matrix, batches: NDArray[np.int64], labels: NDArray[np.int64], *, seed: int
) -> NDArray[np.float64]:
    """Acceptance within each label.

    The neighbourhood size is a quarter of the mean number of cells per batch, between 10 and 70. Neighbours are found
    in a diffusion map of the label's subgraph, so that all cells have the same number of neighbours in every graph.

    Parameters
    ----------
    graph
        Connectivities of all cells, symmetric.
    batches, labels
        Batch and label of each cell, from 0.
    seed
        Seed for the start vector of the eigensolver; the result depends on it only by rounding.

    Returns
    -------
    float64 ``(n_labels,)`` from 0 to 1; NaN for a label with fewer than 10 cells, or in one batch only. 0 if the
    label's subgraph falls into components too small for a neighbourhood.
    """
    scores = np.full(labels.max() + 1, np.nan)
    for label in range(len(scores)):
        cells = np.flatnonzero(labels == label)
        sizes = np.bincount(batches[cells])
        sizes = sizes[sizes > 0]
        if len(cells) < FEWEST_CELLS or len(sizes) == 1:
            continue
        k = min(MOST_NEIGHBORS, max(FEWEST_NEIGHBORS, int(sizes.mean() / 4)))
        scores[label] = _of_label(graph[cells][:, cells], batches[cells], k, seed)
    return scores


def _of_label(graph: sp.csr_matrix, batches: NDArray[np.int64], k: int, seed: int) -> float:
    """Acceptance in one graph of cells; 0 if too many cells are in small components."""
    n_pieces, piece = connected_components(graph, directed=False)
    sizes = np.bincount(piece)
    large = np.flatnonzero((sizes >= 3 * k) | (n_pieces == 1))
    used = np.flatnonzero(np.isin(piece, large))
    present, codes = np.unique(batches[used], return_inverse=True)
    if len(used) < USABLE * len(batches) or len(present) == 1:
        return 0.0
    # Diffusion stays within a connected component.
    indices = np.empty((len(used), min(k + 1, sizes[large].min())), dtype=np.int64)
    for number in large:
        here = np.flatnonzero(piece[used] == number)
        cells = used[here]
        indices[here] = here[diffusion_neighbors(graph[cells][:, cells], indices.shape[1], seed=seed)]
    return acceptance(indices, codes)


def diffusion_neighbors(graph: sp.csr_matrix, k: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Nearest cells by diffusion distance in a connected graph.

    Parameters
    ----------
    graph
        Connectivities, symmetric.
    k
        Number of neighbours, including the cell itself.
    seed
        Seed for the start vector of the eigensolver.

    Returns
    -------
    int64 ``(n_obs, k)``.
    """
    n_obs = graph.shape[0]
    # Density normalisation as in Coifman et al. (2005).
    density = np.asarray(graph.sum(axis=0), dtype=np.float64).ravel()
    kernel = sp.diags_array(1 / density) @ graph.astype(np.float64) @ sp.diags_array(1 / density)
    root = 1 / np.sqrt(np.asarray(kernel.sum(axis=0)).ravel())
    transitions = sp.csr_matrix(sp.diags_array(root) @ kernel @ sp.diags_array(root))
    n_components = min(N_COMPONENTS, n_obs - 1)
    if n_obs <= _DENSE:
        values, vectors = np.linalg.eigh(transitions.toarray())
        largest = np.argsort(-np.abs(values), kind="stable")[:n_components]
        values, vectors = values[largest], vectors[:, largest]
    else:
        from scipy.sparse.linalg import eigsh

        start = np.random.default_rng(seed).normal(size=n_obs)
        values, vectors = eigsh(transitions, k=n_components, which="LM", v0=start)
    # Sum over all numbers of steps; the first vector (density) has eigenvalue 1 and would dominate the others.
    trivial = values.argmax()
    values[trivial] = 0
    weights = values / (1 - values)
    weights[trivial] = 1
    return nearest(vectors * weights, k).indices
