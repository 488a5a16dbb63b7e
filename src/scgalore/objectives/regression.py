"""Predict a number for each cell from its embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch.nn.functional as F

from scgalore.objectives.base import Loss
from scgalore.optim.sophia import sample_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor

    from scgalore.data.tokens import TokenBatch
    from scgalore.nn.base import CellNetwork

HEAD = "regression"


@dataclass(frozen=True)
class Regression:
    """Squared error of standardised values, ``batch.targets["values"]``, float32 ``(b,)``."""

    name: str = "regression"
    monitor: str = "validation_loss"
    start_score: float = math.inf
    heads: Mapping[str, int] = field(default_factory=lambda: {HEAD: 1})

    def corrupt(self, batch: TokenBatch, *, seed: int, draw: int) -> TokenBatch:
        """Leave the batch as it is."""
        return batch

    def example(self, batch: TokenBatch) -> TokenBatch:
        """The batch with a value of 0 for each cell."""
        return batch.with_targets(values=batch.values.new_zeros(len(batch)))

    def __call__(self, network: CellNetwork, batch: TokenBatch) -> Loss:
        """Squared error of one batch, and the absolute error beside it."""
        values = batch.targets["values"]
        prediction = _prediction(network, batch)
        error = (prediction - values).detach().abs().mean()
        return Loss(F.mse_loss(prediction, values), {"absolute_error": error}, len(batch))

    def over_epoch(self, parts: list[dict[str, Tensor]]) -> dict[str, float]:
        """Nothing beyond means."""
        return {}

    def self_sampled(self, network: CellNetwork, batch: TokenBatch, generator: Generator) -> tuple[Tensor, int]:
        """Squared error at values drawn around the predictions; its terms are the cells."""
        prediction = _prediction(network, batch)
        return F.mse_loss(prediction, sample_values(prediction, generator)), len(batch)


def _prediction(network: CellNetwork, batch: TokenBatch) -> Tensor:
    encoded = network.encode(batch.genes, batch.values, batch.padding_if_any, cell_only=True, **batch.conditions)
    return network.read_head(HEAD, encoded.cell).squeeze(1)  # (b,)
