"""In-silico edits of genes, and the corresponding values of a network's input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scgalore._options import suggestion
from scgalore.data.binning import bin_edges
from scgalore.errors import DataError, OptionError

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray

    from scgalore.data.cells import TokenCells

__all__ = ["MODES", "Bins", "Edit"]

MODES = ("knockout", "overexpress", "set")


@dataclass(frozen=True)
class Edit:
    """In-silico edit of a gene.

    Attributes
    ----------
    mode
        ``"knockout"`` removes the gene, ``"overexpress"`` adds ``level`` to its log-normalised expression, ``"set"``
        sets it to ``level``.
    level
        On the scale ``log(1 + counts per 10,000)``.
    """

    mode: str
    level: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            msg = f"mode={self.mode!r}: choose one of {', '.join(map(repr, MODES))}.{suggestion(str(self.mode), MODES)}"
            raise OptionError(msg)
        if self.mode == "knockout":
            if self.level is not None:
                msg = f"level={self.level!r} is for mode='overexpress' or 'set', not for a knock-out. Omit level=."
                raise OptionError(msg)
            return
        least = "more than 0" if self.mode == "overexpress" else "0 or more"
        good = isinstance(self.level, int | float) and not isinstance(self.level, bool) and math.isfinite(self.level)
        if not good or self.level < 0 or (self.level == 0 and self.mode == "overexpress"):  # type: ignore[operator]
            what = "is added to" if self.mode == "overexpress" else "replaces"
            msg = (
                f"mode={self.mode!r} with level={self.level!r}: expected a number, {least}, that {what} the log-normalised expression of "
                "the gene; level=2 is about seven times the counts."
            )
            raise OptionError(msg)

    def apply(self, x: NDArray[np.floating]) -> NDArray[np.floating]:
        """Apply the edit to log-normalised expression."""
        if self.mode == "knockout":
            return np.zeros_like(x)
        assert self.level is not None
        return x + self.level if self.mode == "overexpress" else np.full_like(x, self.level)


class Bins:
    """Network input of an expression level in each cell: the value of a gene with this expression.

    The values of other genes are kept, so that only the edited gene changes.

    Parameters
    ----------
    cells
        Tokenised cells.
    logs
        Log-normalised expression of the cells to edit, sparse ``(c, n)``.
    """

    def __init__(self, cells: TokenCells, logs: sp.csr_matrix) -> None:
        config = cells.tokenizer.config
        if not (config.binned or config.classes):
            msg = "This model uses unbinned values, for which only mode='knockout' is defined."
            raise OptionError(msg)
        self._classes, self._n_bins = config.classes, config.n_bins
        self._edges: list[NDArray[np.float64]] = []
        if self._classes:
            return
        known = cells.tokenizer.token_ids >= 0
        for start, stop in zip(logs.indptr[:-1], logs.indptr[1:], strict=True):
            own = logs.data[start:stop][known[logs.indices[start:stop]]]
            if not (own != 0).any():
                msg = "A cell to edit expresses no gene of the model's vocabulary. Remove such cells: sc.pp.filter_cells(adata, min_genes=200)."
                raise DataError(msg)
            self._edges.append(bin_edges(own[own != 0], self._n_bins))

    def of(self, logs: NDArray[np.floating]) -> NDArray[np.float32]:
        """Values of expression in each cell, ``(c, b)``; 0 for 0."""
        if self._classes:
            # One pseudo-cell per value: its classes are those of counts per 10,000.
            levels = np.floor(np.log2(np.exp(logs) * (1 + 1e-6)))
            return np.clip(levels, 0, self._n_bins - 1).astype(np.float32)
        out = np.zeros(logs.shape, dtype=np.float32)
        for cell, edges in enumerate(self._edges):
            out[cell] = np.where(
                logs[cell] > 0, np.clip(np.searchsorted(edges, logs[cell], side="right"), 1, self._n_bins - 1), 0
            )
        return out
