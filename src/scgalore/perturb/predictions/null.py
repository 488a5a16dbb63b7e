"""Significance of a gene's score relative to random genes with a similar dose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scgalore.data.hashing import uniforms

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FEWEST", "Compared", "adjusted", "against_random", "random_genes"]

FEWEST = 20
"""Minimum number of random genes for a p-value."""


@dataclass(frozen=True)
class Compared:
    """Scores of genes compared with those of random genes with a similar dose.

    Attributes
    ----------
    expected
        Median of the random genes, scaled to the dose of the gene.
    p_values
        Fraction of random genes with a score at least as extreme, including the gene itself; NaN with fewer than
        :data:`FEWEST` random genes.
    """

    expected: NDArray[np.float64]
    p_values: NDArray[np.float64]


def random_genes(
    expression: NDArray[np.floating], tokens: NDArray[np.int64], n: int, *, seed: int
) -> NDArray[np.int64]:
    """Draw genes from all levels of expression: one from each of ``n`` equal bins of the sorted genes.

    Parameters
    ----------
    expression
        Mean expression of each candidate gene.
    tokens
        Token ids of the candidates; the draw depends on these and not on the order of the genes.
    n
        Number of genes to draw; all if there are fewer.
    seed
        Random seed.

    Returns
    -------
    Positions among the genes, sorted.
    """
    if len(tokens) <= n:
        return np.arange(len(tokens))
    order = np.lexsort((tokens, expression))
    u = uniforms(seed, "random genes", tokens.astype(np.uint64), np.zeros_like(tokens))
    parts = np.array_split(order, n)
    return np.sort(np.array([part[np.argmin(u[part])] for part in parts], dtype=np.int64))


def against_random(
    scores: NDArray[np.float64],
    doses: NDArray[np.float64],
    null: NDArray[np.bool_],
    n: int,
    *,
    signed: bool,
) -> Compared:
    """Compare each gene with the ``n`` random genes of the most similar dose.

    Scores increase with the change of the input, so they are divided by the dose before they are compared.

    Parameters
    ----------
    scores
        Scores of all genes, ``(g,)``.
    doses
        Change of the network input by each gene, positive for genes that can be compared.
    null
        Mask of random genes. A gene is never compared with itself.
    n
        Maximum number of random genes to compare with.
    signed
        Whether the test is two-sided; otherwise only large scores are extreme.
    """
    ratios = np.divide(scores, doses, out=np.full(len(scores), np.nan), where=doses > 0)
    pool = np.flatnonzero(null & (doses > 0))
    pool = pool[np.argsort(doses[pool], kind="stable")]
    expected, p_values = np.full((2, len(scores)), np.nan)
    for gene in np.flatnonzero(doses > 0):
        others = pool[pool != gene]
        if len(others) < FEWEST:
            continue
        nearest = others[np.argsort(np.abs(np.log(doses[others] / doses[gene])), kind="stable")[:n]]
        drawn = ratios[nearest]
        expected[gene] = np.median(drawn) * doses[gene]
        above, below = (1 + (drawn >= ratios[gene]).sum()), (1 + (drawn <= ratios[gene]).sum())
        p_values[gene] = (min(2 * min(above, below), len(nearest) + 1) if signed else above) / (len(nearest) + 1)
    return Compared(expected, p_values)


def adjusted(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """False discovery rates of Benjamini and Hochberg; NaN without a p-value.

    Parameters
    ----------
    p_values
        p-values of one family of tests.
    """
    from scipy.stats import false_discovery_control  # slow to import

    out = np.full(len(p_values), np.nan)
    tested = np.isfinite(p_values)
    if tested.any():
        out[tested] = false_discovery_control(p_values[tested])
    return out
