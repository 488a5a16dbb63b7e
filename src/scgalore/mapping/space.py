"""Space in which cells are compared: half-whitened principal axes of the reference's embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np

from scgalore.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

__all__ = ["Space", "blocks"]

N_CELLS = 8192
"""Number of cells in memory at once."""
LEAST_VARIANCE = 1e-9
"""Axes with a smaller fraction of the largest variance are rounding errors."""


def blocks(n: int, size: int = N_CELLS) -> Iterator[slice]:
    """Consecutive slices of at most ``size`` that cover ``range(n)``."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


@dataclass(frozen=True, eq=False)
class Space:
    """Centre embeddings, project them to principal axes, and divide each by the square root of its standard deviation.

    Embeddings of cells share a large mean, and a few axes have most of the variance. Directions after centring and
    half-whitening separate cell types better than distances in the embedding (benchmarks/mapping.py).

    Attributes
    ----------
    mean
        Mean embedding, float32 ``(d_model,)``.
    axes
        Principal axes, each divided by the square root of its standard deviation, float32 ``(d_model, n_components)``.
    """

    mean: NDArray[np.float32] = field(repr=False)
    axes: NDArray[np.float32] = field(repr=False)

    @classmethod
    def fit(cls, embedding: NDArray[np.float32], n_components: int | None) -> Self:
        """Compute the axes; the embeddings are read twice, in blocks.

        Parameters
        ----------
        embedding
            Embeddings, float32 ``(n_obs, d_model)``.
        n_components
            Maximum number of axes; ``None`` keeps all.

        Raises
        ------
        DataError
            If all embeddings are the same.
        """
        n, d = embedding.shape
        mean = sum((embedding[part].sum(axis=0, dtype=np.float64) for part in blocks(n)), np.zeros(d)) / max(n, 1)
        covariance = np.zeros((d, d))
        for part in blocks(n):
            centred = embedding[part] - mean
            covariance += centred.T @ centred
        variances, vectors = np.linalg.eigh(covariance / max(n - 1, 1))
        variances, vectors = variances[::-1], vectors[:, ::-1]
        kept = variances > max(LEAST_VARIANCE * variances[0], np.finfo(np.float32).tiny)
        if n < 2 or not kept.any():
            msg = f"The {n:,} cells of the reference all have the same embedding, so queries cannot be compared with them. Check the expression of these cells."
            raise DataError(msg)
        kept[d if n_components is None else n_components :] = False
        # The sign of an axis is arbitrary; its largest entry is made positive, so that files are reproducible.
        axes = vectors[:, kept]
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
        return cls(mean.astype(np.float32), (axes / variances[kept] ** 0.25).astype(np.float32))

    @property
    def n_components(self) -> int:
        """Number of axes."""
        return self.axes.shape[1]

    def __call__(self, embedding: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Direction of each cell, float32 ``(n_obs, n_components)`` with unit norm, and its distance to the mean, ``(n_obs,)``.

        Parameters
        ----------
        embedding
            Embeddings by the model of the reference, ``(n_obs, d_model)``.
        """
        inside = (np.asarray(embedding, dtype=np.float32) - self.mean) @ self.axes
        norms = np.linalg.norm(inside, axis=1)
        return inside / np.maximum(norms, np.finfo(np.float32).tiny)[:, None], norms
