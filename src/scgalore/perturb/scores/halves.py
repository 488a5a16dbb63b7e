"""Two disjoint halves of each group of cells, drawn so that neither the order of cells nor their names matter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgalore.data.hashing import cell_keys, uniforms

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgalore.data.expression import LogExpression

__all__ = ["cell_draws", "disjoint_halves", "in_drawn_order"]


def cell_draws(expression: LogExpression, seed: int) -> NDArray[np.float64]:
    """Draw a number in [0, 1) for each cell, made from its content and the seed.

    Parameters
    ----------
    expression
        Cells by genes; read once, in chunks.
    seed
        Seed of the draws.

    Returns
    -------
    float64 ``(n_obs,)``. Cells with the same content share their number, and it does not matter which of them is taken.
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
        Of all cells, from :func:`cell_draws`.
    most
        How many to keep; all when left out.
    """
    return cells[np.argsort(draws[cells], kind="stable")][:most]


def disjoint_halves(
    group: NDArray[np.int64], draws: NDArray[np.float64], *, n_names: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Split each group into two halves of equal size; an odd cell is in neither.

    Parameters
    ----------
    group
        Context times ``n_names`` plus number of the perturbation, 0 for control, for each cell; -1 for cells left out.
    draws
        From :func:`cell_draws`.
    n_names
        Number of perturbations and control together.

    Returns
    -------
    Which cells are in the first half, and which in the second. Groups of one cell are in neither, nor is any cell of a context
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
