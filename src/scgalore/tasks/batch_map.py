"""Batch-corrected components of expression and a network's embedding, computed by integrated models."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from scgalore.data.cells import gene_names
from scgalore.data.expression import LogExpression
from scgalore.genes.identifiers import standardise
from scgalore.integration.correction import Correction
from scgalore.tasks.folds import sample
from scgalore.tasks.linear_model import PRIOR_FILE, LinearModel, read_part

if TYPE_CHECKING:
    from pathlib import Path

    import scipy.sparse as sp
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore.data.reading import Reading

__all__ = ["MAP_FILE", "BatchMap", "read_map"]

MAP_FILE = "batch_map.safetensors"

N_GENES = 2_000
"""Number of genes for principal components: those most variable within batches."""
N_PRIOR = 50
"""Number of principal components of expression."""
N_COMPONENTS = 50
"""Number of components of the result. Fewer leave stronger batch effects if batches differ much (docs/benchmarks/integration.md)."""
NETWORK_SHARE, LABELLED_SHARE = 0.25, 1.0
"""Standard deviation of the network's embedding within batches, relative to expression: for a network trained on
labels, and for others, which separate cell types less well than expression if they were trained on few cells."""
MAX_CELLS = 50_000
"""Maximum number of cells for fitting; of more, a sample stratified by batch."""


@dataclass(frozen=True, eq=False)
class BatchMap:
    """Principal components of expression and the network's embedding, rotated together and corrected for the batch.

    Attributes
    ----------
    axes
        Loadings of the joint components on the principal components of expression, if used, and the network's
        embedding, float64 ``(n_inputs, n_components)``.
    offset
        Offset of the components, float64 ``(n_components,)``.
    prior
        Principal components of expression; ``None`` if only the network's embedding is used.
    correction
        Batch correction; ``None`` applies none.
    """

    axes: NDArray[np.float64]
    offset: NDArray[np.float64]
    prior: LinearModel | None
    correction: Correction | None

    @classmethod
    def fit(
        cls,
        adata: AnnData,
        reading: Reading,
        batches: NDArray[np.int64],
        rows: NDArray[np.int64],
        embedding: NDArray[np.float32],
        labels: NDArray[np.int64] | None = None,
        *,
        prior: bool,
        correct: bool,
        seed: int,
    ) -> Self:
        """Fit components and correction.

        Parameters
        ----------
        adata, reading
            Cells, and how to read them.
        batches
            Batch of each cell, int64 ``(n_obs,)``.
        rows
            Cells to fit to, from :func:`fitted_rows`.
        embedding
            The network's embedding of these cells, float32 ``(len(rows), d_model)``.
        labels
            Class of these cells, -1 without one, int64 ``(len(rows),)``; batches are compared within classes.
        prior
            Whether to use expression.
        correct
            Whether to correct for batches.
        seed
            Seed for the clusters.
        """
        codes, model = batches[rows], None
        share = NETWORK_SHARE if labels is None else LABELLED_SHARE
        inputs = [(embedding.astype(np.float64), share if prior else 1.0)]
        if prior:
            model, of_expression = _principal_components(adata, reading, rows, codes)
            inputs.insert(0, (of_expression, 1.0))
        scales = [share / _spread(x, codes) for x, share in inputs]
        scaled = np.hstack([scale * x for scale, (x, _) in zip(scales, inputs, strict=True)])
        axes = _axes(_scatter(scaled, codes), min(N_COMPONENTS, len(rows) - 1))
        offset = -scaled.mean(axis=0) @ axes
        axes = (
            axes * np.concatenate([np.full(x.shape[1], s) for s, (x, _) in zip(scales, inputs, strict=True)])[:, None]
        )
        found = cls(axes, offset, model, None)
        if not correct:
            return found
        x = np.hstack([x for x, _ in inputs]) @ axes + offset
        return replace(found, correction=Correction.fit(x, codes, labels, seed=seed))

    @property
    def n_prior(self) -> int:
        """Number of principal components of expression, 0 if unused."""
        return 0 if self.prior is None else len(self.prior.intercept)

    def components(self, embedding: NDArray[np.float32], adata: AnnData, reading: Reading) -> NDArray[np.float64]:
        """Uncorrected components of cells, float64 ``(n_obs, n_components)``.

        Parameters
        ----------
        embedding
            The network's embedding.
        adata, reading
            The same cells, and how to read them.
        """
        parts = [embedding] if self.prior is None else [self.prior.predict(adata, reading), embedding]
        return np.hstack(parts).astype(np.float64) @ self.axes + self.offset

    def corrected(self, x: NDArray[np.float64], batches: NDArray[np.int64]) -> NDArray[np.float32]:
        """Batch-corrected components, float32 ``(n_obs, n_components)``.

        Parameters
        ----------
        x
            Result of :meth:`components`.
        batches
            Code of each cell's batch, int64 ``(n_obs,)``. Codes beyond the fitted ones are new batches, whose
            shifts are estimated from these cells.
        """
        correction = self.correction
        if correction is None:
            return x.astype(np.float32)
        return self.extended(x, batches).correction.apply(x, batches).astype(np.float32)  # type: ignore[union-attr]

    def extended(self, x: NDArray[np.float64], batches: NDArray[np.int64]) -> Self:
        """Return a map with the shifts of new batches; parameters as for :meth:`corrected`."""
        correction = self.correction
        if correction is None:
            return self
        for batch in range(correction.n_batches, int(batches.max(initial=-1)) + 1):
            correction = correction.with_batch(x[batches == batch])
        return replace(self, correction=correction)

    def lasting_arrays(self) -> list[NDArray[Any]]:
        """Arrays that are not changed by adding batches."""
        prior = [] if self.prior is None else [np.frombuffer(self.prior.to_bytes(), dtype=np.uint8)]
        correction = self.correction
        fitted = [] if correction is None else [correction.centres, correction.sums, correction.weights]
        return [self.axes, self.offset, *prior, *fitted]

    def files(self) -> dict[str, bytes]:
        """Contents of safetensors files by name."""
        arrays = {} if self.correction is None else self.correction.arrays()
        content = {"axes": self.axes, "offset": self.offset, **arrays}
        prior = {} if self.prior is None else {PRIOR_FILE: self.prior.to_bytes()}
        return {MAP_FILE: save({name: np.ascontiguousarray(array) for name, array in content.items()}), **prior}


def fitted_rows(known: NDArray[np.int64], batches: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """Sorted rows of cells for fitting a map: all, or a sample stratified by batch.

    Parameters
    ----------
    known
        Rows of the available cells.
    batches
        Batch of each cell.
    seed
        Seed for the sample.
    """
    return sample(np.sort(known), batches, MAX_CELLS, np.random.default_rng(seed))


def read_map(folder: Path, *, n_batches: int, n_prior: int) -> BatchMap | None:
    """Read :meth:`BatchMap.files` from a folder; ``None`` if they do not exist.

    Parameters
    ----------
    folder
        Folder of the model.
    n_batches
        Expected number of batches.
    n_prior
        Expected number of principal components of expression, 0 if unused.

    Raises
    ------
    WeightsError
        If a file is damaged.
    """
    found = read_part(folder / MAP_FILE, partial(_from_bytes, n_batches=n_batches))
    if found is None or n_prior == 0:
        return found
    return replace(found, prior=read_part(folder / PRIOR_FILE, partial(LinearModel.from_bytes, n_outputs=n_prior)))


def _from_bytes(content: bytes, *, n_batches: int) -> BatchMap:
    try:
        arrays = load(content)
        axes, offset = arrays["axes"], arrays["offset"]
        if (
            axes.ndim != 2
            or offset.shape != axes.shape[1:]
            or not (np.isfinite(axes).all() and np.isfinite(offset).all())
        ):
            msg = f"its components have shapes {axes.shape} and {offset.shape}, or are not finite"
            raise ValueError(msg)
        correction = None
        if "centres" in arrays:
            correction = Correction.from_arrays(arrays, n_batches=n_batches, n_dims=axes.shape[1])
    except (KeyError, SafetensorError) as error:
        msg = f"it does not contain a batch map: {error!r}"
        raise ValueError(msg) from error
    return BatchMap(axes, offset, None, correction)


def _principal_components(
    adata: AnnData, reading: Reading, rows: NDArray[np.int64], batches: NDArray[np.int64]
) -> tuple[LinearModel, NDArray[np.float64]]:
    """Principal axes of log-normalised expression within batches, and the components of the cells."""
    expression = LogExpression.from_adata(adata, reading, log_base=math.e)
    names = standardise(gene_names(adata, reading.gene_symbols), reading.species)
    _, unique = np.unique(names, return_index=True)  # first of several columns of one name
    x = expression.rows(rows)[:, unique]
    variance = _within_variance(x, batches)
    chosen = np.sort(np.argsort(-variance, kind="stable")[:N_GENES])
    x, unique = x[:, chosen], unique[chosen]
    dense = x.toarray().astype(np.float64) if len(rows) < len(chosen) else x
    axes = _axes(_scatter(dense, batches), min(N_PRIOR, len(rows) - 1))
    mean = np.asarray(x.mean(axis=0), dtype=np.float64).ravel()
    model = LinearModel.from_coefficients((names[i] for i in unique), x, axes, np.zeros(axes.shape[1]))
    return model, np.asarray(x @ axes - mean @ axes)


def _members(batches: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Batch indicators ``(n_batches, n)`` and numbers of cells, for batches with cells."""
    members = (np.unique(batches)[:, None] == batches).astype(np.float64)
    return members, members.sum(axis=1)


