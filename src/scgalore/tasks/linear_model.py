"""A linear model of expression, and its predictions for data that lack genes or are on another scale."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from scgalore import _logging as logg
from scgalore.data.cells import gene_names
from scgalore.data.expression import LogExpression
from scgalore.errors import WeightsError
from scgalore.genes.identifiers import standardise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import scipy.sparse as sp
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore.data.reading import Reading

    Array = NDArray[Any]
    Part = TypeVar("Part")

__all__ = ["PRIOR_FILE", "LinearModel", "MatchedGenes", "read_part"]

PRIOR_FILE = "prior.safetensors"

N_FACTORS = 20
"""Number of principal components of the training cells that missing genes are predicted from."""

LEAST_NOISE = 1e-3
"""Minimum variance of a gene that its factors leave, relative to the mean variance of the genes."""

MAX_CELLS = 2_000
"""Maximum number of cells to compute the principal components of."""

SAME_SCALE = (0.5, 2.0)
"""Sum of the expression relative to that of the training data, within which other data count as on the same scale."""


@dataclass(frozen=True)
class MatchedGenes:
    """Genes of a linear model in other data.

    Attributes
    ----------
    columns
        Column of each gene that is in the data, in the order of the model.
    present
        Whether each gene of the model is in the data, bool ``(n_genes,)``.
    factor
        Divisor that converts the expression to the scale of the training data.
    """

    columns: NDArray[np.int64] = field(repr=False)
    present: NDArray[np.bool_] = field(repr=False)
    factor: float

    def of(self, rows: sp.csr_matrix) -> sp.csr_matrix:
        """Select these genes of log-normalised cells, on the scale of the training data."""
        known = rows[:, self.columns]
        if self.factor != 1:
            known.data = np.log1p(np.expm1(known.data) / self.factor)
        return known


@dataclass(frozen=True, eq=False)
class LinearModel:
    """Coefficients on log-normalised expression.

    Attributes
    ----------
    genes
        Names of the genes: current symbols, if known.
    coef
        Coefficients, float32 ``(n_genes, n_outputs)``.
    intercept
        Intercepts, float32 ``(n_outputs,)``.
    mean
        Mean expression of the training cells, float32 ``(n_genes,)``, used for genes that are missing in other data.
    linear_mean
        Mean without the logarithm, float32 ``(n_genes,)``, used to detect the scale of other data.
    loadings, noise
        Factor model of the training cells: genes on their first principal components, scaled by the standard deviations of
        these, float32 ``(n_genes, n_factors)``, and the variance of each gene that they leave, float32 ``(n_genes,)``.
        Models of version 0.12.0 have no factors.
    """

    genes: tuple[str, ...] = field(repr=False)
    coef: NDArray[np.float32] = field(repr=False)
    intercept: NDArray[np.float32] = field(repr=False)
    mean: NDArray[np.float32] = field(repr=False)
    linear_mean: NDArray[np.float32] = field(repr=False)
    loadings: NDArray[np.float32] = field(repr=False)
    noise: NDArray[np.float32] = field(repr=False)

    @classmethod
    def from_coefficients(cls, genes: Iterable[str], x: sp.csr_matrix, coef: Array, intercept: Array) -> Self:
        """Make a model from coefficients.

        Parameters
        ----------
        genes
            Names of the genes.
        x
            Log-normalised expression of the training cells, ``(n, n_genes)``.
        coef
            Coefficients, ``(n_genes, n_outputs)``.
        intercept
            Outputs at the mean of ``x``, ``(n_outputs,)``.
        """
        mean = np.asarray(x.mean(axis=0), dtype=np.float64).ravel()
        linear = x.copy()
        linear.data = np.expm1(linear.data)
        arrays = (coef, intercept - mean @ coef, mean, np.asarray(linear.mean(axis=0)).ravel(), *_factors(x))
        return cls(tuple(genes), *(array.astype(np.float32) for array in arrays))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LinearModel) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    def predict(self, adata: AnnData, reading: Reading) -> NDArray[np.float32]:
        """Logits of the classes, or the predicted value, of each cell, float32 ``(n_obs, n_outputs)``.

        Parameters
        ----------
        adata
            Cells. Missing genes are predicted from the others by the factor model, and genes that the model does not
            have are ignored. If the sum of the shared genes is less than half or more than twice that of the training
            data, the expression is rescaled to it, with a warning.
        reading
            How to read the expression.

        Raises
        ------
        DataError
            If the expression is neither counts nor log-normalised.
        """
        expression = LogExpression.from_adata(adata, reading, log_base=math.e)
        return self.of_expression(expression, standardise(gene_names(adata, reading.gene_symbols), reading.species))

    def of_expression(self, expression: LogExpression, genes: list[str]) -> NDArray[np.float32]:
        """Predictions for expression whose columns have these names, standardised by :func:`~scgalore.genes.standardise`."""
        genes_read = self.matched(expression, genes)
        coef, intercept = self._for_genes(genes_read.present)
        parts = [np.zeros((0, len(self.intercept)), dtype=np.float32)]
        for _, rows in expression.chunks():
            parts.append((genes_read.of(rows) @ coef + intercept).astype(np.float32))
        return np.concatenate(parts)

    def _for_genes(self, present: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Coefficients and intercepts for data with some of the genes.

        The expected expression of the others is linear in that of these (the posterior mean of factor analysis; Bishop,
        Pattern Recognition and Machine Learning, 12.2.4), so it changes the coefficients.
        """
        mean, loadings = self.mean[present].astype(np.float64), self.loadings[present].astype(np.float64)
        weighted = loadings / self.noise[present, None]
        factors = np.linalg.solve(np.eye(loadings.shape[1]) + weighted.T @ loadings, weighted.T)
        added = factors.T @ (self.loadings[~present].T @ self.coef[~present])
        intercept = self.intercept + self.mean[~present] @ self.coef[~present] - mean @ added
        return (self.coef[present] + added).astype(np.float32), intercept.astype(np.float32)

    def matched(self, expression: LogExpression, genes: list[str]) -> MatchedGenes:
        """Match the genes of this model with expression whose columns have these names.

        Parameters
        ----------
        expression
            Expression of any cells.
        genes
            Name of each column.
        """
        place = {name: i for i, name in enumerate(self.genes)}
        found = np.array([place.get(name, -1) for name in genes])
        _, first = np.unique(found, return_index=True)
        columns = first[found[first] >= 0]  # the first of columns with the same name; in the order of the model
        present = np.zeros(len(self.genes), dtype=bool)
        present[found[columns]] = True
        return MatchedGenes(columns, present, self._scale(expression, columns, float(self.linear_mean[present].sum())))

    @staticmethod
    def _scale(expression: LogExpression, columns: Array, expected: float) -> float:
        """Divisor that converts expression to the scale of the training data; 1 if the scales agree."""
        some = (
            np.unique(np.linspace(0, expression.n_obs - 1, 1000).astype(np.int64)) if expression.n_obs else np.arange(0)
        )
        rows = expression.rows(some)[:, columns]
        factor = float(np.expm1(rows.data).sum()) / max(len(some), 1) / max(expected, 1e-12)
        if factor == 0 or expected == 0 or SAME_SCALE[0] < factor < SAME_SCALE[1]:
            return 1.0
        logg.warning(
            f"The expression of the genes of the linear model is {factor:.3g} times that of the training data, so it is divided by "
            "that for the model. Normalise both alike, or pass counts."
        )
        return factor

    def to_bytes(self) -> bytes:
        """Content of a safetensors file with this model."""
        arrays = {one.name: np.ascontiguousarray(getattr(self, one.name)) for one in fields(self)[1:]}
        return save({**arrays, "genes": np.frombuffer("\n".join(self.genes).encode(), dtype=np.uint8)})

    @classmethod
    def from_bytes(cls, content: bytes, n_outputs: int) -> Self:
        """Read the output of :meth:`to_bytes`; raises ``ValueError`` for other content, or another number of outputs."""
        try:
            arrays = load(content)
            genes = tuple(arrays["genes"].tobytes().decode().split("\n"))
            if "loadings" not in arrays:  # version 0.12.0
                arrays |= {"loadings": np.zeros((len(genes), 0), np.float32), "noise": np.ones(len(genes), np.float32)}
            found = cls(genes, *(arrays[one.name] for one in fields(cls)[1:]))
        except (KeyError, SafetensorError, UnicodeDecodeError) as error:
            msg = f"it holds no linear model: {error!r}"
            raise ValueError(msg) from error
        n = len(genes)
        n_factors = arrays["loadings"].shape[-1]
        shapes = {"coef": (n, n_outputs), "intercept": (n_outputs,), "mean": (n,), "linear_mean": (n,)}
        shapes |= {"loadings": (n, n_factors), "noise": (n,)}
        wrong = [name for name, shape in shapes.items() if arrays[name].shape != shape]
        floats = all(arrays[name].dtype == np.float32 and np.isfinite(arrays[name]).all() for name in shapes)
        if wrong or not floats or len(set(genes)) < n or not (arrays["noise"] > 0).all():
            msg = f"its arrays do not fit each other or are not finite numbers: {wrong}"
            raise ValueError(msg)
        return found


