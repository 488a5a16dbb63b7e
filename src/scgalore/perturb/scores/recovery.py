"""Recovery of differential expression between real perturbed and control cells by predicted cells."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scgalore.data.hashing import fold_seed
from scgalore.perturb.labels.control import CONTROL
from scgalore.perturb.predictions.synthesis import synthesise
from scgalore.perturb.scores.differential import METRICS, de_scores, differential_expression
from scgalore.perturb.scores.halves import in_drawn_order

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars
    from numpy.typing import NDArray

    from scgalore.data.expression import LogExpression
    from scgalore.perturb.labels.profiles import Profiles

__all__ = ["RowCells", "half_scores", "recovery_scores"]


@dataclass(frozen=True)
class RowCells:
    """The real cells of each row, and the control cells of each context.

    Attributes
    ----------
    expression
        Cells by genes.
    columns
        Genes to test.
    group
        Group of each cell; -1 for excluded cells.
    rows
        Group of each row.
    controls
        Group of the control cells of each context.
    draws
        Random order of cells, see :func:`scgalore.perturb.scores.halves.cell_draws`.
    most
        Maximum number of cells per group; ``None`` uses all.
    """

    expression: LogExpression
    columns: NDArray[np.int64] = field(repr=False)
    group: NDArray[np.int64] = field(repr=False)
    rows: NDArray[np.int64] = field(repr=False)
    controls: NDArray[np.int64] = field(repr=False)
    draws: NDArray[np.float64] = field(repr=False)
    most: int | None = None

    def read(self, code: int, within: NDArray[np.bool_] | None = None) -> sp.csr_matrix:
        """Cells of a group, ``(n, n_genes)``, optionally restricted to a mask."""
        chosen = self.group == code
        cells = np.flatnonzero(chosen if within is None else chosen & within)
        return self.expression.rows(in_drawn_order(cells, self.draws, self.most))[:, self.columns]


def recovery_scores(
    cells: RowCells, real: Profiles, predicted: Mapping[str, NDArray[np.float64]], *, seed: int
) -> dict[str, pd.DataFrame]:
    """Test real and predicted cells against the same control cells, and compare the results.

    Parameters
    ----------
    cells
        Real cells.
    real
        Profiles of the rows.
    predicted
        Mean expression of the rows by method, ``(n, n_genes)``.
    seed
        Seed for the predicted cells; all methods use the same random draws.

    Returns
    -------
    For each method, a table of :data:`scgalore.perturb.scores.differential.METRICS` with one row per row of ``real``,
    by label.
    """
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in predicted}
    for context in np.unique(real.contexts):
        rows = np.flatnonzero(real.contexts == context)
        names = [real.perturbations[row] for row in rows]
        labels = {real.perturbations[row]: real.labels[row] for row in rows}
        control = cells.read(cells.controls[context])
        measured = [cells.read(cells.rows[row]) for row in rows]
        truth = _table(control, names, measured, real.genes, cells.expression.log_base)
        for name, means in predicted.items():
            imagined = [
                synthesise(
                    means[row], control, n_cells=own.shape[0], seed=fold_seed(seed, "predicted cells", real.labels[row])
                )
                for row, own in zip(rows, measured, strict=True)
            ]
            parts[name].append(
                de_scores(truth, _table(control, names, imagined, real.genes, cells.expression.log_base)).rename(
                    index=labels
                )
            )
    return {name: pd.concat(tables).reindex(real.labels) for name, tables in parts.items()}


def half_scores(cells: RowCells, real: Profiles, halves: Sequence[NDArray[np.bool_]]) -> pd.DataFrame:
    """Test two halves of the real cells, and compare them.

    Parameters
    ----------
    cells
        Real cells.
    real
        Profiles of the rows.
    halves
        Masks of two disjoint halves.

    Returns
    -------
    Table of :data:`scgalore.perturb.scores.differential.METRICS` by label, without rows that cannot be halved.
    """
    parts = [pd.DataFrame(columns=list(METRICS), dtype=np.float64)]
    for context in np.unique(real.contexts):
        present = [np.isin(cells.rows, cells.group[half]) for half in halves]
        rows = np.flatnonzero((real.contexts == context) & present[0] & present[1])
        if len(rows) == 0:
            continue
        names = [real.perturbations[row] for row in rows]
        labels = {real.perturbations[row]: real.labels[row] for row in rows}
        tables = [
            _table(
                cells.read(cells.controls[context], half),
                names,
                [cells.read(cells.rows[row], half) for row in rows],
                real.genes,
                cells.expression.log_base,
            )
            for half in halves
        ]
        parts.append(de_scores(*tables).rename(index=labels))
    return pd.concat([part for part in parts if len(part)] or parts)


def _table(
    control: sp.csr_matrix, names: Sequence[str], cells: Sequence[sp.csr_matrix], genes: Sequence[str], log_base: float
) -> polars.DataFrame:
    labels = [CONTROL] * control.shape[0]
    for name, own in zip(names, cells, strict=True):
        labels += [name] * own.shape[0]
    every = sp.vstack([control, *cells], format="csr")
    if log_base != math.e:  # fold changes need natural logarithms
        every = every * np.float32(math.log(log_base))
    return differential_expression(every, labels, genes, control=CONTROL)
