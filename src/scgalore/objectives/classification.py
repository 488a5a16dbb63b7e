"""Predict the class of a cell from its embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from scgalore.objectives.base import Loss
from scgalore.optim.sophia import sample_classes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor

    from scgalore.data.tokens import TokenBatch
    from scgalore.nn import CellNetwork


@dataclass(frozen=True)
class Classification:
    """Cross entropy of the class logits.

    Attributes
    ----------
    n_classes
        How many classes there are.
    class_weights
        Weight of each class in the loss, which is a weighted mean over the cells of the batch; ``None`` weighs every cell
        alike.
    label_smoothing
        Share of the target probability spread over all classes.
    """

    n_classes: int
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    name: str = "classification"
    monitor: str = "validation_loss"
    start_score: float = math.inf

    @property
    def heads(self) -> Mapping[str, int]:
        """One head with a logit for each class."""
        return {"classes": self.n_classes}

    def example(self, batch: TokenBatch) -> TokenBatch:
        """Add a label for each cell."""
        return batch.with_targets(labels=batch.genes.new_zeros(len(batch)))

    def corrupt(self, batch: TokenBatch, *, seed: int, draw: int) -> TokenBatch:
        """Leave the batch as it is."""
        return batch

    def __call__(self, network: CellNetwork, batch: TokenBatch) -> Loss:
        """Cross entropy and accuracy of one batch."""
        if "labels" not in batch.targets:
            msg = 'Classification reads targets["labels"]: give cells.with_targets(labels=codes).'
            raise ValueError(msg)
        logits, labels = _logits(network, batch), batch.targets["labels"]
        weight = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        loss = F.cross_entropy(logits, labels, weight=weight, label_smoothing=self.label_smoothing)
        accuracy = (logits.argmax(dim=1) == labels).to(torch.float32).mean()
        return Loss(loss, {"accuracy": accuracy.detach()}, len(batch))

    def over_epoch(self, parts: list[dict[str, Tensor]]) -> dict[str, float]:
        """Nothing beyond means."""
        return {}

    def self_sampled(self, network: CellNetwork, batch: TokenBatch, generator: Generator) -> tuple[Tensor, int]:
        """Cross entropy at classes drawn from the softmax; its terms are the cells."""
        logits = _logits(network, batch)
        # Unweighted and unsmoothed: with either, a cell's gradient at drawn labels has no mean of zero.
        return F.cross_entropy(logits, sample_classes(logits, generator)), len(batch)


def _logits(network: CellNetwork, batch: TokenBatch) -> Tensor:
    encoded = network.encode(batch.genes, batch.values, batch.padding_if_any, cell_only=True, **batch.conditions)
    return network.read_head("classes", encoded.cell)  # (b, n_classes)
