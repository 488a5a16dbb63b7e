"""Predict expression after a perturbation from control cells whose perturbed genes are flagged."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from scipy.special import stdtrit

from scgalore.objectives.base import Loss
from scgalore.objectives.losses import masked_mse
from scgalore.optim.sophia import sample_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor

    from scgalore.data.tokens import TokenBatch
    from scgalore.nn import CellNetwork


ENOUGH = 8
"""Number of validation perturbations from which one standard error suffices."""

ONE_ERROR, TWO_ERRORS = 0.159, 0.023
"""Probabilities that a normal variable exceeds its mean by one and by two standard deviations."""


@dataclass(frozen=True)
class Perturbation:
    """Mean squared error of the expression of all measured genes (Cui et al. 2024, perturbation task).

    With a prior, the network's output is added to the mean of the control cells and the effect of the prior, so that
    the network learns the residual of the prior. Without one, the output is the expression.

    A validation batch is one perturbation, whose mean is predicted. ``delta_error`` is one minus the Pearson
    correlation of predicted and measured effect over genes ("Pearson delta"). ``score`` adds the fraction by which the
    squared error exceeds that of the prior, since a correlation ignores the size of effects. ``gain``
    is the improvement of the score over the prior. ``expression_error`` is one minus the correlation of expression
    itself, which is 0.99 for any model and is not used for selection.

    The epoch is selected by ``choice``: its score if its gains pass a paired t-test over the validation perturbations,
    else that of the prior. With :data:`ENOUGH` perturbations the mean gain has to exceed about one standard error, with
    fewer about two, since a few perturbations are easily predicted better by chance in one of ten epochs. ``hopeless``
    is 1 if the mean gain is below zero by two standard errors.

    Attributes
    ----------
    start_score
        ``score`` of the prior alone, which is its ``delta_error``: an epoch is kept only if it is better.
    """

    start_score: float = math.inf
    name: str = "perturbation"
    monitor: str = "validation_choice"

    @property
    def heads(self) -> Mapping[str, int]:
        """No heads on the cell embedding."""
        return {}

    def example(self, batch: TokenBatch) -> TokenBatch:
        """Add flags, targets, their mask, controls and a prior."""
        numbers = {name: torch.zeros_like(batch.values) for name in ("expression", "controls", "prior")}
        batch = batch.with_targets(**numbers, masked=torch.zeros_like(batch.padding))
        return batch.with_conditions(flags=torch.zeros_like(batch.genes))

    def corrupt(self, batch: TokenBatch, *, seed: int, draw: int) -> TokenBatch:
        """Leave the batch as it is."""
        return batch

    def __call__(self, network: CellNetwork, batch: TokenBatch) -> Loss:
        """Squared error of one batch and, in validation, the error of the effect."""
        prediction, targets, counted = _prediction(network, batch)
        error = masked_mse(prediction, targets, counted)
        parts = {"mse": error.detach()}
        if not network.training:
            controls, prior = batch.targets["controls"], batch.targets.get("prior")
            delta_error = 1 - pearson_of_means(prediction, targets, batch, controls)
            parts["delta_error"] = delta_error
            parts["score"] = delta_error + excess_error(prediction, targets, batch)
            if prior is not None:
                of_prior = 1 - pearson_of_means(controls + prior, targets, batch, controls)
                parts["gain"] = of_prior - parts["score"]
            parts["expression_error"] = 1 - pearson_of_means(prediction, targets, batch, None)
        return Loss(error, parts, len(batch))

    def weight(self, batch: TokenBatch) -> float:
        """Number of measured genes of all cells."""
        return int(batch.targets["masked"].sum())

    def over_epoch(self, parts: list[dict[str, Tensor]]) -> dict[str, float]:
        """Score for selecting the epoch, from the parts of all validation perturbations."""
        score = statistics.fmean(float(part["score"]) for part in parts)
        gains = [float(part["gain"]) for part in parts if "gain" in part]
        if not gains or not math.isfinite(self.start_score) or not all(map(math.isfinite, gains)):
            return {"choice": score}
        n, gain = len(gains), statistics.fmean(gains)
        error = statistics.stdev(gains) / math.sqrt(n) if n > 1 else math.inf
        clear, enough = (
            _deviations(share, n) * error for share in (TWO_ERRORS, ONE_ERROR if n >= ENOUGH else TWO_ERRORS)
        )
        return {"choice": score if gain > enough else self.start_score, "hopeless": float(gain < -clear)}

    def self_sampled(self, network: CellNetwork, batch: TokenBatch, generator: Generator) -> tuple[Tensor, int]:
        """Squared error at values sampled around the predictions, averaged over the measured genes of all cells."""
        prediction, _, counted = _prediction(network, batch)
        return masked_mse(prediction, sample_values(prediction, generator), counted), int(counted.sum())


def _deviations(share: float, n: int) -> float:
    """Number of standard errors that the mean of ``n`` numbers exceeds by chance with probability ``share``."""
    return float(stdtrit(n - 1, 1 - share)) if n > 1 else 1.0


def _prediction(network: CellNetwork, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
    if not {"expression", "masked", "controls"} <= batch.targets.keys():
        msg = 'Perturbation needs the targets "expression", "masked" and "controls". Create batches with PerturbationCells.'
        raise ValueError(msg)
    encoded = network.encode(batch.genes, batch.values, batch.padding_if_any, cell_only=False, **batch.conditions)
    output = network.expression(encoded, batch.values)[0]  # (b, s)
    if "prior" in batch.targets:
        output = batch.targets["controls"] + batch.targets["prior"] + output
    return output, batch.targets["expression"], batch.targets["masked"]


def excess_error(prediction: Tensor, targets: Tensor, batch: TokenBatch) -> Tensor:
    """Fraction by which the squared error of the mean prediction exceeds that of the prior, at least 0.

    Parameters
    ----------
    prediction, targets
        Expression, ``(b, s)``.
    batch
        One perturbation; every cell has the same genes.
    """
    if "prior" not in batch.targets:
        return prediction.new_zeros(())
    counted = batch.targets["masked"][0]
    true = targets[0, counted].double()
    of_prior = (batch.targets["controls"] + batch.targets["prior"])[0, counted].double() - true
    own = prediction.detach()[:, counted].double().mean(dim=0) - true
    excess = own.square().sum() / of_prior.square().sum().clamp(min=1e-12) - 1
    return excess.clamp(min=0).to(prediction.dtype)


def pearson_of_means(prediction: Tensor, targets: Tensor, batch: TokenBatch, reference: Tensor | None) -> Tensor:
    """Pearson correlation over genes of the mean prediction and the mean truth; 0 if one of them is constant.

    Parameters
    ----------
    prediction, targets
        Expression, ``(b, s)``.
    batch
        One perturbation; every cell has the same genes.
    reference
        Reference to subtract from both, ``(b, s)``; ``None`` compares expression itself.
    """
    counted = batch.targets["masked"][0]
    predicted, true = (x.detach()[:, counted].double().mean(dim=0) for x in (prediction, targets))
    if reference is not None:
        control = reference[0, counted].double()
        predicted, true = predicted - control, true - control
    both = torch.stack([predicted - predicted.mean(), true - true.mean()])
    length = both.norm(dim=1)
    # A prediction without effect has correlation 0, instead of that of rounding errors.
    if bool((length <= 1e-6 * math.sqrt(both.shape[1])).any()):
        return prediction.new_zeros(())
    return (both[0] @ both[1] / length.prod()).to(prediction.dtype)
