"""What every training objective is: it corrupts a batch and measures a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor

    from scgalore.data.tokens import TokenBatch
    from scgalore.nn import CellNetwork


class Loss(NamedTuple):
    """Loss of one batch.

    ``total`` is what training minimises, ``parts`` are scalars to log beside it, ``n`` is the number of cells they are
    means over.
    """

    total: Tensor
    parts: dict[str, Tensor]
    n: int


class Objective(Protocol):
    """One way to train a network."""

    # Properties, since frozen dataclasses have attributes that cannot be set.
    @property
    def name(self) -> str:
        """Name in histories, error messages and saved parameters."""
        ...

    @property
    def monitor(self) -> str:
        """Column of the history that chooses the best epoch."""
        ...

    @property
    def start_score(self) -> float:
        """Score of the weights training starts from, where these may be the best; infinity otherwise."""
        ...

    @property
    def heads(self) -> Mapping[str, int]:
        """Outputs of the cell heads it needs, by name; the network gets exactly these, or keeps its own if none is named."""

    def example(self, batch: TokenBatch) -> TokenBatch:
        """Add the targets and conditions that this objective reads, filled with zeros of the right shapes.

        Memory is estimated by tracing a step, which needs shapes and types, and no data.
        """
        ...

    def corrupt(self, batch: TokenBatch, *, seed: int, draw: int) -> TokenBatch:
        """Prepare a batch on the CPU; random draws hang on ``seed``, ``draw`` and the cells alone."""
        ...

    def __call__(self, network: CellNetwork, batch: TokenBatch) -> Loss:
        """Run the network and measure the loss."""
        ...

    def weight(self, batch: TokenBatch) -> float:
        """What the loss of a corrupted batch is a mean over: the number of its terms, or the sum of their weights.

        A step that adds up several batches weighs each by it, so that its gradient is that of the mean over all terms.
        """
        ...

    def over_epoch(self, parts: list[dict[str, Tensor]]) -> dict[str, float]:
        """Measures of a whole validation epoch that are not means over its batches.

        Parameters
        ----------
        parts
            Parts of the loss of each batch, with ``n``, its number of cells; of several processes, of all of them.
        """
        ...

    def self_sampled(self, network: CellNetwork, batch: TokenBatch, generator: Generator) -> tuple[Tensor, int]:
        """Measure the loss at targets drawn from the model itself, and count the terms it is a mean over.

        Its squared gradient estimates the curvature of the loss (Gauss-Newton-Bartlett, for
        :class:`~scgalore.optim.SophiaG`).
        """
        ...
