"""Clipping by the norm of all gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


@torch.no_grad()
def clip_by_norm_(gradients: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale gradients in place so that their common norm is at most ``max_norm``.

    As :func:`torch.nn.utils.clip_grad_norm_`, but the norm is summed row by row and the rows in float64: rows of zeros,
    which a full table of gene embeddings has and a sliced one has not, then disappear when it is rounded to float32.

    Returns
    -------
    The norm before.
    """
    gradients = list(gradients)
    rows = [torch.linalg.vector_norm(grad, dim=-1 if grad.ndim > 1 else None).flatten() for grad in gradients]
    device = rows[0].device
    wide = torch.float32 if device.type == "mps" else torch.float64  # which has no float64
    norm = torch.cat([row.to(device, wide) for row in rows]).norm()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0).to(torch.float32)
    torch._foreach_mul_(gradients, factor)
    return norm.to(torch.float32)
