"""Control means stored with a prediction or a model, and the check that other data are on the same scale.

Effects are differences of means and depend on the scale of the data: target sum and base of the logarithm. Two sets of
control cells are compared by the slope of a regression through the origin of their means over genes, in both
directions. Different cells, batches and noise only decrease the slope; a slope above 1 in one direction indicates
another scale.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgalore.data.records import read_prediction_record
from scgalore.errors import DataError
from scgalore.perturb.predictions.retrieval import mean_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore.perturb.labels.profiles import Profiles
    from scgalore.perturb.labels.screen import Screen

__all__ = ["ControlMeans", "most_allowed", "refuse_other_scale"]

_SLOPE, _NOISE = 1.15, 0.5
_FEWEST_GENES = 10


def most_allowed(n_cells: float) -> float:
    """Maximum slope between control cells on the same scale.

    For random halves of five public data sets, the slope of the means of ``n`` cells exceeds ``1 + 0.55 / sqrt(n)`` in
    one of 1,000 draws; between cell types, lines, stimulations and assays it was at most 1.09.

    Parameters
    ----------
    n_cells
        Number of control cells in the smaller set.
    """
    return _SLOPE + _NOISE / np.sqrt(max(n_cells, 1))


@dataclass(frozen=True)
class ControlMeans:
    """Mean expression of control cells.

    Attributes
    ----------
    genes
        Names of the columns.
    contexts
        Names of the rows: cell types or lines; ``("",)`` if there is only one.
    means
        Means of log-normalised expression, ``(n_contexts, n_genes)``.
    n_cells
        Number of control cells of each context, int64 ``(n_contexts,)``.
    """

    genes: tuple[str, ...] = field(repr=False)
    contexts: tuple[str, ...]
    means: NDArray[np.floating] = field(repr=False)
    n_cells: NDArray[np.int64] = field(repr=False)

    @classmethod
    def of(cls, profiles: Profiles) -> ControlMeans:
        """Control means of profiles."""
        return cls(profiles.genes, profiles.context_names, profiles.control_means, profiles.n_controls)

    @classmethod
    def of_screen(cls, screen: Screen) -> ControlMeans:
        """Control means of a screen, reading only its control cells."""
        contexts = ("",) if screen.contexts is None else tuple(np.unique(screen.contexts).tolist())
        pools = screen.pools().of_context
        means = [mean_of(screen.expression, pool) if len(pool) else np.zeros(len(screen.genes)) for pool in pools]
        return cls(screen.genes, contexts, np.array(means), np.array([len(pool) for pool in pools], dtype=np.int64))

    def slope_to(
        self, other: ControlMeans, columns: Sequence[int] | NDArray[np.int64] | None = None
    ) -> tuple[float, float]:
        """Scale factor of other data relative to these, and the number of control cells it is based on.

        Parameters
        ----------
        other
            Control means of the other data.
        columns
            Column in these means of each gene of the others, -1 if missing; matched by name by default.

        Returns
        -------
        Slope of the others on these if it is above 1, or the inverse of the reverse slope if that is above 1; 1
        otherwise, or if it cannot be estimated. And the number of cells.
        """
        if columns is None:
            place = {gene: i for i, gene in enumerate(self.genes)}
            columns = [place.get(gene, -1) for gene in other.genes]
        found = np.asarray(columns, dtype=np.int64)
        theirs, mine = (
            other.means[:, found >= 0].astype(np.float64),
            self.means[:, found[found >= 0]].astype(np.float64),
        )
        if theirs.shape[1] < _FEWEST_GENES:
            return 1.0, 0.0
        shared = [name for name in self.contexts if name in other.contexts]
        if shared:
            rows, others = ([names.index(name) for name in shared] for names in (self.contexts, other.contexts))
            weights = np.minimum(self.n_cells[rows], other.n_cells[others]).astype(np.float64)
            mine, theirs = mine[rows], theirs[others]
        elif self.n_cells.sum() and other.n_cells.sum():  # no context in common
            mine, theirs = (
                np.average(means, axis=0, weights=of.n_cells)[None] for means, of in ((mine, self), (theirs, other))
            )
            weights = np.array([min(self.n_cells.sum(), other.n_cells.sum())], dtype=np.float64)
        else:
            return 1.0, 0.0
        both, before, now = (
            float((weights[:, None] * a * b).sum()) for a, b in ((mine, theirs), (mine, mine), (theirs, theirs))
        )
        if both <= 0:
            return 1.0, 0.0
        up, down = both / before, both / now
        slope = up if up >= down else 1 / down
        return (slope if max(up, down) > 1 else 1.0), float(weights.sum())

    def refuse_other_scale(
        self,
        other: ControlMeans,
        *,
        columns: Sequence[int] | NDArray[np.int64] | None = None,
        what: str,
        advice: str,
    ) -> None:
        """Raise :class:`~scgalore.errors.DataError` if other data are on another scale.

        Parameters
        ----------
        other, columns
            As for :meth:`slope_to`.
        what
            Description of these means, such as "those of the training data".
        advice
            Advice for the user, as a sentence.
        """
        slope, n_cells = self.slope_to(other, columns)
        if max(slope, 1 / slope) <= most_allowed(n_cells):
            return
        msg = (
            f"These data are on another scale: the mean expression of their control cells is {slope:.3g} times {what}. Possible "
            f"causes: another target sum or base of the logarithm, scaled values, or counts restricted to some genes. {advice}"
        )
        raise DataError(msg)


def refuse_other_scale(adata: AnnData, key: str, screen: Screen) -> None:
    """Raise :class:`~scgalore.errors.DataError` if a screen is on another scale than its prediction.

    Parameters
    ----------
    adata
        Object with the prediction.
    key
        Its key in ``uns``.
    screen
        The current cells.
    """
    record = read_prediction_record(adata, key)
    table = record.get("control_means")
    if not isinstance(table, pd.DataFrame):
        return
    now = ControlMeans.of_screen(screen)
    contexts = tuple(map(str, table.columns)) if screen.contexts is not None else ("",)
    n_cells = np.asarray(record.get("control_cells", [now.n_cells.sum()] * len(contexts)), dtype=np.int64)
    if table.shape[1] != len(contexts) or len(n_cells) != len(contexts):
        return  # contexts are defined differently now, which is unrelated to the scale
    before = ControlMeans(tuple(map(str, table.index)), contexts, table.to_numpy(np.float64).T, n_cells)
    before.refuse_other_scale(
        now,
        what=f"that of the cells the prediction in adata.uns[{key!r}] was made from",
        advice="Restore the original values, or call sg.tl.predict_perturbation(adata) again.",
    )
