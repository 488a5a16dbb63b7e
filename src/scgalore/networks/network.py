"""Weights of all pairs of regulator and target, and the table of the strongest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["GeneNetwork", "combine", "cosines"]


@dataclass(frozen=True)
class GeneNetwork:
    """Weights of pairs of genes in groups of cells.

    Attributes
    ----------
    sources, targets
        Names of the genes; the pair of a gene with itself has no weight.
    groups
        Names of the groups.
    weights
        Float32 ``(n_groups, n_sources, n_targets)``, NaN for pairs without weight.
    n_cells
        Number of cells behind each weight, of the same shape.
    signed
        Whether pairs are ranked by absolute weight.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    groups: tuple[str, ...]
    weights: NDArray[np.float32] = field(repr=False)
    n_cells: NDArray[np.integer] = field(repr=False)
    signed: bool = False

    def __post_init__(self) -> None:
        itself = np.array(self.sources, dtype=object)[:, None] == np.array(self.targets, dtype=object)
        self.weights[:, itself] = np.nan

    def without(self, min_cells: int) -> GeneNetwork:
        """Return the network without weights from fewer cells."""
        weights = np.where(self.n_cells >= min_cells, self.weights, np.float32(np.nan))
        return GeneNetwork(self.sources, self.targets, self.groups, weights, self.n_cells, self.signed)

    @property
    def n_pairs(self) -> NDArray[np.int64]:
        """Number of pairs with a weight in each group, ``(n_groups,)``."""
        return np.isfinite(self.weights).sum(axis=(1, 2))

    @property
    def strength(self) -> NDArray[np.float32]:
        """Strength by which pairs are ranked, in the shape of the weights."""
        return np.abs(self.weights) if self.signed else self.weights

    def edges(self, n_edges: int | None = None) -> pd.DataFrame:
        """Table of the strongest pairs by group, sorted within groups.

        Parameters
        ----------
        n_edges
            Number of pairs per group; ``None`` returns all. A pair selected in one group is listed with its
            weight in every group.

        Returns
        -------
        Columns ``group`` (categorical), ``source``, ``target``, ``weight`` (float32), ``rank`` among all pairs of the
        group (int64, from 1) and ``n_cells`` (int64). Ties are broken by the order of sources, then of targets.
        """
        shape = self.weights.shape[1:]
        flat = self.strength.reshape(len(self.groups), -1)
        orders = [np.argsort(np.where(np.isnan(row), np.inf, -row), kind="stable") for row in flat]
        counts = self.n_pairs.tolist()
        if n_edges is None:
            wanted = np.ones(flat.shape[1], dtype=bool)
        else:
            wanted = np.zeros(flat.shape[1], dtype=bool)
            for order, count in zip(orders, counts, strict=True):
                wanted[order[: min(n_edges, count)]] = True
        tables = []
        sources, targets = (np.array(names, dtype=object) for names in (self.sources, self.targets))
        for number, (order, count) in enumerate(zip(orders, counts, strict=True)):
            kept = np.flatnonzero(wanted[order[:count]])
            i, j = np.unravel_index(order[kept], shape)
            columns = {
                "group": pd.Categorical([self.groups[number]] * len(kept), categories=list(self.groups)),
                "source": sources[i],
                "target": targets[j],
                "weight": self.weights[number, i, j],
                "rank": kept + 1,
                "n_cells": self.n_cells[number, i, j].astype(np.int64),
            }
            tables.append(pd.DataFrame(columns))
        return pd.concat(tables, ignore_index=True)


def cosines(
    embeddings: NDArray[np.float32], sources: NDArray[np.int64], targets: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Cosines between embeddings of genes.

    Parameters
    ----------
    embeddings
        ``(n_groups, n_genes, d)``; NaN for genes without embedding.
    sources, targets
        Indices of genes.

    Returns
    -------
    ``(n_groups, n_sources, n_targets)``; NaN if an embedding is missing or 0.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        x = embeddings / np.linalg.norm(embeddings, axis=2, keepdims=True)
        return x[:, sources] @ x[:, targets].transpose(0, 2, 1)


def combine(networks: Sequence[GeneNetwork]) -> GeneNetwork:
    """Mean rank of each pair over several networks, from 0 to 1 (strongest); only pairs that occur in all of them.

    Parameters
    ----------
    networks
        Networks of the same genes and groups.
    """
    from scipy.stats import rankdata  # slow to import

    strengths = np.stack([network.strength for network in networks])  # (n, g, S, T)
    known: NDArray[np.bool_] = np.isfinite(strengths).min(axis=0)
    weights = np.full(known.shape, np.nan, dtype=np.float32)
    for group in range(len(known)):
        pairs = known[group]
        if pairs.any():
            ranks = [rankdata(strength[group][pairs]) for strength in strengths]
            weights[group][pairs] = np.mean(ranks, axis=0) / pairs.sum()
    n_cells = np.minimum.reduce([network.n_cells for network in networks])
    first = networks[0]
    return GeneNetwork(first.sources, first.targets, first.groups, weights, n_cells)
