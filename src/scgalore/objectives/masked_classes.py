"""Predict the masked classes of expression from the other genes: scBERT's pre-training."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from scgalore.data.hashing import uniforms
from scgalore.errors import OptionError
from scgalore.objectives.base import Loss
from scgalore.objectives.losses import masked_mean
from scgalore.objectives.masked_expression import draw_ratio, ratios_of, smallest
from scgalore.optim.sophia import sample_classes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor

    from scgalore.data.tokens import TokenBatch
    from scgalore.nn import CellNetwork


@dataclass(frozen=True)
class MaskedClasses:
    """Cross entropy of masked classes, ``ceil(mask_ratio * n)`` per cell with ``n`` genes above class 0.

    Source: Yang et al., Nature Machine Intelligence 2022, doi:10.1038/s42256-022-00534-z. The mean is over the masked
    genes of the batch.

    Attributes
    ----------
    mask_value
        Class of masked genes: ``n_bins`` of the network's configuration.
    mask_ratio
        Fraction of the genes above class 0 to predict; of several, one is drawn per cell.
    hidden_ratio
        Fraction of these that are masked; the others keep their class.
    """

    mask_value: float
    mask_ratio: float | tuple[float, ...] = 0.15
    hidden_ratio: float = 0.9
    name: str = "masked_classes"
    monitor: str = "validation_loss"
    start_score: float = math.inf

    def __post_init__(self) -> None:
        ratios_of(self.mask_ratio, usual=0.15)
        if not 0 < self.hidden_ratio <= 1:
            msg = f"hidden_ratio={self.hidden_ratio!r}: it must be above 0 and at most 1, for example 0.9."
            raise OptionError(msg)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ratios, one of which is drawn per cell."""
        return ratios_of(self.mask_ratio, usual=0.15)

    @property
    def heads(self) -> Mapping[str, int]:
        """No heads on the cell embedding."""
        return {}

    def example(self, batch: TokenBatch) -> TokenBatch:
        """Add the classes to predict and their positions."""
        return batch.with_targets(expression=torch.zeros_like(batch.values), masked=torch.zeros_like(batch.padding))

    def corrupt(self, batch: TokenBatch, *, seed: int, draw: int) -> TokenBatch:
        """Mask some classes; the originals become ``targets["expression"]``."""
        genes, keys = batch.genes.numpy(), batch.keys.numpy().view(np.uint64)
        of_cells = np.broadcast_to(keys[:, None], genes.shape)
        expressed = (batch.values.numpy() > 0) & ~batch.padding.numpy()
        expressed[:, 0] = False
        order = uniforms(seed, f"mask/{draw}", of_cells, genes)
        ratio = draw_ratio(self.ratios, keys, seed=seed, draw=draw)
        n = np.ceil(expressed.sum(axis=1) * ratio).astype(np.int64)
        masked = smallest(order, expressed, n)
        hidden = masked & (uniforms(seed, f"hide/{draw}", of_cells, genes) < self.hidden_ratio)
        values = batch.values.masked_fill(torch.from_numpy(hidden), self.mask_value)
        return replace(batch, values=values).with_targets(expression=batch.values, masked=torch.from_numpy(masked))

    def __call__(self, network: CellNetwork, batch: TokenBatch) -> Loss:
        """Cross entropy and accuracy of one batch; the accuracy considers only classes above 0, as in scBERT."""
        if not {"expression", "masked"} <= batch.targets.keys():
            msg = 'MaskedClasses needs the targets "expression" and "masked". Call `corrupt` on the batch first.'
            raise ValueError(msg)
        logits, masked = _logits(network, batch), batch.targets["masked"]
        classes = batch.targets["expression"].long()
        right = logits[..., 1:-1].argmax(dim=-1) + 1 == classes
        parts = {"accuracy": masked_mean(right.to(logits.dtype), masked).detach()}
        return Loss(_cross_entropy(logits, classes, masked), parts, len(batch))

    def weight(self, batch: TokenBatch) -> float:
        """Number of genes to predict."""
        return int(batch.targets["masked"].sum())

    def over_epoch(self, parts: list[dict[str, Tensor]]) -> dict[str, float]:
        """No metrics besides means."""
        return {}

    def self_sampled(self, network: CellNetwork, batch: TokenBatch, generator: Generator) -> tuple[Tensor, int]:
        """Cross entropy at classes sampled from the softmax, averaged over masked genes."""
        logits, masked = _logits(network, batch), batch.targets["masked"]
        drawn = sample_classes(logits.flatten(0, 1), generator).view_as(masked)
        return _cross_entropy(logits, drawn, masked), int(masked.sum())


def _logits(network: CellNetwork, batch: TokenBatch) -> Tensor:
    """Logits of all tokens, ``(b, s, n_classes)``: a small tensor, and memory can be traced without selecting tokens."""
    encoded = network.encode(batch.genes, batch.values, batch.padding_if_any, cell_only=False, **batch.conditions)
    return network.class_logits(encoded.hidden)


def _cross_entropy(logits: Tensor, classes: Tensor, masked: Tensor) -> Tensor:
    return masked_mean(F.cross_entropy(logits.transpose(1, 2), classes, reduction="none"), masked)
