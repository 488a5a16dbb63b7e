"""Silhouettes :cite:p:`Rousseeuw1987` of labels, and of batches within each label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["batch_mixing", "cosine_silhouettes", "silhouettes"]

BLOCK = 2**23
"""Maximum number of distances in memory."""


def silhouettes(x: NDArray[np.float64], codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Silhouette of each cell by Euclidean distance, as :func:`sklearn.metrics.silhouette_samples`, in bounded memory.

    Parameters
    ----------
    x
        Embedding, ``(n_obs, n_dims)``.
    codes
        Group of each cell, from 0, at least two.

    Returns
    -------
    float64 ``(n_obs,)`` from -1 to 1; 0 for the only cell of a group.
    """
    x = x - x.mean(axis=0)  # centring makes distances from differences of squares more accurate
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
    """Silhouette of each cell by cosine distance, relative to the mean distance to all cells of other groups.

    The sum of cosine distances to the cells of a group is their number minus the product with the sum of their unit
    vectors, so pairs of cells need not be compared.

    Parameters
    ----------
    x
        Embedding, ``(n_obs, n_dims)``.
    codes
        Group of each cell, from 0, at least two.

    Returns
    -------
    float64 ``(n_obs,)``; 0 for the only cell of a group.
    """
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    unit = np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)
    members = np.eye(codes.max() + 1)[codes]
    sizes = members.sum(axis=0)
    sums = sizes - unit @ (unit.T @ members)
    rows = np.arange(len(x))
    sums[rows, codes] -= 1 - np.einsum("cd,cd->c", unit, unit)  # distance to itself is 0, also for a zero vector
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
        Batch and label of each cell, from 0.
    silhouettes_of
        ``"euclidean"`` is the classic ASW of batches :cite:p:`Luecken2022`, relative to the nearest other batch;
        ``"cosine"`` is BRAS :cite:p:`Rautenstrauch2025`, relative to all other batches.

    Returns
    -------
    Value from 0 to 1; NaN if no label has cells of two batches, with at least two of one of them.
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
    """Mean distance of each cell to the other cells of its group; 0 without others."""
    sizes = np.bincount(codes)[codes]
    return sums[np.arange(len(codes)), codes] / np.maximum(sizes - 1, 1)


def _silhouettes(own: NDArray[np.float64], other: NDArray[np.float64], codes: NDArray[np.int64]) -> NDArray[np.float64]:
    largest = np.maximum(own, other)
    found = np.divide(other - own, largest, out=np.zeros_like(own), where=largest > 0)
    found[np.bincount(codes)[codes] == 1] = 0
    return found
