"""Loss functions of scGPT as pure functions of tensors.

Source: Cui et al., Nature Methods 2024, doi:10.1038/s41592-024-02201-0. Shape letters: b cells, s tokens, d width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["elastic_similarity", "masked_mean", "masked_mse", "masked_relative_error", "negative_log_bernoulli"]


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the positions where ``mask`` is true; all arguments ``(b, s)``."""
    return masked_mean((prediction - target).square(), mask)


def masked_relative_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``|p - t| / (t + 1e-6)`` over ``mask``; very large if the target is 0, as in scGPT."""
    # Terms differ by factors of 1e6: selecting them sums in scGPT's order, so that the result is bit-identical.
    error = (prediction - target).abs() / (target + 1e-6)
    return error[mask].sum() / mask.sum().clamp(min=1)


def negative_log_bernoulli(nonzero_probability: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of "expressed or not" over ``mask``."""
    likelihood = torch.distributions.Bernoulli(probs=nonzero_probability)
    return -masked_mean(likelihood.log_prob((target > 0).to(nonzero_probability.dtype)), mask)


def elastic_similarity(cells: Tensor, threshold: float) -> Tensor:
    """Push cosine similarities of cells ``(b, d)`` away from ``threshold`` ("elastic cell similarity").

    ``mean(1 - (S - threshold)^2)`` over all pairs, with negative similarities and the diagonal of ``S`` set to 0.
    """
    unit = F.normalize(cells, dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(0).relu()  # (b, b)
    return (1 - (similarity - threshold).square()).mean()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``x`` over the positions where ``mask`` is true, 0 if there are none."""
    weight = mask.to(x.dtype)
    # Cells with one or two genes may have no masked positions; 0 / 0 would make all weights NaN.
    return (x * weight).sum() / weight.sum().clamp(min=1)
