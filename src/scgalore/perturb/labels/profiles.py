"""Mean expression of each perturbation and of its controls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scgalore.data.moments import Moments
from scgalore.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scgalore.data.expression import LogExpression
    from scgalore.perturb.labels.conditions import Conditions

__all__ = ["Profiles", "row_label"]


def row_label(perturbation: str, context: str) -> str:
    """Name of a row in tables of perturbations; the context is omitted if there is only one (``""``)."""
    return f"{context} | {perturbation}" if context else perturbation


@dataclass(frozen=True)
class Profiles:
    """Means and variances of log-normalised expression, one row for each perturbation in each context.

    Attributes
    ----------
    genes
        Names of the columns.
    perturbations
        Canonical name of each row's perturbation.
    perturbed
        Its genes, sorted, or its compound at a dose.
    context_names
        Names of the contexts (cell types or lines); ``("",)`` if there is only one.
    contexts
        Context of each row, int64 ``(n,)``.
    means, variances
        Mean and variance over the cells of a row, float64 ``(n, n_genes)``; the variance of a single cell is 0.
    n_cells
        Number of cells of each row, int64 ``(n,)``.
    control_means, control_variances
        Mean and variance over the control cells of each context, float64 ``(n_contexts, n_genes)``.
    n_controls
        Number of control cells of each context, int64 ``(n_contexts,)``.
    kind
        Type of perturbation: ``"gene"`` or ``"compound"``.
    """

    genes: tuple[str, ...]
    perturbations: tuple[str, ...]
    perturbed: tuple[tuple[str, ...], ...]
    context_names: tuple[str, ...]
    contexts: NDArray[np.int64] = field(repr=False)
    means: NDArray[np.float64] = field(repr=False)
    variances: NDArray[np.float64] = field(repr=False)
    n_cells: NDArray[np.int64] = field(repr=False)
    control_means: NDArray[np.float64] = field(repr=False)
    control_variances: NDArray[np.float64] = field(repr=False)
    n_controls: NDArray[np.int64] = field(repr=False)
    kind: str = "gene"

    @classmethod
    def of(
        cls,
        expression: LogExpression,
        genes: Sequence[str],
        conditions: Conditions,
        contexts: Sequence[str] | NDArray[np.str_] | None = None,
        *,
        cells: NDArray[np.bool_] | None = None,
    ) -> Profiles:
        """Compute means and variances; the matrix is read once, in chunks.

        Parameters
        ----------
        expression
            Cells by genes.
        genes
            Names of the columns.
        conditions
            Perturbation of each cell.
        contexts
            Cell type or line of each cell; ``None`` if there is only one.
        cells
            Cells to use, bool ``(n_obs,)``; ``None`` for all.

        Raises
        ------
        DataError
            If a context with perturbed cells has no control cell.
        """
        names, codes = (np.array([""]), np.zeros(expression.n_obs, dtype=np.int64))
        if contexts is not None:
            names, codes = np.unique(np.asarray(contexts, dtype=str), return_inverse=True)
        n_names = len(conditions.names)
        group = np.where(conditions.codes < 0, -1, codes * n_names + conditions.codes)
        if cells is not None:
            group = np.where(cells, group, -1)
        moments = Moments.of(expression, group, len(names) * n_names)
        n, means, variances = moments.n_cells, moments.means, moments.variances
        control = np.arange(len(names)) * n_names
        rows = np.flatnonzero((n > 0) & (np.arange(len(n)) % n_names > 0))
        context, name = rows // n_names, rows % n_names
        lacking = np.unique(context[n[control[context]] == 0])
        if len(lacking):
            where = f" of context {str(names[lacking[0]])!r}" if contexts is not None else ""
            msg = (
                f"No control cells{where}, with which perturbed cells are compared. Pass the control label as control=."
            )
            raise DataError(msg)
        return cls(
            genes=tuple(genes),
            perturbations=tuple(conditions.names[i] for i in name),
            perturbed=tuple(conditions.genes[i] for i in name),
            context_names=tuple(map(str, names)),
            contexts=context,
            means=means[rows],
            variances=variances[rows],
            n_cells=n[rows],
            control_means=means[control],
            control_variances=variances[control],
            n_controls=n[control],
            kind=conditions.kind,
        )

    def __len__(self) -> int:
        return len(self.perturbations)

    @property
    def controls(self) -> NDArray[np.float64]:
        """Control mean of each row's context, ``(n, n_genes)``."""
        return self.control_means[self.contexts]

    @property
    def effects(self) -> NDArray[np.float64]:
        """Mean minus the control mean of the context, ``(n, n_genes)``."""
        return self.means - self.controls

    @property
    def labels(self) -> list[str]:
        """Name of each row; see :func:`row_label`."""
        return [
            row_label(name, self.context_names[c]) for name, c in zip(self.perturbations, self.contexts, strict=True)
        ]

    def take(self, rows: NDArray[np.integer] | Sequence[int]) -> Profiles:
        """Select rows by position; contexts and controls are kept."""
        rows = np.asarray(rows, dtype=np.int64)
        return Profiles(
            genes=self.genes,
            perturbations=tuple(self.perturbations[i] for i in rows),
            perturbed=tuple(self.perturbed[i] for i in rows),
            context_names=self.context_names,
            contexts=self.contexts[rows],
            means=self.means[rows],
            variances=self.variances[rows],
            n_cells=self.n_cells[rows],
            control_means=self.control_means,
            control_variances=self.control_variances,
            n_controls=self.n_controls,
            kind=self.kind,
        )
