"""Silhouettes :cite:p:`Rousseeuw1987` of labels, and of batches within each label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["batch_mixing", "cosine_silhouettes", "silhouettes"]

BLOCK = 2**23
"""Distances that are in memory at once."""


def silhouettes(x: NDArray[np.float64], codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Silhouette of each cell by Euclidean distance, as :func:`sklearn.metrics.silhouette_samples`; in bounded memory.

    Parameters
    ----------
    x
        Embedding, ``(n_obs, n_dims)``.
    codes
        Group of each cell, all from 0 on, at least two of them.

    Returns
    -------
    float64 ``(n_obs,)`` from -1 to 1; 0 for a cell that is alone in its group.
    """
    x = x - x.mean(axis=0)  # distances from the difference of squares keep more digits
    squares = np.einsum("cd,cd->c", x, x)
    members = np.eye(codes.max() + 1)[codes]
    sums = np.empty(members.shape)
    step = max(1, BLOCK // len(x))
    for start in range(0, len(x), step):
        here = slice(start, start + step)
        distances = x[here] @ x.T
        distances *= -2
        distances += squares[here, None]
        distances += squares
        np.maximum(distances, 0, out=distances)
        rows = np.arange(len(distances))
        distances[rows, start + rows] = 0  # to itself, without rounding
        np.sqrt(distances, out=distances)
        sums[here] = distances @ members
    own, others = _within(sums, codes), sums / members.sum(axis=0)
    others[np.arange(len(x)), codes] = np.inf
    return _silhouettes(own, others.min(axis=1), codes)


def cosine_silhouettes(x: NDArray[np.float64], codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Silhouette of each cell by cosine distance, against the mean distance to all cells of other groups.

    A sum of cosine distances to the cells of a group is their number less the product with the sum of their unit vectors,
    so no pair of cells is ever compared.

    Parameters
    ----------
    x
        Embedding, ``(n_obs, n_dims)``.
    codes
        Group of each cell, all from 0 on, at least two of them.

    Returns
    -------
    float64 ``(n_obs,)``; 0 for a cell that is alone in its group.
    """
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    unit = np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)
    members = np.eye(codes.max() + 1)[codes]
    sizes = members.sum(axis=0)
    sums = sizes - unit @ (unit.T @ members)
    rows = np.arange(len(x))
    sums[rows, codes] -= 1 - np.einsum("cd,cd->c", unit, unit)  # to itself: 0, also for a vector of zeros
    others = (sums.sum(axis=1) - sums[rows, codes]) / (len(x) - sizes[codes])
    return _silhouettes(_within(sums, codes), others, codes)


def batch_mixing(
    x: NDArray[np.float64],
    batches: NDArray[np.int64],
    labels: NDArray[np.int64],
    silhouettes_of: Literal["euclidean", "cosine"] = "euclidean",
) -> float:
    """Mean over labels of ``1 - |silhouette|`` of the batches within the label; 1 is mixed.

    Parameters
    ----------
    x
        Embedding, ``(n_obs, n_dims)``.
    batches, labels
        Batch and label of each cell, from 0 on.
    silhouettes_of
        ``"euclidean"`` is the classic ASW of batches :cite:p:`Luecken2022`, against the nearest other batch; ``"cosine"`` is
        BRAS :cite:p:`Rautenstrauch2025`, against all other batches.

    Returns
    -------
    From 0 to 1; NaN where no label has cells of two batches, and two of one of them.
    """
    of = {"euclidean": silhouettes, "cosine": cosine_silhouettes}[silhouettes_of]
    scores = []
    for label in range(labels.max() + 1):
        cells = np.flatnonzero(labels == label)
        present, codes = np.unique(batches[cells], return_inverse=True)
        if 1 < len(present) < len(cells):
            scores.append(np.mean(1 - np.abs(of(x[cells], codes))))
    return float(np.mean(scores)) if scores else np.nan


def _within(sums: NDArray[np.float64], codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean distance of each cell to the others of its group; 0 without others."""
    sizes = np.bincount(codes)[codes]
    return sums[np.arange(len(codes)), codes] / np.maximum(sizes - 1, 1)


def _silhouettes(own: NDArray[np.float64], other: NDArray[np.float64], codes: NDArray[np.int64]) -> NDArray[np.float64]:
    largest = np.maximum(own, other)
    found = np.divide(other - own, largest, out=np.zeros_like(own), where=largest > 0)
    found[np.bincount(codes)[codes] == 1] = 0
    return found
