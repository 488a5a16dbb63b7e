"""Predict masked expression from the other genes and from the cell embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from scgalore.data.hashing import uniforms
from scgalore.errors import OptionError
from scgalore.objectives.base import Loss
from scgalore.objectives.losses import masked_mse, negative_log_bernoulli
from scgalore.optim.sophia import sample_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Generator, Tensor

    from scgalore.data.tokens import TokenBatch
    from scgalore.nn import CellNetwork


@dataclass(frozen=True)
class MaskedExpression:
    """Squared error of masked expression, predicted from tokens and, if possible, from the cell embedding.

    Attributes
    ----------
    mask_ratio
        Fraction of a cell's genes to mask; of several, one is drawn per cell. ``<cls>`` and padding are never masked
        (scGPT's fine-tuning may mask ``<cls>``).
    mask_value
        Value of masked genes.
    """

    mask_ratio: float | tuple[float, ...] = 0.4
    mask_value: float = -1.0
    name: str = "masked_expression"
    monitor: str = "validation_loss"
    start_score: float = math.inf

    def __post_init__(self) -> None:
        ratios_of(self.mask_ratio, usual=0.4)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ratios, one of which is drawn per cell."""
        return ratios_of(self.mask_ratio, usual=0.4)

    @property
    def heads(self) -> Mapping[str, int]:
        """No heads on the cell embedding."""
        return {}

    def example(self, batch: TokenBatch) -> TokenBatch:
        """Add the expression to predict and its mask."""
        return batch.with_targets(expression=torch.zeros_like(batch.values), masked=torch.zeros_like(batch.padding))

    def corrupt(self, batch: TokenBatch, *, seed: int, draw: int) -> TokenBatch:
        """Mask some values; the originals become ``targets["expression"]``."""
        genes, keys = batch.genes.numpy(), batch.keys.numpy().view(np.uint64)
        maskable = ~batch.padding.numpy()
        maskable[:, 0] = False
        ratio = draw_ratio(self.ratios, keys, seed=seed, draw=draw)
        stream = f"mask/{draw}"
        order = uniforms(seed, stream, np.broadcast_to(keys[:, None], genes.shape), genes)
        masked = torch.from_numpy(smallest(order, maskable, (maskable.sum(axis=1) * ratio).astype(np.int64)))
        values = torch.where(masked, torch.full_like(batch.values, self.mask_value), batch.values)
        return replace(batch, values=values).with_targets(expression=batch.values, masked=masked)

    def __call__(self, network: CellNetwork, batch: TokenBatch) -> Loss:
        """Sum of the masked errors of one batch."""
        if not {"expression", "masked"} <= batch.targets.keys():
            msg = (
                f'{type(self).__name__} needs the targets "expression" and "masked". Call `corrupt` on the batch first.'
            )
            raise ValueError(msg)
        expression, masked = batch.targets["expression"], batch.targets["masked"]
        parts = {}
        for way, (prediction, nonzero) in self.predictions(network, batch).items():
            parts[f"mse{way}"] = masked_mse(prediction, expression, masked)
            if nonzero is not None:
                parts[f"zeros{way}"] = negative_log_bernoulli(nonzero, expression, masked)
        total = torch.stack(list(parts.values())).sum()
        return Loss(total, {name: part.detach() for name, part in parts.items()}, len(batch))

    def weight(self, batch: TokenBatch) -> float:
        """Number of genes to predict."""
        return int(batch.targets["masked"].sum())

    def predictions(self, network: CellNetwork, batch: TokenBatch) -> dict[str, tuple[Tensor, Tensor | None]]:
        """All predictions of the expression of every token; see :meth:`CellNetwork.expressions`."""
        encoded = network.encode(batch.genes, batch.values, batch.padding_if_any, cell_only=False, **batch.conditions)
        return network.expressions(encoded, batch.values, **batch.conditions)

    def over_epoch(self, parts: list[dict[str, Tensor]]) -> dict[str, float]:
        """No metrics besides means."""
        return {}

    def self_sampled(self, network: CellNetwork, batch: TokenBatch, generator: Generator) -> tuple[Tensor, int]:
        """Loss at values sampled around the predictions, averaged over masked positions."""
        masked = batch.targets["masked"]
        parts = []
        for prediction, nonzero in self.predictions(network, batch).values():
            parts.append(masked_mse(prediction, sample_values(prediction, generator), masked))
            if nonzero is not None:
                expressed = torch.bernoulli(nonzero.detach(), generator=generator)
                parts.append(negative_log_bernoulli(nonzero, expressed, masked))
        return torch.stack(parts).sum(), int(masked.sum())


def smallest(order: NDArray[np.float64], eligible: NDArray[np.bool_], n: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mark the ``n[i]`` eligible positions of row ``i`` with the smallest ``order``; arrays ``(b, s)`` and ``(b,)``."""
    rank = np.where(eligible, order, np.inf).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    return eligible & (rank < n[:, None])


def ratios_of(mask_ratio: float | tuple[float, ...], *, usual: float) -> tuple[float, ...]:
    """Check ratios, one of which is drawn per cell; raises :class:`~scgalore.errors.OptionError`, suggesting ``usual``."""
    ratios = mask_ratio if isinstance(mask_ratio, tuple) else (mask_ratio,)
    if not ratios or not all(0 < ratio < 1 for ratio in ratios):
        msg = f"mask_ratio={mask_ratio!r}: each ratio must lie strictly between 0 and 1, for example {usual}."
        raise OptionError(msg)
    return ratios


def draw_ratio(ratios: tuple[float, ...], keys: NDArray[np.uint64], *, seed: int, draw: int) -> NDArray[np.float64]:
    """Draw one of the ratios for each cell, ``(b,)``."""
    u = uniforms(seed, f"mask ratio/{draw}", keys, np.zeros(len(keys), dtype=np.int64))
    return np.asarray(ratios)[(u * len(ratios)).astype(np.int64)]
