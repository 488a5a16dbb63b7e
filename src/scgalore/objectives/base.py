"""Interface of training objectives: corrupt a batch and compute a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor

    from scgalore.data.tokens import TokenBatch
    from scgalore.nn import CellNetwork


class Loss(NamedTuple):
    """Loss of one batch.

    ``total`` is minimised by training, ``parts`` are additional scalars to log, and ``n`` is the number of cells they
    are averaged over.
    """

    total: Tensor
    parts: dict[str, Tensor]
    n: int


class Objective(Protocol):
    """A loss for training a network."""

    # Properties, since frozen dataclasses have attributes that cannot be set.
    @property
    def name(self) -> str:
        """Name in histories, error messages and saved parameters."""
        ...

    @property
    def monitor(self) -> str:
        """Column of the history for selecting the best epoch."""
        ...

    @property
    def start_score(self) -> float:
        """Score of the initial weights, if these may be the best; infinity otherwise."""
        ...

    @property
    def heads(self) -> Mapping[str, int]:
        """Number of outputs of each required cell head; the network gets exactly these heads, or keeps its own if empty."""

    def example(self, batch: TokenBatch) -> TokenBatch:
        """Add the targets and conditions that this objective reads, filled with zeros of the right shapes.

        Used to estimate memory by tracing a step, which needs shapes and types but no data.
        """
        ...

    def corrupt(self, batch: TokenBatch, *, seed: int, draw: int) -> TokenBatch:
        """Prepare a batch on the CPU; random draws depend only on ``seed``, ``draw`` and the cells."""
        ...

    def __call__(self, network: CellNetwork, batch: TokenBatch) -> Loss:
        """Run the network and compute the loss."""
        ...

    def weight(self, batch: TokenBatch) -> float:
        """Number of terms that the loss of a corrupted batch is averaged over, or the sum of their weights.

        With gradient accumulation, batches are weighted by it, so that the gradient is that of the mean over all terms.
        """
        ...

    def over_epoch(self, parts: list[dict[str, Tensor]]) -> dict[str, float]:
        """Metrics of a whole validation epoch that are not means over batches.

        Parameters
        ----------
        parts
            Parts of the loss of each batch, over all processes, with ``n``, its number of cells.
        """
        ...

    def self_sampled(self, network: CellNetwork, batch: TokenBatch, generator: Generator) -> tuple[Tensor, int]:
        """Compute the loss at targets sampled from the model, and the number of terms it is averaged over.

        Its squared gradient estimates the curvature of the loss (Gauss-Newton-Bartlett, for
        :class:`~scgalore.optim.SophiaG`).
        """
        ...
