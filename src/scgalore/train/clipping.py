"""Clipping by the global norm of gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


@torch.no_grad()
def clip_by_norm_(gradients: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale gradients in place so that their common norm is at most ``max_norm``.

    As :func:`torch.nn.utils.clip_grad_norm_`, but the norm is summed by row, and over rows in float64: rows of zeros,
    which a full gene embedding has but a sliced one does not, then do not change the norm in float32.

    Returns
    -------
    The norm before clipping.
    """
    gradients = list(gradients)
    rows = [torch.linalg.vector_norm(grad, dim=-1 if grad.ndim > 1 else None).flatten() for grad in gradients]
    device = rows[0].device
    wide = torch.float32 if device.type == "mps" else torch.float64  # which has no float64
    norm = torch.cat([row.to(device, wide) for row in rows]).norm()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0).to(torch.float32)
    torch._foreach_mul_(gradients, factor)
    return norm.to(torch.float32)
