"""Mixed model with shrunken additive effects of genes.

The effect of a perturbation with ``k`` genes is ``k mu + sum of u_g + interaction + noise``, with ``u_g`` of variance
``gene``, interactions (of several genes only) of variance ``interaction`` and the residual of variance ``residual``, in
addition to the known sampling variance. Variances are estimated by restricted maximum likelihood and shared by all
measured genes; ``mu`` is the generalised least squares estimate and ``u_g`` the best linear unbiased prediction
(Henderson, Biometrics 1975, doi:10.2307/2529430). A gene that was not perturbed in training has the effect ``mu``, a
well measured one nearly its measured effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import linalg

from scgalore.perturb.labels.parsing import canonical_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["fit_mixed"]

START = (0.4, 0.1, 0.4)  # variances of genes, residuals and interactions, as fractions of the variance of all effects


@dataclass(frozen=True)
class _Design:
    """Genes of each perturbation, ``(n, n_perturbed)``, their number, and the known sampling variance."""

    genes: tuple[str, ...]
    present: NDArray[np.float64]
    n_genes: NDArray[np.float64]
    noise: NDArray[np.float64]

    @classmethod
    def of(cls, perturbed: list[tuple[str, ...]], noise: NDArray[np.float64]) -> _Design:
        genes = tuple(sorted({gene for part in perturbed for gene in part}))
        present = np.array([[gene in part for gene in genes] for part in perturbed], dtype=np.float64)
        return cls(genes, present, present.sum(axis=1), noise)

    @property
    def several(self) -> NDArray[np.bool_]:
        """Perturbations of more than one gene."""
        return self.n_genes > 1

    def covariance(self, variances: NDArray[np.float64]) -> NDArray[np.float64]:
        gene, residual, interaction = variances
        diagonal = self.noise + residual + interaction * self.several
        return gene * self.present @ self.present.T + np.diag(diagonal)

    def variances(self, effects: NDArray[np.float64]) -> NDArray[np.float64]:
        """Variances of genes, residuals and interactions."""
        from scipy.optimize import minimize  # slow to import

        scale = max(float(effects.var()), 1e-12)
        # With singles only, gene effects and residuals are confounded: everything but sampling noise is attributed to
        # the gene.
        n_free = 3 if self.several.any() else 1
        products = effects @ effects.T

        def spread(free: NDArray[np.float64]) -> NDArray[np.float64]:
            return scale * np.concatenate((np.exp(free), np.zeros(3 - n_free)))

        def loss(free: NDArray[np.float64]) -> float:
            if np.abs(free).max() > 12:  # the likelihood is flat in this range
                return np.inf
            return self._deviance(spread(free), products, effects.shape[1])

        start = np.log(START[:n_free])
        if len(self.n_genes) < 3:
            return spread(start)
        found = minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-3})
        return spread(found.x)

    def _deviance(self, variances: NDArray[np.float64], products: NDArray[np.float64], n: int) -> float:
        """Twice the negative restricted log-likelihood for ``n`` measured genes with ``products`` summed over them."""
        covariance = self.covariance(variances)
        covariance[np.diag_indices_from(covariance)] += 1e-12 * np.trace(covariance)
        factor, failed = linalg.lapack.dpotrf(covariance, lower=1)
        if failed:
            return np.inf
        # Inverting takes a third of the time of solving for all products.
        lower = np.tril(linalg.lapack.dpotri(factor, lower=1)[0])
        inverse = lower + lower.T
        inverse[np.diag_indices_from(inverse)] /= 2
        weighted = inverse @ self.n_genes
        information = float(self.n_genes @ weighted)
        explained = float(weighted @ products @ weighted) / information
        quadratic = float(np.vdot(inverse, products)) - explained
        return n * (2 * float(np.log(np.diag(factor)).sum()) + np.log(information)) + quadratic

    def projection(self, variances: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Inverse covariance with the mean projected out ``(n, n)``, and the weights that estimate the mean ``(n,)``."""
        inverse = np.linalg.pinv(self.covariance(variances), hermitian=True)
        weights = inverse @ self.n_genes
        weights_of_mean = weights / (self.n_genes @ weights)
        return inverse - np.outer(weights, weights_of_mean), weights_of_mean


def fit_mixed(
    perturbed: list[tuple[str, ...]], effects: NDArray[np.float64], noise: NDArray[np.float64]
) -> tuple[NDArray[np.float64], tuple[str, ...], NDArray[np.float64]]:
    """Fit the model.

    Parameters
    ----------
    perturbed
        Genes of each perturbation.
    effects
        Measured effects, ``(n, n_measured)``.
    noise
        Sampling variance of each effect, ``(n,)``.

    Returns
    -------
    The mean effect of a gene ``(n_measured,)``; names of the perturbed genes and of the perturbations of several genes;
    and their effects ``(len(names), n_measured)``, including interactions of the latter.
    """
    design = _Design.of(perturbed, noise)
    gene, _, interaction = variances = design.variances(effects)
    projected, weights = design.projection(variances)
    mean, residual = weights @ effects, projected @ effects
    of_genes = mean + gene * design.present.T @ residual
    several = np.flatnonzero(design.several)
    of_several = design.present[several] @ of_genes + interaction * residual[several]
    names = design.genes + tuple(canonical_name(perturbed[i]) for i in several)
    return mean, names, np.concatenate((of_genes, of_several))
