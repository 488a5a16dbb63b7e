"""Effect of a perturbation on the expression of the perturbed gene itself.

Knock-outs, CRISPRi and CRISPRa change their target much more than other genes, and similarly for all targets. The
change of a target that was never perturbed is therefore predicted by a straight line in its control expression, with
shrinkage chosen by cross-validation over targets. The line depends on the type of screen: CRISPRi removes a fraction of
the expression (negative slope), CRISPRa adds expression (positive intercept), and a knock-out may not change mRNA
levels (no line).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scgalore.perturb.labels.profiles import Profiles

    Values = NDArray[np.float64]

__all__ = ["OwnGene", "fit_own", "target_columns"]

PENALTIES = np.geomspace(1e-2, 1e2, 9)
"""Candidate penalties of the line; no line is another candidate."""


@dataclass(frozen=True)
class OwnGene:
    """Change of a perturbed gene's own expression.

    Attributes
    ----------
    intercept, slope
        Coefficients of the line in its control expression.
    n
        Number of targets in the fit.
    """

    intercept: float = 0.0
    slope: float = 0.0
    n: int = 0

    def effects(self, columns: Sequence[Sequence[int]], controls: Values) -> Values:
        """Changes of the perturbed genes of each row, 0 for all other genes.

        Parameters
        ----------
        columns
            Columns of the perturbed genes of each row, from :func:`target_columns`.
        controls
            Control mean of each row, ``(n, n_genes)``. Predicted expression is not negative; log fold changes, with
            zero controls, are not bounded.

        Returns
        -------
        float64 ``(n, n_genes)``.
        """
        out = np.zeros(controls.shape)
        for row, (of_row, control) in enumerate(zip(columns, controls, strict=True)):
            found = list(of_row)
            change = self.intercept + self.slope * control[found]
            out[row, found] = np.maximum(change, -control[found]) if control.any() else change
        return out


def target_columns(perturbed: Sequence[Sequence[str]], genes: Sequence[str]) -> list[list[int]]:
    """Columns of the perturbed genes of each row, if measured.

    Parameters
    ----------
    perturbed
        Genes of each row.
    genes
        Names of the columns.
    """
    place = {gene: column for column, gene in enumerate(genes)}
    return [[place[gene] for gene in of_row if gene in place] for of_row in perturbed]


def fit_own(train: Profiles) -> OwnGene:
    """Fit the line to the measured targets, with the penalty of the smallest cross-validation error.

    Parameters
    ----------
    train
        Rows to fit to; with fewer than two measured targets there is no line.
    """
    columns = target_columns(train.perturbed, train.genes)
    rows = np.array([row for row, of_row in enumerate(columns) for _ in of_row], dtype=np.int64)
    targets = np.array([column for of_row in columns for column in of_row], dtype=np.int64)
    _, target = np.unique(targets, return_inverse=True)
    n_targets = int(target.max(initial=-1)) + 1
    if n_targets < 2:
        return OwnGene()
    y, control = train.effects[rows, targets], train.controls[rows, targets]
    scale = float(np.sqrt(np.mean(control**2))) or 1.0
    x = np.column_stack([np.ones(len(y)), control / scale])
    products, sums = np.zeros((n_targets, 2, 2)), np.zeros((n_targets, 2))
    np.add.at(products, target, x[:, :, None] * x[:, None])
    np.add.at(sums, target, x * y[:, None])
    lowest, line = float(np.mean(y**2)), np.zeros(2)
    for penalty in PENALTIES:
        ridge = penalty * np.eye(2)
        without = np.linalg.solve(products.sum(axis=0) - products + ridge, (sums.sum(axis=0) - sums)[:, :, None])[
            :, :, 0
        ]
        error = float(np.mean((y - (x * without[target]).sum(axis=1)) ** 2))
        if error < lowest:
            lowest, line = error, np.linalg.solve(products.sum(axis=0) + ridge, sums.sum(axis=0))
    return OwnGene(float(line[0]), float(line[1] / scale), n_targets)
