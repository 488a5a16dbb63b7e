"""Predict the class of a cell from its embedding, optionally as a correction of a prior."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F

from scgalore.objectives.base import Loss
from scgalore.objectives.gain import CHOICE, choice_by_gain, gains
from scgalore.optim.sophia import sample_classes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import Generator, Tensor

    from scgalore.data.tokens import TokenBatch
    from scgalore.nn import CellNetwork


@dataclass(frozen=True)
class Classification:
    """Cross entropy of the class logits, to which ``batch.targets["prior"]``, ``(b, n_classes)``, is added if present.

    Attributes
    ----------
    n_classes
        Number of classes.
    class_weights
        Weight of each class in the loss, which is a weighted mean over the cells of the batch; ``None`` for equal
        weights.
    label_smoothing
        Fraction of the target probability that is spread over all classes.
    start_score
        Initial validation loss with a prior, that of ``batch.targets["start"]``; infinite without a prior. An
        epoch is then kept only if the mean gain over the validation cells exceeds one standard error.
    """

    n_classes: int
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    start_score: float = field(default=math.inf, repr=False)  # determined by the cells
    name: str = "classification"

    @property
    def monitor(self) -> str:
        """The validation loss, or the score by gain over the prior."""
        return CHOICE if math.isfinite(self.start_score) else "validation_loss"

    @property
    def heads(self) -> Mapping[str, int]:
        """One head with a logit per class."""
        return {"classes": self.n_classes}

    def example(self, batch: TokenBatch) -> TokenBatch:
        """Add a label per cell."""
        batch = batch.with_targets(labels=batch.genes.new_zeros(len(batch)))
        if math.isfinite(self.start_score):
            zeros = batch.values.new_zeros(len(batch), self.n_classes)
            batch = batch.with_targets(prior=zeros, start=zeros)
        return batch

    def corrupt(self, batch: TokenBatch, *, seed: int, draw: int) -> TokenBatch:
        """Leave the batch as it is."""
        return batch

    def __call__(self, network: CellNetwork, batch: TokenBatch) -> Loss:
        """Cross entropy and accuracy of one batch."""
        if "labels" not in batch.targets:
            msg = 'Classification needs targets["labels"]. Pass cells.with_targets(labels=codes).'
            raise ValueError(msg)
        logits, labels = _logits(network, batch), batch.targets["labels"]
        loss = self.loss(logits, labels)
        accuracy = (logits.argmax(dim=1) == labels).to(torch.float32).mean()
        parts = {"accuracy": accuracy.detach()}
        if "start" in batch.targets and not network.training:
            of_start, of_both = (self.loss(x, labels, reduction="none") for x in (batch.targets["start"], logits))
            parts |= gains(of_start, of_both)
        return Loss(loss, parts, len(batch))

    def weight(self, batch: TokenBatch) -> float:
        """Number of cells, or the sum of their class weights."""
        if self.class_weights is None:
            return len(batch)
        return float(torch.tensor(self.class_weights)[batch.targets["labels"]].sum())

    def loss(self, logits: Tensor, labels: Tensor, *, reduction: str = "mean") -> Tensor:
        """Weighted cross entropy, reduced as in :func:`torch.nn.functional.cross_entropy`.

        Parameters
        ----------
        logits
            ``(b, n_classes)``.
        labels
            int64 ``(b,)``.
        reduction
            ``"none"`` returns the loss of each cell.
        """
        weight = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        return F.cross_entropy(logits, labels, weight=weight, label_smoothing=self.label_smoothing, reduction=reduction)

    def after_prior(self, targets: Mapping[str, NDArray[Any]], validation: NDArray[np.int64]) -> Self:
        """Return the objective for correcting a prior; an epoch has to be better than the initial validation loss.

        Parameters
        ----------
        targets
            ``start`` and ``labels`` of all cells.
        validation
            Rows of the validation cells.
        """
        start, labels = (torch.from_numpy(targets[name][validation]) for name in ("start", "labels"))
        return replace(self, start_score=float(self.loss(start, labels)))

    def over_epoch(self, parts: list[dict[str, Tensor]]) -> dict[str, float]:
        """Score for selecting the epoch, if there is a prior."""
        return choice_by_gain(parts, self.start_score) if math.isfinite(self.start_score) else {}

    def self_sampled(self, network: CellNetwork, batch: TokenBatch, generator: Generator) -> tuple[Tensor, int]:
        """Cross entropy at classes sampled from the softmax, averaged over cells."""
        logits = _logits(network, batch)
        # Unweighted and unsmoothed: otherwise the expected gradient at sampled labels is not zero.
        return F.cross_entropy(logits, sample_classes(logits, generator)), len(batch)


def _logits(network: CellNetwork, batch: TokenBatch) -> Tensor:
    encoded = network.encode(batch.genes, batch.values, batch.padding_if_any, cell_only=True, **batch.conditions)
    logits = network.read_head("classes", encoded.cell)  # (b, n_classes)
    return logits + batch.targets["prior"] if "prior" in batch.targets else logits
