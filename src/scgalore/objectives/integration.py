"""Embed cells without batch effects: weighted sum of scGPT's objectives for integration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from scgalore.objectives.base import Loss
from scgalore.objectives.losses import elastic_similarity, masked_mean, masked_mse, negative_log_bernoulli
from scgalore.objectives.masked_expression import MaskedExpression

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor

    from scgalore.data.tokens import TokenBatch
    from scgalore.nn import CellNetwork

HEAD = "classes"
WITHOUT_LABEL = -1
"""Class code of cells without a label."""


@dataclass(frozen=True)
class Integration:
    """Weighted sum of scGPT's objectives for integration (Cui et al. 2024); objectives with weight 0 are disabled.

    Needs a network with batches, from :meth:`~scgalore.nn.CellNetwork.integration_variant`, and cells with the
    condition ``batches``. The epoch is selected by the reconstruction, the weighted sum of the first three and of the
    classes: a high loss of the adversary is a success, and the similarity depends on the composition of batches.

    Attributes
    ----------
    tokens
        Weight of the squared error of masked expression, predicted from token states (GEP).
    cell
        Weight of the squared error of masked expression, predicted from the cell embedding (GEPC, MVC).
    zeros
        Weight of the negative log-likelihood that a masked gene is expressed, for both predictions.
    similarity
        Weight of ``scgalore.objectives.losses.elastic_similarity`` (ECS).
    threshold
        Threshold of the similarity.
    adversary
        Weight of the cross entropy of a discriminator that predicts the batch from the cell embedding, with reversed
        gradient (DAB).
    classes
        Weight of the cross entropy of the classes, ``batch.targets["labels"]``, over the cells with a label.
    n_classes
        Number of classes; 0 without labels.
    mask_ratio, mask_value
        As for :class:`~scgalore.objectives.MaskedExpression`.
    """

    tokens: float = 1.0
    cell: float = 1.0
    zeros: float = 0.0
    similarity: float = 10.0
    threshold: float = 0.8
    adversary: float = 1.0
    classes: float = 100.0
    n_classes: int = 0
    mask_ratio: float | tuple[float, ...] = 0.4
    mask_value: float = -1.0
    name: str = "integration"
    start_score: float = math.inf

    def __post_init__(self) -> None:
        _ = self._masked  # checks mask_ratio

    @property
    def _masked(self) -> MaskedExpression:
        return MaskedExpression(self.mask_ratio, self.mask_value)

    @property
    def monitor(self) -> str:
        """The reconstruction on validation cells, or the whole loss without reconstruction."""
        reconstructs = self.tokens or self.cell or self._classifies
        return "validation_reconstruction" if reconstructs else "validation_loss"

    @property
    def heads(self) -> Mapping[str, int]:
        """One logit per class, if there are labels."""
        return {HEAD: self.n_classes} if self._classifies else {}

    @property
    def _classifies(self) -> bool:
        return self.n_classes > 0 and self.classes > 0

    def example(self, batch: TokenBatch) -> TokenBatch:
        """Add batches, the expression to predict with its mask, and labels."""
        zeros = torch.zeros_like(batch.cells)
        return self._masked.example(batch).with_conditions(batches=zeros).with_targets(labels=zeros)

    def corrupt(self, batch: TokenBatch, *, seed: int, draw: int) -> TokenBatch:
        """Mask some values; the originals become ``targets["expression"]``."""
        return self._masked.corrupt(batch, seed=seed, draw=draw)

    def __call__(self, network: CellNetwork, batch: TokenBatch) -> Loss:
        """Weighted sum of the parts of one batch."""
        if not {"expression", "masked"} <= batch.targets.keys() or "batches" not in batch.conditions:
            msg = (
                'Integration needs the condition "batches" and the targets "expression" and "masked". Call '
                "`corrupt` on the batch first."
            )
            raise ValueError(msg)
        batches = batch.conditions["batches"]
        encoded = network.encode(batch.genes, batch.values, batch.padding_if_any, cell_only=False, **batch.conditions)
        parts: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        if self.tokens or self.cell:
            expression, masked = batch.targets["expression"], batch.targets["masked"]
            predicted = network.expressions(encoded, batch.values, **batch.conditions)
            for way, weight in (("", self.tokens), ("_from_cell", self.cell)):
                if not weight:
                    continue
                prediction, nonzero = predicted[way]
                parts[f"mse{way}"], weights[f"mse{way}"] = masked_mse(prediction, expression, masked), weight
                if self.zeros and nonzero is not None:
                    parts[f"zeros{way}"] = negative_log_bernoulli(nonzero, expression, masked)
                    weights[f"zeros{way}"] = self.zeros
        if self._classifies:
            labels = batch.targets["labels"]
            known = labels != WITHOUT_LABEL
            logits = network.read_head(HEAD, encoded.cell)
            of_cell = F.cross_entropy(logits, labels.clamp(min=0), reduction="none")
            parts["classes"], weights["classes"] = masked_mean(of_cell, known), self.classes
        reconstruction = _total(parts, weights, encoded.cell)
        if self.similarity:
            cell = network.embedding(encoded.cell)
            parts["similarity"], weights["similarity"] = elastic_similarity(cell, self.threshold), self.similarity
        if self.adversary:
            guessed = network.discriminate(encoded)
            parts["adversary"], weights["adversary"] = F.cross_entropy(guessed, batches), self.adversary
        shown = {name: part.detach() for name, part in parts.items()}
        if self.adversary:
            shown["batch_accuracy"] = (guessed.argmax(dim=1) == batches).float().mean()
        shown["reconstruction"] = reconstruction.detach()
        return Loss(_total(parts, weights, encoded.cell), shown, len(batch))

    def weight(self, batch: TokenBatch) -> float:
        """Number of masked positions, which most of the loss is averaged over; without reconstruction the number of cells."""
        return self._masked.weight(batch) if self.tokens or self.cell else float(len(batch))

    def over_epoch(self, parts: list[dict[str, Tensor]]) -> dict[str, float]:
        """No metrics besides means."""
        return {}

    def self_sampled(self, network: CellNetwork, batch: TokenBatch, generator: Generator) -> tuple[Tensor, int]:
        """Masked expression alone, at values sampled around the predictions, averaged over masked positions."""
        return self._masked.self_sampled(network, batch, generator)


def _total(parts: Mapping[str, Tensor], weights: Mapping[str, float], like: Tensor) -> Tensor:
    return torch.stack([weights[name] * part for name, part in parts.items()] or [like.new_zeros(())]).sum()
