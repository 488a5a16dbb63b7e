"""Exact attention by matrix products over blocks of queries, for bfloat16 on CPUs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from scgalore.nn.cpu.traced import one_block_is_enough

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["attend_in_blocks"]

# Maximum numbers of queries and of scores per block, which should fit into the cache.
_QUERIES = 256
_SCORES = 2**21


def attend_in_blocks(
    q: Tensor, k: Tensor, v: Tensor, attended: Tensor | None = None, *, forward: bool = True
) -> Tensor:
    """Compute attention, ``softmax(q @ k.T / sqrt(e)) @ v``.

    Scores are stored for one block of queries at a time and recomputed in the backward pass. On some processors
    PyTorch's kernel is no faster in bfloat16 than in float32, in the forward or the backward pass.

    Parameters
    ----------
    q
        Queries ``(b, h, t, e)``.
    k, v
        Keys and values ``(b, h, s, e)``.
    attended
        ``False`` for keys to ignore, for all queries of a cell, ``(b, 1, 1, s)``, or for each, ``(b, 1, t, s)``. Each
        query must have at least one key.
    forward
        Whether the forward pass also uses blocks; otherwise PyTorch's kernel computes it.

    Returns
    -------
    Tensor
        Shape ``(b, h, t, e)``, in memory as ``(b, t, h, e)``.
    """
    mixed: Tensor = _InBlocks.apply(q, k, v, attended, forward)
    return mixed


class _InBlocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attended: Tensor | None,
        in_blocks: bool,  # noqa: FBT001
    ) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            if in_blocks:
                mixed = _mixed(q, k, v, attended)
            else:
                mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attended)
        ctx.save_for_backward(q, k, v, attended, mixed)
        return mixed

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, attended, mixed = ctx.saved_tensors
        n_heads, scale = q.shape[1], 1 / math.sqrt(q.shape[-1])
        # d(scores) = p * (d(p) - delta), since a row of p sums to 1.
        delta = (grad_outputs[0].float() * mixed.float()).sum(dim=-1, keepdim=True).to(q.dtype)
        queries, keys, pull = (part.contiguous() for part in (q, k, grad_outputs[0]))
        values = _upright(v)
        dq = torch.empty_like(queries)
        # Summed over blocks in float32.
        dk, dv = (torch.zeros(part.shape, dtype=torch.float32) for part in (k, v))
        scratch = q.new_empty(0)
        with torch.autocast("cpu", enabled=False):
            for cells, block, p in _probabilities(q, k, attended):
                some_keys, some_values = keys[cells].flatten(0, 1), values[cells].flatten(0, 1)
                pulled, asking = pull[cells, :, block].flatten(0, 1), queries[cells, :, block].flatten(0, 1)
                scratch = scratch if len(scratch) >= p.numel() else q.new_empty(p.numel())
                dp = torch.bmm(pulled, some_values, out=scratch[: p.numel()].view(p.shape))
                dv[cells] += torch.bmm(p.transpose(-1, -2), pulled).unflatten(0, (-1, n_heads))
                ds = dp.sub_(delta[cells, :, block].flatten(0, 1)).mul_(p)
                dq[cells, :, block] = torch.bmm(ds, some_keys).mul_(scale).unflatten(0, (-1, n_heads))
                dk[cells] += torch.bmm(ds.transpose(-1, -2), asking).unflatten(0, (-1, n_heads))
        return dq, dk.mul_(scale).to(k.dtype), dv.to(v.dtype), None, None


def _mixed(q: Tensor, k: Tensor, v: Tensor, attended: Tensor | None) -> Tensor:
    n_heads, values = q.shape[1], v.contiguous()
    mixed = q.new_empty(q.shape[0], q.shape[2], n_heads, q.shape[3]).transpose(1, 2)
    for cells, block, p in _probabilities(q, k, attended):
        mixed[cells, :, block] = torch.bmm(p, values[cells].flatten(0, 1)).unflatten(0, (-1, n_heads))
    return mixed


def _upright(x: Tensor, factor: float = 1.0) -> Tensor:
    """Copy ``(b, h, s, e)`` to ``(b, h, e, s)`` in memory, with which oneDNN multiplies twice as fast as with a view."""
    turned = x.transpose(-1, -2)
    return torch.mul(turned, factor, out=x.new_empty(turned.shape))


def _probabilities(q: Tensor, k: Tensor, attended: Tensor | None) -> Iterator[tuple[slice, slice, Tensor]]:
    """Iterate over blocks: cells, queries and their attention ``(cells * h, queries, s)``, in memory that is reused."""
    n_cells, n_heads, n_queries, width = q.shape
    length = k.shape[2]
    # With heads before tokens in memory, blocks of heads are views.
    queries = q.contiguous()
    keys = _upright(k, 1 / math.sqrt(width))
    rows = min(n_queries, _QUERIES)
    at_once = min(n_cells, max(1, _SCORES // (n_heads * rows * length)))
    # Allocating memory for each block would take as long as its products.
    scratch = q.new_empty(at_once * n_heads * rows * length)
    for first in range(0, n_cells, at_once):
        cells = slice(first, first + at_once)
        for start in range(0, n_queries, rows):
            block = slice(start, start + rows)
            asking = queries[cells, :, block].flatten(0, 1)
            shape = (*asking.shape[:2], length)
            scores = torch.bmm(asking, keys[cells].flatten(0, 1), out=scratch[: math.prod(shape)].view(shape))
            if attended is not None:
                seen = attended[cells, :, block if attended.shape[2] > 1 else slice(None)]
                scores.unflatten(0, (-1, n_heads)).masked_fill_(~seen, -torch.inf)
            yield cells, block, torch.softmax(scores, dim=-1, out=scores)
            if one_block_is_enough(q):
                return
