"""Protocols for the cells that training and inference read; code outside of this package depends on these only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from scgalore.data.batches import Batches, BatchPlan
    from scgalore.data.tokenizer import Tokenizer
    from scgalore.data.tokens import RaggedTokens

__all__ = ["CellSource", "TokenSource"]


class CellSource(Protocol):
    """Cells to train or validate on.

    Implemented by :class:`~scgalore.data.cells.TokenCells` (an AnnData), :class:`~scgalore.data.TokenStream` (many
    files) and ``PerturbationCells`` (perturbed cells with control cells).
    """

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        ...

    @property
    def n_matched(self) -> int:
        """Number of genes in the data with a token."""
        ...

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """Number of tokens of each cell in training, including ``<cls>``, int64 ``(n_obs,)``; ``None`` if unknown."""
        ...

    @property
    def ranked(self) -> NDArray[np.int64] | None:
        """Token ids of the genes from best to worst, int64, for a curriculum; ``None`` without a ranking."""
        ...

    @property
    def limits(self) -> Mapping[str, str]:
        """Options of :class:`~scgalore.train.TrainConfig` that the source does not support, with the reason for each."""
        ...

    def tokens(self) -> NDArray[np.int64]:
        """Ids of all tokens that a batch can contain, sorted."""
        ...

    def identity(self) -> dict[str, Any]:
        """Numbers and hashes by description, which must be equal when a run is resumed."""
        ...

    def training_batches(self, rows: NDArray[np.int64] | None, plan: BatchPlan) -> Batches:
        """Batches to train on.

        Parameters
        ----------
        rows
            Row numbers of the training cells; ``None`` for all.
        plan
            Limits, phases and seed.

        Raises
        ------
        DataError
            If no cell expresses a gene of one of the phases.
        """
        ...

    def validation_batches(self, rows: NDArray[np.int64] | None, plan: BatchPlan) -> Batches:
        """Batches to validate on, the same at each iteration.

        Parameters
        ----------
        rows
            Row numbers of the validation cells; ``None`` for all.
        plan
            Limits.
        """
        ...

    def largest_batch(self, rows: NDArray[np.int64] | None, plan: BatchPlan) -> tuple[int, int]:
        """Maximum numbers of cells per training batch and of tokens per cell.

        Parameters
        ----------
        rows, plan
            As for :meth:`training_batches`.
        """
        ...


class TokenSource(CellSource, Protocol):
    """Cells that can also be used for inference."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the cells."""
        ...

    def windows(self, rows: NDArray[np.int64] | None = None, *, size: int = 4096) -> Iterator[RaggedTokens]:
        """Tokens of cells in order, with one window in memory at a time.

        Parameters
        ----------
        rows
            Row numbers; ``None`` for all cells.
        size
            Number of cells per window; ignored by sources without known lengths.

        Raises
        ------
        OptionError
            If the source cannot read these rows in order.
        """
        ...
