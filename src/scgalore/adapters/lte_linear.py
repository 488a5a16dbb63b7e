"""A linear layer with parallel low-rank heads over shards of the batch.

Source: Huh et al. 2024, arXiv 2402.16828, the variant without resets.

Shape letters: b cells, s tokens, i and o inputs and outputs of a layer, n heads, r rank.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LTELinear(nn.Module):
    """A linear layer with ``n_heads`` low-rank heads, each of which is applied to one shard of the batch in training.

    With the weight W, the factors (A_n, B_n) of head n, their values (A'_n, B'_n) at the last merge and
    c = alpha / rank, a cell of shard n is multiplied by ``W + c (B_n A_n - B'_n A'_n)`` in training. In evaluation all
    cells are multiplied by its mean over heads, as after a merge into W.

    Parameters
    ----------
    base
        The layer to adapt. Its weight must be frozen, since only merges may change it.
    n_heads
        Number of heads, and of shards.
    rank
        Rank of a head.
    alpha
        Size of the updates: a product ``B_n A_n`` is multiplied by ``alpha / rank``.
    generator
        Generator for the initial A of each head, on the CPU.

    Attributes
    ----------
    A, B
        Factors of all heads, ``(n, r, i)`` and ``(n, o, r)``. Optimizers see one 3-D parameter each, which is too thin
        for projection.
    A_merged, B_merged
        Values at the last merge. Factors and merged factors together are ``2 n r (i + o)`` numbers.
    n_steps
        Number of optimizer steps, int64; a buffer, so that it is in the state dict.

    Notes
    -----
    The batch is dimension 0, and cell j belongs to shard ``j * n_heads // b``: sizes of shards differ by at most one
    cell. In a batch with fewer cells than heads, some heads get no cells. The loss is a mean over the batch, of which
    each head gets only the part of its shard. This matters for clipping and Adam's eps; therefore the gradient of a
    head is multiplied by ``b / (cells of its shard)``, which gives that of the mean over its shard.
    """

    def __init__(self, base: nn.Linear, *, n_heads: int, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        self.n_heads, self.scale = n_heads, alpha / rank
        d_out, d_in = base.weight.shape
        # Orthogonal rows of norm sqrt(i / r): |A x| is about |x|, regardless of the rank.
        gain = math.sqrt(d_in / rank)
        heads = [torch.empty(rank, d_in) for _ in range(n_heads)]
        heads = [nn.init.orthogonal_(head, gain, generator=generator) for head in heads]
        self.A = nn.Parameter(torch.stack(heads).to(base.weight))  # (n, r, i)
        self.B = nn.Parameter(base.weight.new_zeros(n_heads, d_out, rank))  # (n, o, r)
        self.A_merged: Tensor
        self.B_merged: Tensor
        self.n_steps: Tensor
        self.register_buffer("A_merged", self.A.detach().clone())
        self.register_buffer("B_merged", self.B.detach().clone())
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64, device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, ..., i)`` to ``(b, ..., o)``."""
        y = self.base(x)
        # One product of rank 2 r for head and correction: two separate ones take a third more time on a CPU.
        a = torch.cat([self.A, self.A_merged], dim=1)  # (n, 2r, i)
        b = self.scale * torch.cat([self.B, -self.B_merged], dim=2)  # (n, o, 2r)
        if not self.training:
            return y + F.linear(F.linear(x, a.flatten(0, 1)), _side_by_side(b) / self.n_heads)
        heads, n_cells = _shards(len(x), self.n_heads, x.device)
        for factor in (a, b):
            if factor.requires_grad:
                factor.register_hook(lambda grad: grad * len(x) / n_cells)
        hidden = _by_token(x) @ a[heads].mT  # (b, s, 2r)
        return torch.baddbmm(_by_token(y), hidden, b[heads].mT).view_as(y)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the mean over heads of their updates since the last merge to the weight."""
        a = torch.cat([self.A, self.A_merged], dim=1)
        b = torch.cat([self.B, -self.B_merged], dim=2)
        self._add(a, b)
        self.A_merged.copy_(self.A)
        self.B_merged.copy_(self.B)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Subtract all merged updates from the weight; evaluation still applies the full heads."""
        self._add(self.A_merged, -self.B_merged)
        self.B_merged.zero_()

    def _add(self, a: Tensor, b: Tensor) -> None:
        # Sum_n B_n A_n = [B_1 .. B_N] [A_1; ..; A_N]: one product, without a matrix of the weight's size per head.
        self.base.weight.addmm_(_side_by_side(b), a.flatten(0, 1), alpha=self.scale / self.n_heads)


def _side_by_side(b: Tensor) -> Tensor:
    return b.transpose(0, 1).flatten(1)  # (n, o, r) to (o, n r)


def _by_token(x: Tensor) -> Tensor:
    return x.unsqueeze(1) if x.dim() == 2 else x.flatten(1, -2)  # (b, s, i)


def _shards(b: int, n_heads: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Head of each cell ``(b,)``, and number of cells per head ``(n, 1, 1)``, at least 1."""
    heads = torch.arange(b, device=device) * n_heads // b
    starts = -(torch.arange(n_heads + 1, device=device) * -b // n_heads)
    # The gradient of a head without cells is zero; a division by zero would make it NaN.
    return heads, starts.diff().clamp(min=1).view(-1, 1, 1)
