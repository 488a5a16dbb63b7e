"""Dissimilarity of a cell to the training cells, from its expression.

The probabilities of a classifier are not informative: a cell of a type that was absent from training often gets one of
the other labels with a probability near 1. The distance to the training cells is, and it is computed from expression,
since fine-tuned embeddings keep little more than the differences between classes (benchmarks/unknown_types.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from scgalore.data.expression import TARGET_SUM
from scgalore.errors import DataError

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray

    from scgalore.data.cells import TokenCells
    from scgalore.data.expression import LogExpression

__all__ = ["Novelty"]

N_GENES = 2000
"""Maximum number of genes to compare: those of the highest variance."""
N_COMPONENTS = 30
MOST_CELLS = 4096
"""Maximum number of training cells to use."""
CHUNK = 512
MOST_DEVIATIONS = 10.0
"""Standardised expression is clipped to this number of standard deviations."""
SHRINKAGE = 1e-3
"""Fraction of the mean variance added to each variance, so that the covariance can be inverted."""


@dataclass(frozen=True)
class Novelty:
    """Statistics of training cells that a new cell is compared with.

    Expression is normalised to 10,000 counts over the genes that model and data have in common and log-transformed;
    genes are scaled to mean 0 and variance 1. The novelty is the mean of two terms, each divided by its mean over the
    training cells: the squared Mahalanobis distance to the nearest class, in 30 principal components and with a
    covariance shared by the classes
    :cite:p:`Lee2018`, and the squared norm of the residual of the components.

    Attributes
    ----------
    tokens
        Token ids of the genes of the training data, int64 ``(n_genes,)``.
    share
        Mean fraction of a training cell's counts, float32 ``(n_genes,)``.
    compared
        Positions of the compared genes, int64 ``(n_compared,)``.
    mean, std
        Mean and standard deviation of their log-normalised expression, float32 ``(n_compared,)``.
    components
        Orthonormal components, float32 ``(n_components, n_compared)``.
    whitening
        Whitening matrix of the shared covariance of the components, float32 ``(n_components, n_components)``.
    centroids
        Mean of each class after whitening, float32 ``(n_classes, n_components)``.
    scale
        Means of the two terms over the training cells, float32 ``(2,)``.
    """

    tokens: NDArray[np.int64] = field(repr=False)
    share: NDArray[np.float32] = field(repr=False)
    compared: NDArray[np.int64] = field(repr=False)
    mean: NDArray[np.float32] = field(repr=False)
    std: NDArray[np.float32] = field(repr=False)
    components: NDArray[np.float32] = field(repr=False)
    whitening: NDArray[np.float32] = field(repr=False)
    centroids: NDArray[np.float32] = field(repr=False)
    scale: NDArray[np.float32] = field(repr=False)

    @classmethod
    def fit(cls, cells: TokenCells, rows: NDArray[np.int64], codes: NDArray[np.int64]) -> Self | None:
        """Compute statistics of the training cells.

        Parameters
        ----------
        cells
            Cells that include the training cells.
        rows
            Row numbers of the training cells; of more than 4,096, evenly spaced ones are used.
        codes
            Class of each cell, int64 ``(n_obs,)``.

        Returns
        -------
        ``None`` if there are too few cells (fewer than twenty in addition to one per class), or the matrix contains
        neither counts nor log-normalised values.
        """
        if len(rows) > MOST_CELLS:
            rows = rows[np.linspace(0, len(rows) - 1, MOST_CELLS).round().astype(np.int64)]
        _, classes = np.unique(codes[rows], return_inverse=True)
        n_classes = int(classes.max(initial=-1)) + 1
        if len(rows) < 20 + n_classes:
            return None
        columns = np.flatnonzero(cells.match.token_ids >= 0)
        try:
            shares = _shares(cells.expression(), rows, columns)
        except DataError:
            return None
        share = np.asarray(shares.mean(axis=0), dtype=np.float64).ravel()
        logged = _logged(shares)
        mean = np.asarray(logged.mean(axis=0), dtype=np.float64).ravel()
        variance = np.asarray(logged.multiply(logged).mean(axis=0), dtype=np.float64).ravel() - mean**2
        compared = np.sort(np.argsort(-variance, kind="stable")[:N_GENES])
        compared = compared[variance[compared] > 0]
        if len(compared) < 2:
            return None
        mean, std = mean[compared], np.sqrt(variance[compared])
        z = _standardised(logged[:, compared].toarray(), mean, std)
        components = _components(z, min(N_COMPONENTS, len(compared) - 1, (len(rows) - n_classes) // 2))
        inside = z @ components.T
        centres = np.stack([inside[classes == code].mean(axis=0) for code in range(n_classes)])
        within = inside - centres[classes]
        covariance = within.T @ within / (len(rows) - n_classes)
        variances, axes = np.linalg.eigh(covariance)
        whitening = axes / np.sqrt(variances.clip(0) + SHRINKAGE * variances.mean() + 1e-12)
        found = cls(
            tokens=cells.match.token_ids[columns].astype(np.int64),
            share=_float32(share),
            compared=compared,
            mean=_float32(mean),
            std=_float32(std),
            components=_float32(components),
            whitening=_float32(whitening),
            centroids=_float32(centres @ whitening),
            scale=np.ones(2, dtype=np.float32),
        )
        return replace(found, scale=_float32(np.maximum(found._terms(z).mean(axis=0), 1e-6)))

    def present(self, cells: TokenCells) -> float:
        """Fraction of the training cells' counts in genes measured in these cells."""
        return float(self.share[np.isin(self.tokens, cells.match.token_ids)].sum())

    def of(self, cells: TokenCells, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Novelty of cells, float32 ``(n,)``: about 1 for a cell like those of training, more for others.

        Parameters
        ----------
        cells
            Cells with the vocabulary of the training cells. Missing genes are set to their mean.
        rows
            Row numbers; by default all cells.

        Raises
        ------
        DataError
            If their matrix contains neither counts nor log-normalised values.
        """
        expression = cells.expression()
        rows = np.arange(cells.n_obs) if rows is None else rows
        position = {int(token): column for column, token in enumerate(cells.match.token_ids) if token >= 0}
        columns = np.array([position.get(int(token), -1) for token in self.tokens])
        measured = columns >= 0
        total = float(self.share[measured].sum())
        place = np.cumsum(measured) - 1
        kept = measured[self.compared]
        found = np.empty(len(rows), dtype=np.float32)
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            # Fewer genes have fewer counts: scale to those of the training cells in the same genes.
            logged = _logged(_shares(expression, chunk, columns[measured]), total)
            z = np.zeros((len(chunk), len(self.compared)), dtype=np.float32)
            dense = logged[:, place[self.compared[kept]]].toarray()
            z[:, kept] = _standardised(dense, self.mean[kept], self.std[kept])
            found[start : start + CHUNK] = (self._terms(z) / self.scale).mean(axis=1)
        return found

    def _terms(self, z: NDArray[np.floating]) -> NDArray[np.float32]:
        """Squared distance to the nearest class, and squared norm of the residual, float32 ``(n, 2)``."""
        inside = z @ self.components.T
        at = inside @ self.whitening
        distance = ((at[:, None] - self.centroids[None]) ** 2).sum(axis=2).min(axis=1)
        rest = (z**2).sum(axis=1) - (inside**2).sum(axis=1)
        return np.stack([distance, rest.clip(0)], axis=1).astype(np.float32)

    def to_bytes(self) -> bytes:
        """Content of a safetensors file: at most about 0.3 MB, plus 12 bytes per gene of the training data."""
        return save({one.name: np.ascontiguousarray(getattr(self, one.name)) for one in fields(self)})

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Rebuild from :meth:`to_bytes`; raises ``ValueError`` for anything else."""
        try:
            arrays = {one.name: load(content)[one.name] for one in fields(cls)}
        except (KeyError, SafetensorError) as error:
            msg = f"it does not contain statistics of training cells: {error!r}"
            raise ValueError(msg) from error
        found = cls(**arrays)
        n, d = len(found.compared), len(found.whitening)
        shapes = {"share": found.tokens.shape, "mean": (n,), "std": (n,), "components": (d, n), "whitening": (d, d)}
        shapes |= {"centroids": (len(found.centroids), d), "scale": (2,)}
        wrong = [name for name, shape in shapes.items() if arrays[name].shape != shape]
        inside = ((found.compared >= 0) & (found.compared < len(found.tokens))).all()
        if wrong or not inside or not all(np.isfinite(array).all() for array in arrays.values()):
            msg = f"its arrays are inconsistent or not finite: {wrong}"
            raise ValueError(msg)
        return found


def _float32(x: NDArray[np.floating]) -> NDArray[np.float32]:
    """Convert to contiguous float32, as after loading: sums are then rounded identically before and after saving."""
    return np.ascontiguousarray(x, dtype=np.float32)


def _shares(expression: LogExpression, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> sp.csr_matrix:
    """Fraction of each cell's counts in the given columns, float64 CSR ``(n, n_columns)``."""
    counts = expression.linear(expression.matrix.rows(rows))[:, columns].astype(np.float64)
    depth = np.asarray(counts.sum(axis=1)).ravel()
    counts.data /= np.repeat(np.where(depth > 0, depth, 1), np.diff(counts.indptr))
    return counts


def _logged(shares: sp.csr_matrix, total: float = 1.0) -> sp.csr_matrix:
    logged = shares.copy()
    logged.data = np.log1p(logged.data * (TARGET_SUM * total))
    return logged


def _standardised(
    x: NDArray[np.floating], mean: NDArray[np.floating], std: NDArray[np.floating]
) -> NDArray[np.float32]:
    return np.clip((x - mean) / std, -MOST_DEVIATIONS, MOST_DEVIATIONS).astype(np.float32)


def _components(z: NDArray[np.float32], n: int) -> NDArray[np.float64]:
    from sklearn.decomposition import PCA

    return PCA(n_components=n, random_state=0).fit(z).components_
