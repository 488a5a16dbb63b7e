"""Predict a number for each cell from its embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import torch.nn.functional as F

from scgalore.objectives.base import Loss
from scgalore.objectives.gain import CHOICE, choice_by_gain, gains
from scgalore.optim.sophia import sample_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import Generator, Tensor

    from scgalore.data.tokens import TokenBatch
    from scgalore.nn.base import CellNetwork

HEAD = "regression"


@dataclass(frozen=True)
class Regression:
    """Squared error of standardised values, ``batch.targets["values"]``, float32 ``(b,)``.

    If ``batch.targets["prior"]``, float32 ``(b, 1)``, is present, the output of the head is added to it;
    ``start_score`` is then as for
    :class:`~scgalore.objectives.Classification`.
    """

    start_score: float = field(default=math.inf, repr=False)  # determined by the cells
    name: str = "regression"
    heads: Mapping[str, int] = field(default_factory=lambda: {HEAD: 1})

    @property
    def monitor(self) -> str:
        """The validation loss, or the score by gain over the prior."""
        return CHOICE if math.isfinite(self.start_score) else "validation_loss"

    def corrupt(self, batch: TokenBatch, *, seed: int, draw: int) -> TokenBatch:
        """Leave the batch as it is."""
        return batch

    def example(self, batch: TokenBatch) -> TokenBatch:
        """Add a value of 0 for each cell."""
        batch = batch.with_targets(values=batch.values.new_zeros(len(batch)))
        if math.isfinite(self.start_score):
            zeros = batch.values.new_zeros(len(batch), 1)
            batch = batch.with_targets(prior=zeros, start=zeros)
        return batch

    def __call__(self, network: CellNetwork, batch: TokenBatch) -> Loss:
        """Squared error of one batch, with the absolute error as additional metric."""
        values = batch.targets["values"]
        prediction = _prediction(network, batch)
        parts = {"absolute_error": (prediction - values).detach().abs().mean()}
        if "start" in batch.targets and not network.training:
            parts |= gains((batch.targets["start"][:, 0] - values).square(), (prediction - values).square())
        return Loss(F.mse_loss(prediction, values), parts, len(batch))

    def weight(self, batch: TokenBatch) -> float:
        """Cells."""
        return len(batch)

    def after_prior(self, targets: Mapping[str, NDArray[Any]], validation: NDArray[np.int64]) -> Self:
        """Return the objective for correcting a prior; see :class:`~scgalore.objectives.Classification`."""
        error = targets["start"][validation, 0] - targets["values"][validation]
        return replace(self, start_score=float((error**2).mean()))

    def over_epoch(self, parts: list[dict[str, Tensor]]) -> dict[str, float]:
        """Score for selecting the epoch, if there is a prior."""
        return choice_by_gain(parts, self.start_score) if math.isfinite(self.start_score) else {}

    def self_sampled(self, network: CellNetwork, batch: TokenBatch, generator: Generator) -> tuple[Tensor, int]:
        """Squared error at values sampled around the predictions, averaged over cells."""
        prediction = _prediction(network, batch)
        return F.mse_loss(prediction, sample_values(prediction, generator)), len(batch)


def _prediction(network: CellNetwork, batch: TokenBatch) -> Tensor:
    encoded = network.encode(batch.genes, batch.values, batch.padding_if_any, cell_only=True, **batch.conditions)
    values = network.read_head(HEAD, encoded.cell)  # (b, 1)
    return (values + batch.targets["prior"] if "prior" in batch.targets else values).squeeze(1)
