"""Scores of genes on the training cells: expression, variability, response to perturbations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scgalore.data.moments import Moments
from scgalore.data.variable import median_rank, normalised_dispersions, standardised_variances
from scgalore.errors import DataError
from scgalore.genes.ranking import EXPRESSED, RESPONSIVE, VARIABLE, best_first
from scgalore.perturb.scores.responsive import Responses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scgalore.data.expression import LogExpression
    from scgalore.perturb.labels.conditions import Conditions

__all__ = ["Cells", "GeneScores"]


@dataclass(frozen=True)
class Cells:
    """Cells used for scoring, and their groups.

    Attributes
    ----------
    train
        Whether a cell is used, bool ``(n_obs,)``.
    batch, context
        Batch and context of each of these cells, -1 for others, int64 ``(n_obs,)``.
    conditions
        Perturbation of each cell; ``None`` if not needed.
    """

    train: NDArray[np.bool_] = field(repr=False)
    batch: NDArray[np.int64] = field(repr=False)
    context: NDArray[np.int64] = field(repr=False)
    conditions: Conditions | None

    def groups(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Enumerate combinations of perturbation and context in the training cells.

        Returns
        -------
        Group of each cell, -1 for unused cells; and context of each group, -1 for the group of cells without a
        label.
        """
        n_names = 1 if self.conditions is None else len(self.conditions.names)
        label = np.zeros(len(self.train), dtype=np.int64) if self.conditions is None else self.conditions.codes
        code = np.where(label < 0, -1, self.context * n_names + label)
        # Combinations without training cells would waste memory.
        present, group = np.unique(code[self.train], return_inverse=True)
        groups = np.full(len(self.train), -1, dtype=np.int64)
        groups[self.train] = group
        return groups, np.where(present < 0, -1, present // n_names)

    def targets(self) -> list[str]:
        """Genes perturbed in training cells, in order of first occurrence; empty for compounds."""
        assert self.conditions is not None
        if self.conditions.kind != "gene":
            return []
        seen = np.unique(self.conditions.codes[self.train])
        return [gene for code in seen[seen > 0] for gene in self.conditions.genes[code]]


@dataclass(frozen=True)
class GeneScores:
    """Quantities of each gene over the training cells, each ``(n_vars,)``.

    Attributes
    ----------
    names
        Position of each name among the sorted names, int64; used to break ties.
    n_cells
        Number of training cells.
    mean
        Mean of log-normalised expression.
    n_expressed
        Cells that express the gene.
    variability
        Variability; only its order is meaningful.
    responsiveness
        See :func:`scgalore.perturb.scores.responsive.Responses`; ``None`` without perturbations.
    """

    names: NDArray[np.int64] = field(repr=False)
    n_cells: int
    mean: NDArray[np.float64] = field(repr=False)
    n_expressed: NDArray[np.int64] = field(repr=False)
    variability: NDArray[np.float64] = field(repr=False)
    responsiveness: NDArray[np.float64] | None = field(repr=False)

    @classmethod
    def of(cls, expression: LogExpression, cells: Cells, names: Sequence[str]) -> GeneScores:
        """Read the matrix, twice if it holds counts.

        Parameters
        ----------
        expression
            Cells by genes.
        cells
            Cells to use.
        names
            Names of the genes.

        Raises
        ------
        DataError
            If no batch has two cells, or no perturbations can be compared.
        """
        if np.bincount(cells.batch[cells.batch >= 0], minlength=1).max() < 2:
            msg = f"{int(cells.train.sum()):,} training cells, but no batch has two, so variability is undefined. Check split_key= and batch_key=."
            raise DataError(msg)
        groups, contexts = cells.groups()
        sizes = np.bincount(groups[groups >= 0], minlength=len(contexts))
        logged = Responses.empty(sizes, contexts, expression.n_vars)
        linear = Moments.empty(cells.batch.max(initial=0) + 1, expression.n_vars)
        for start, rows in expression.matrix.chunks():
            here = slice(start, start + rows.shape[0])
            logged.add(expression.logged(rows, np.arange(start, start + rows.shape[0])), groups[here])
            linear.add(expression.linear(rows), cells.batch[here])
        if not expression.scale.normalised:
            scores = standardised_variances(expression.matrix, cells.batch, linear)
            variability = scores[0] if len(scores) == 1 else -median_rank(scores)
        else:
            variability = normalised_dispersions(linear)
        response = None if cells.conditions is None else logged.responsiveness()
        if response is not None and np.isnan(response).all():
            msg = (
                "No perturbations can be compared: fewer than two (including control) have at least two training cells. "
                "Check pert_key=, context_key= and split_key=."
            )
            raise DataError(msg)
        place = {name: i for i, name in enumerate(sorted(names))}
        named = np.array([place[name] for name in names], dtype=np.int64)
        return cls(named, int(sizes.sum()), logged.mean, linear.n_expressed, variability, response)

    @property
    def is_expressed(self) -> NDArray[np.bool_]:
        """Whether a training cell expresses the gene."""
        return self.n_expressed > 0

    def by_expression(self, columns: NDArray[np.int64], share: float) -> NDArray[np.int64]:
        """The given columns that more than a fraction ``share`` of the training cells express, best first."""
        return best_first(self.mean, self.names, columns[self.n_expressed[columns] > share * self.n_cells])

    def by(self, source: str) -> NDArray[np.int64]:
        """All expressed columns, best first; for responsiveness only columns that respond beyond noise."""
        among = np.flatnonzero(self.is_expressed)
        if source == RESPONSIVE:
            assert self.responsiveness is not None
            return best_first(self.responsiveness, self.names, among[self.responsiveness[among] > 0])
        return best_first({VARIABLE: self.variability, EXPRESSED: self.mean}[source], self.names, among)
