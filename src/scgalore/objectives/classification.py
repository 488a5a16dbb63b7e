"""Predict the class of a cell from its embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from scgalore.objectives.base import Loss
from scgalore.optim.sophia import sample_classes

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from scgalore.data.tokens import TokenBatch
    from scgalore.nn import SCGPTNetwork


@dataclass(frozen=True)
class Classification:
    """Cross entropy of the class logits.

    Attributes
    ----------
    class_weights
        Weight of each class in the loss; ``None`` weighs every cell alike.
    label_smoothing
        Share of the target probability spread over all classes.
    """

    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    name: str = "classification"
    monitor: str = "validation_loss"
    start_score: float = math.inf

    def example(self, batch: TokenBatch) -> TokenBatch:
        """Add labels, sequencing batches and flags."""
        per_cell = batch.genes.new_zeros(len(batch))
        return replace(batch, labels=per_cell, batches=per_cell, flags=torch.zeros_like(batch.genes))

    def corrupt(self, batch: TokenBatch, *, seed: int, draw: int) -> TokenBatch:
        """Leave the batch as it is."""
        return batch

    def __call__(self, network: SCGPTNetwork, batch: TokenBatch) -> Loss:
        """Cross entropy and accuracy of one batch."""
        if batch.labels is None:
            msg = "Classification needs labels in the batch; the data module was built without them."
            raise ValueError(msg)
        logits = _logits(network, batch)
        weight = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        loss = F.cross_entropy(logits, batch.labels, weight=weight, label_smoothing=self.label_smoothing)
        accuracy = (logits.argmax(dim=1) == batch.labels).to(torch.float32).mean()
        return Loss(loss, {"accuracy": accuracy.detach()}, len(batch))

    def over_epoch(self, parts: list[dict[str, Tensor]]) -> dict[str, float]:
        """Nothing beyond means."""
        return {}

    def self_sampled(self, network: SCGPTNetwork, batch: TokenBatch, generator: Generator) -> tuple[Tensor, int]:
        """Cross entropy at classes drawn from the softmax; its terms are the cells."""
        logits = _logits(network, batch)
        # Unweighted and unsmoothed: with either, a cell's gradient at drawn labels has no mean of zero.
        return F.cross_entropy(logits, sample_classes(logits, generator)), len(batch)


def _logits(network: SCGPTNetwork, batch: TokenBatch) -> Tensor:
    encoded = network.encode(
        batch.genes, batch.values, batch.padding_if_any, batches=batch.batches, flags=batch.flags, cell_only=True
    )
    return network.classify(encoded)  # (b, n_classes)