def _within_variance(x: sp.csr_matrix, batches: NDArray[np.int64]) -> NDArray[np.float64]:
    members, sizes = _members(batches)
    means = np.asarray(members @ x) / sizes[:, None]
    square = np.asarray(x.multiply(x).sum(axis=0), dtype=np.float64).ravel()
    return square - sizes @ np.square(means)


def _scatter(x: Any, batches: NDArray[np.int64]) -> NDArray[np.float64]:
    """Within-batch scatter matrix, ``(n_dims, n_dims)``."""
    members, sizes = _members(batches)
    means = np.asarray(members @ x) / sizes[:, None]
    product = x.T @ x
    product = product.toarray() if hasattr(product, "toarray") else product
    return np.asarray(product, dtype=np.float64) - (means * sizes[:, None]).T @ means


def _axes(scatter: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """The directions of largest variance, ``(n_dims, n)`` or fewer."""
    _, axes = np.linalg.eigh(scatter)
    return axes[:, ::-1][:, : max(n, 1)]


def _spread(x: NDArray[np.float64], batches: NDArray[np.int64]) -> float:
    """Standard deviation within batches, over all dimensions."""
    members, sizes = _members(batches)
    means = members @ x / sizes[:, None]
    variance = (np.square(x).sum() - sizes @ np.square(means).sum(axis=1)) / len(x)
    return math.sqrt(max(float(variance), 1e-12))
