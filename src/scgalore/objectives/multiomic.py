"""Predict masked RNA and proteins of a cell from each other, and all proteins from both modalities and from RNA alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from scgalore.data.tokens import PROTEIN, RNA
from scgalore.objectives.base import Loss
from scgalore.optim.sophia import sample_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor

    from scgalore.data.tokens import TokenBatch
    from scgalore.nn.base import CellNetwork
    from scgalore.objectives.masked_expression import MaskedExpression

HEAD = "proteins"
JOINT = "joint"
"""Head that predicts proteins from the joint embedding."""


@dataclass(frozen=True)
class Multiomic:
    """Squared error of masked RNA and proteins, and of all proteins predicted from both modalities and from RNA alone.

    The first two are divided by the variance of bins, so that all parts are fractions of a variance. Predicting
    proteins from the joint embedding ensures that it represents the few proteins among many genes. Needs the targets of
    :class:`~scgalore.objectives.MaskedExpression` and ``batch.targets["proteins"]``, standardised, float32 ``(b,
    n_proteins)``. If ``batch.targets["prior"]``, of the same shape, is present, the output of the head is added to it.

    Attributes
    ----------
    n_proteins
        Number of outputs of the head.
    masked
        Objective that defines the masking.
    n_bins
        Number of expression bins.
    masked_weight, joint_weight, protein_weight
        Weights of the masked errors, and of the errors of proteins predicted from both modalities and from RNA alone.
    """

    n_proteins: int
    masked: MaskedExpression
    n_bins: int = 51
    masked_weight: float = 1.0
    joint_weight: float = 1.0
    protein_weight: float = 1.0
    name: str = "multiomic"
    monitor: str = "validation_loss"
    start_score: float = math.inf
    heads: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", {HEAD: self.n_proteins, JOINT: self.n_proteins})

    def example(self, batch: TokenBatch) -> TokenBatch:
        """Add targets and the modality of each token."""
        modalities = torch.full_like(batch.genes, RNA)
        zeros = batch.values.new_zeros(len(batch), self.n_proteins)
        batch = self.masked.example(batch).with_targets(proteins=zeros, prior=zeros)
        return batch.with_conditions(modalities=modalities)

    def corrupt(self, batch: TokenBatch, *, seed: int, draw: int) -> TokenBatch:
        """Mask some values of both modalities."""
        return self.masked.corrupt(batch, seed=seed, draw=draw)

    def __call__(self, network: CellNetwork, batch: TokenBatch) -> Loss:
        """The weighted sum, and its unweighted parts."""
        proteins = batch.targets["proteins"]
        parts: dict[str, Tensor] = {}
        predicted, joint = self._from_both(network, batch)
        for way, prediction in predicted.items():
            for kind, here in self._masked_of(batch).items():
                parts[f"mse_{kind}{way}"] = of_cells(prediction, batch.targets["expression"], here) / self._variance
        total = self.masked_weight * torch.stack(list(parts.values())).sum()
        parts["joint_error"] = F.mse_loss(joint, proteins)
        parts["protein_error"] = F.mse_loss(from_rna(network, batch), proteins)
        total = total + self.joint_weight * parts["joint_error"] + self.protein_weight * parts["protein_error"]
        return Loss(total, {name: part.detach() for name, part in parts.items()}, len(batch))

    @property
    def _variance(self) -> float:
        """Variance of equally frequent bins."""
        return ((self.n_bins - 1) ** 2 - 1) / 12

    @staticmethod
    def _from_both(network: CellNetwork, batch: TokenBatch) -> tuple[dict[str, Tensor], Tensor]:
        """All predictions of the expression of every token, and proteins predicted from the embedding."""
        encoded = network.encode(batch.genes, batch.values, batch.padding_if_any, cell_only=False, **batch.conditions)
        predicted = network.expressions(encoded, batch.values, **batch.conditions)
        joint = network.read_head(JOINT, encoded.cell)
        return {way: expression for way, (expression, _) in predicted.items()}, joint

    @staticmethod
    def _masked_of(batch: TokenBatch) -> dict[str, Tensor]:
        masked, is_protein = batch.targets["masked"], batch.conditions["modalities"] == PROTEIN
        return {"rna": masked & ~is_protein, "protein": masked & is_protein}

    def weight(self, batch: TokenBatch) -> float:
        """Number of cells."""
        return len(batch)

    def over_epoch(self, parts: list[dict[str, Tensor]]) -> dict[str, float]:
        """No metrics besides means."""
        return {}

    def self_sampled(self, network: CellNetwork, batch: TokenBatch, generator: Generator) -> tuple[Tensor, int]:
        """Squared errors at values sampled around the predictions, averaged over masked positions and proteins."""
        alone = from_rna(network, batch)
        predicted, joint = self._from_both(network, batch)
        parts = [
            self.joint_weight * F.mse_loss(joint, sample_values(joint, generator)),
            self.protein_weight * F.mse_loss(alone, sample_values(alone, generator)),
        ]
        for prediction in predicted.values():
            drawn = sample_values(prediction, generator)
            errors = [of_cells(prediction, drawn, here) for here in self._masked_of(batch).values()]
            parts.append(self.masked_weight * torch.stack(errors).sum() / self._variance)
        return torch.stack(parts).sum(), int(batch.targets["masked"].sum()) + 2 * alone.numel()


def of_cells(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean over cells of the mean squared error over masked positions, 0 for cells without; arguments ``(b, s)``."""
    counted = mask.to(prediction.dtype)
    of_cell = ((prediction - target).square() * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
    return of_cell.mean()


def from_rna(network: CellNetwork, batch: TokenBatch) -> Tensor:
    """Proteins ``(b, n_proteins)`` predicted by the head from RNA alone, plus the prior if present."""
    hidden = batch.padding | (batch.conditions["modalities"] == PROTEIN)
    encoded = network.encode(batch.genes, batch.targets["expression"], hidden, cell_only=True, **batch.conditions)
    found = network.read_head(HEAD, encoded.cell)
    return found + batch.targets["prior"] if "prior" in batch.targets else found
