"""Random disjoint halves of each group of cells, independent of the order and names of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgalore.data.hashing import cell_keys, uniforms

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgalore.data.expression import LogExpression

__all__ = ["cell_draws", "disjoint_halves", "in_drawn_order"]


def cell_draws(expression: LogExpression, seed: int) -> NDArray[np.float64]:
    """Draw a number in [0, 1) for each cell, from its content and the seed.

    Parameters
    ----------
    expression
        Cells by genes; read once, in chunks.
    seed
        Seed of the draws.

    Returns
    -------
    float64 ``(n_obs,)``. Cells with the same content share their number and are interchangeable.
    """
    keys = [
        cell_keys(rows.indices.astype(np.int64), rows.data, rows.indptr.astype(np.int64))
        for _, rows in expression.chunks()
    ]
    return uniforms(seed, "cells of an experiment", np.concatenate(keys), 0)


def in_drawn_order(cells: NDArray[np.int64], draws: NDArray[np.float64], most: int | None = None) -> NDArray[np.int64]:
    """Sort cells by their draws and keep the first of them.

    Parameters
    ----------
    cells
        Row numbers.
    draws
        Numbers of all cells, from :func:`cell_draws`.
    most
        Maximum number of cells to keep; ``None`` keeps all.
    """
    return cells[np.argsort(draws[cells], kind="stable")][:most]


def disjoint_halves(
    group: NDArray[np.int64], draws: NDArray[np.float64], *, n_names: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Split each group into two halves of equal size; an odd cell is in neither.

    Parameters
    ----------
    group
        Group of each cell: context times ``n_names`` plus index of the perturbation (0 for control); -1 for excluded
        cells.
    draws
        Result of :func:`cell_draws`.
    n_names
        Number of perturbations, including control.

    Returns
    -------
    Masks of the first and the second half. Groups of one cell are in neither, nor are cells of a context
    with fewer than two control cells.
    """
    n = np.bincount(group[group >= 0], minlength=1)
    controls = np.append(n, np.zeros(-len(n) % n_names, dtype=n.dtype))[::n_names]
    group = np.where((group >= 0) & (controls[group // n_names] >= 2), group, -1)
    order = np.lexsort((draws, group))
    placed = group[order]
    rank = np.arange(len(group)) - np.searchsorted(placed, placed)
    size = n[placed] // 2
    halves = np.zeros((2, len(group)), dtype=bool)
    halves[0, order] = (placed >= 0) & (rank < size)
    halves[1, order] = (placed >= 0) & (rank >= size) & (rank < 2 * size)
    return halves[0], halves[1]
