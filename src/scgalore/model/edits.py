"""What is done to a gene in silico, and which value of a network's input that is."""

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
    """What is done to a gene.

    Attributes
    ----------
    mode
        ``"knockout"`` takes the gene away, ``"overexpress"`` adds ``level`` to its log-normalised expression, ``"set"`` makes it ``level``.
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
                msg = (
                    f"level={self.level!r} belongs to mode='overexpress' or 'set'; a knock-out has none. Leave it out."
                )
                raise OptionError(msg)
            return
        least = "more than 0" if self.mode == "overexpress" else "0 or more"
        good = isinstance(self.level, int | float) and not isinstance(self.level, bool) and math.isfinite(self.level)
        if not good or self.level < 0 or (self.level == 0 and self.mode == "overexpress"):  # type: ignore[operator]
            what = "is added to" if self.mode == "overexpress" else "takes the place of"
            msg = (
                f"mode={self.mode!r} with level={self.level!r}: expected a number, {least}, that {what} the log-normalised expression of "
                "the gene; level=2 is about seven times the counts."
            )
            raise OptionError(msg)

    def apply(self, x: NDArray[np.floating]) -> NDArray[np.floating]:
        """Expression after the edit, of log-normalised expression."""
        if self.mode == "knockout":
            return np.zeros_like(x)
        assert self.level is not None
        return x + self.level if self.mode == "overexpress" else np.full_like(x, self.level)


class Bins:
    """Which value of a network's input a level of expression has in each cell: that which a gene with this expression would have.

    The other genes keep theirs, so that nothing but the edited gene changes.

    Parameters
    ----------
    cells
        How cells become tokens.
    logs
        Log-normalised expression of the cells to edit, sparse ``(c, n)``.
    """

    def __init__(self, cells: TokenCells, logs: sp.csr_matrix) -> None:
        config = cells.tokenizer.config
        if not (config.binned or config.classes):
            msg = "This model reads values as they are, so only mode='knockout' is defined for it."
            raise OptionError(msg)
        self._classes, self._n_bins = config.classes, config.n_bins
        self._edges: list[NDArray[np.float64]] = []
        if self._classes:
            return
        known = cells.tokenizer.token_ids >= 0
        for start, stop in zip(logs.indptr[:-1], logs.indptr[1:], strict=True):
            own = logs.data[start:stop][known[logs.indices[start:stop]]]
            if not (own != 0).any():
                msg = "A cell to be edited expresses no gene that the model knows. Remove such cells: sc.pp.filter_cells(adata, min_genes=200)."
                raise DataError(msg)
            self._edges.append(bin_edges(own[own != 0], self._n_bins))

    def of(self, logs: NDArray[np.floating]) -> NDArray[np.float32]:
        """Values of expression in each cell, ``(c, b)``; 0 for 0."""
        if self._classes:
            # A pseudo-cell of each value: its classes are those of counts per 10,000.
            levels = np.floor(np.log2(np.exp(logs) * (1 + 1e-6)))
            return np.clip(levels, 0, self._n_bins - 1).astype(np.float32)
        out = np.zeros(logs.shape, dtype=np.float32)
        for cell, edges in enumerate(self._edges):
            out[cell] = np.where(
                logs[cell] > 0, np.clip(np.searchsorted(edges, logs[cell], side="right"), 1, self._n_bins - 1), 0
            )
        return out