def _factors(x: sp.csr_matrix) -> tuple[Array, Array]:
    """Loadings and noise of :class:`LinearModel` for log-normalised cells."""
    from sklearn.decomposition import PCA

    some = np.unique(np.linspace(0, x.shape[0] - 1, MAX_CELLS).astype(np.int64))
    x = x[some].astype(np.float64)
    n_factors = min(N_FACTORS, min(x.shape) - 1)
    variance = np.asarray(x.multiply(x).mean(axis=0) - np.square(x.mean(axis=0))).ravel()
    loadings = np.zeros((x.shape[1], 0))
    if n_factors > 0 and variance.max() > 0:
        found = PCA(n_factors, svd_solver="arpack", random_state=0).fit(x)
        loadings = found.components_.T * np.sqrt(np.maximum(found.explained_variance_, 0))
    least = max(variance.mean() * LEAST_NOISE, np.finfo(np.float32).tiny)
    return loadings, np.maximum(variance - np.square(loadings).sum(axis=1), least)


def read_part(path: Path, read: Callable[[bytes], Part]) -> Part | None:
    """Read an optional file of a saved model; ``None`` if it does not exist.

    Parameters
    ----------
    path
        The file.
    read
        Function that parses the content, or raises ``ValueError``.

    Raises
    ------
    WeightsError
        If the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        return read(path.read_bytes())
    except ValueError as error:
        msg = f"{path} is damaged: {error}. Save the model again."
        raise WeightsError(msg) from error
