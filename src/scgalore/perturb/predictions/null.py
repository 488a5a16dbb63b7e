"""Whether a gene's score is more than that of random genes which change cells as much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import false_discovery_control

from scgalore.data.hashing import uniforms

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FEWEST", "Compared", "adjusted", "against_random", "random_genes"]

FEWEST = 20
"""Fewest random genes that a p-value is computed from."""


@dataclass(frozen=True)
class Compared:
    """Scores of genes next to those of random genes with about the same dose.

    Attributes
    ----------
    expected
        Median of the random genes, scaled to the dose of the gene.
    p_values
        Share of random genes whose score is at least as extreme, the gene itself counted; NaN with less than
        :data:`FEWEST` random genes.
    """

    expected: NDArray[np.float64]
    p_values: NDArray[np.float64]


def random_genes(
    expression: NDArray[np.floating], tokens: NDArray[np.int64], n: int, *, seed: int
) -> NDArray[np.int64]:
    """Draw genes of all levels of expression: one from each of ``n`` equal parts of the genes sorted by it.

    Parameters
    ----------
    expression
        Mean of each gene that may be drawn.
    tokens
        Their token ids, which the draw depends on, and not on the order of the genes.
    n
        How many; all where there are no more.
    seed
        Seed of the draw.

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
    """Compare each gene with the ``n`` random genes whose dose is nearest to its own.

    A score grows with how much of the input changes, so scores are divided by the dose before they are compared.

    Parameters
    ----------
    scores
        Of all genes, ``(g,)``.
    doses
        How much of the input of the network each changes, positive for those that can be compared.
    null
        Which of them are random genes. A gene is never compared with itself.
    n
        Most random genes to compare with.
    signed
        Whether scores have two directions, both of which count; otherwise only large ones do.
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
    """False discovery rates of Benjamini and Hochberg; NaN where there is no p-value.

    Parameters
    ----------
    p_values
        Of the tests of one family.
    """
    out = np.full(len(p_values), np.nan)
    tested = np.isfinite(p_values)
    if tested.any():
        out[tested] = false_discovery_control(p_values[tested])
    return out
