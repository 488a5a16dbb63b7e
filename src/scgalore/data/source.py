"""What training and inference read cells from; everything outside of this package sees these protocols only."""

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

    :class:`~scgalore.data.cells.TokenCells` (an AnnData), :class:`~scgalore.data.TokenStream` (many files) and
    ``PerturbationCells`` (perturbed cells with control cells) are such.
    """

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        ...

    @property
    def n_matched(self) -> int:
        """Number of genes in the data that are tokens of the network."""
        ...

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """Tokens of each cell in training, ``<cls>`` included, int64 ``(n_obs,)``; ``None`` where they are not known."""
        ...

    @property
    def ranked(self) -> NDArray[np.int64] | None:
        """Token ids of the genes from best to worst, int64, for a curriculum; ``None`` without a ranking."""
        ...

    @property
    def limits(self) -> Mapping[str, str]:
        """Options of :class:`~scgalore.train.TrainConfig` that the source decides itself, with the reason for each."""
        ...

    def tokens(self) -> NDArray[np.int64]:
        """Ids of all tokens that a batch may hold, sorted."""
        ...

    def identity(self) -> dict[str, Any]:
        """Numbers and hashes, by what they stand for, that must agree when a run is resumed."""
        ...

    def training_batches(self, rows: NDArray[np.int64] | None, plan: BatchPlan) -> Batches:
        """Batches to train on.

        Parameters
        ----------
        rows
            Row numbers of the training cells; ``None`` for all.
        plan
            Caps, phases and seed.

        Raises
        ------
        DataError
            If no cell expresses a gene of some phase.
        """
        ...

    def validation_batches(self, rows: NDArray[np.int64] | None, plan: BatchPlan) -> Batches:
        """Batches to validate on, the same whenever they are iterated over.

        Parameters
        ----------
        rows
            Row numbers of the validation cells; ``None`` for all.
        plan
            Caps.
        """
        ...

    def largest_batch(self, rows: NDArray[np.int64] | None, plan: BatchPlan) -> tuple[int, int]:
        """Cells of a training batch and tokens of its longest cell, at most.

        Parameters
        ----------
        rows, plan
            As for :meth:`training_batches`.
        """
        ...


class TokenSource(CellSource, Protocol):
    """Cells that can also be run through a network one by one."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Makes the tokens."""
        ...

    def windows(self, rows: NDArray[np.int64] | None = None, *, size: int = 4096) -> Iterator[RaggedTokens]:
        """Tokens of cells in their order, one window of them in memory.

        Parameters
        ----------
        rows
            Row numbers; all cells when left out.
        size
            Cells in a window; a source that knows no lengths has windows of its own.

        Raises
        ------
        OptionError
            If the source cannot serve these rows in their order.
        """
        ...
