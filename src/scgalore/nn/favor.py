"""FAVOR+: attention by random features, with time linear in the number of tokens.

Source: Choromanski et al., Rethinking Attention with Performers, ICLR 2021, arXiv:2009.14794. Shape letters: b cells, h
heads, s tokens, e width of a head, m random features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from scgalore.nn.cpu.traced import one_block_is_enough

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Generator, Tensor

__all__ = ["attend_by_features", "orthogonal_features"]

EPS = 1e-4
"""Added to each feature after the exponential."""

CHUNK = {True: 1 << 18, False: 1 << 25}
"""Maximum number of features in memory, on a CPU (to fit into its caches) and on other devices."""


def attend_by_features(q: Tensor, k: Tensor, v: Tensor, projection: Tensor, padding: Tensor | None = None) -> Tensor:
    """Mix values by the softmax kernel's positive random features, ``phi(q) (phi(k)' v) / (phi(q) sum phi(k))``.

    Features of a query are shifted by its largest exponent, those of keys by the largest of the cell, over all heads
    and tokens;
    :data:`EPS` is added afterwards, so the shift does not cancel. The original implementation uses the largest of the
    whole batch, which is identical for single cells.

    Tokens are processed in chunks, and their features are recomputed in the backward pass: only queries,
    keys, values and results are stored. On a CPU, cells are processed one by one, so that the result of a cell is
    bit-identical in any batch.

    Parameters
    ----------
    q
        ``(b, h, t, e)``; ``t`` may be fewer tokens than those of ``k`` and ``v``.
    k, v
        ``(b, h, s, e)``.
    projection
        Directions of the features, ``(m, e)``, without gradient.
    padding
        ``True`` at padding, ``(b, s)``; the first token of a cell is never padding.

    Returns
    -------
    Tensor
        ``(b, h, t, e)``, in float32, with tokens before heads in memory.
    """
    out: Tensor = _Attention.apply(q, k, v, projection * projection.shape[1] ** -0.25, padding)
    return out


def orthogonal_features(n_features: int, width: int, generator: Generator | None = None) -> Tensor:
    """Draw directions ``(m, e)`` that are orthogonal in blocks of ``e``, with norms of Gaussian vectors.

    Parameters
    ----------
    n_features, width
        ``m`` and ``e``.
    generator
        CPU generator; by default torch's global generator.
    """
    blocks = []
    for start in range(0, n_features, width):
        q, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
        blocks.append(q.T[: n_features - start])
    lengths = torch.randn(n_features, width, generator=generator).norm(dim=1, keepdim=True)
    return torch.cat(blocks) * lengths


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, weight: Tensor, padding: Tensor | None) -> Tensor:
        b, h, t, e = q.shape
        out = q.new_empty(b, t, h, e).transpose(1, 2)
        kept: list[_Keys] = []
        for at in _cells(q):
            kept.append(_sum_keys(k[at], v[at], weight, _rows(padding, at)))
            _read(out[at], q[at], weight, kept[-1])
        ctx.save_for_backward(q, k, v, weight, padding, out, *map(torch.cat, zip(*kept, strict=True)))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weight, padding, out, *kept = ctx.saved_tensors
        dq, dk, dv = (torch.empty_like(part) for part in (q, k, v))
        for at in _cells(q):
            of_keys = _Keys(*(part[at] for part in kept))
            of_sums = _read_backward(dq[at], grad[at], q[at], out[at], weight, of_keys)
            _sum_keys_backward(dk[at], dv[at], k[at], v[at], weight, _rows(padding, at), of_keys, *of_sums)
        return dq, dk, dv, None, None


class _Keys(NamedTuple):
    """Sums over keys: features times values ``(b, h, m, e)``, and features ``(b, h, m, 1)``.

    ``top`` is the largest exponent of each cell ``(b, 1, 1, 1)``, and ``winner`` its chunk ``(b,)``.
    """

    sums: Tensor
    totals: Tensor
    top: Tensor
    winner: Tensor


def _sum_keys(k: Tensor, v: Tensor, weight: Tensor, padding: Tensor | None) -> _Keys:
    b, h, n, e = k.shape
    sums, totals = v.new_zeros(b, h, len(weight), e), v.new_zeros(b, h, len(weight), 1)
    top = v.new_full((b, 1, 1, 1), -torch.inf)
    tops: list[Tensor] = []
    for at in _chunks(k, weight):
        x = _exponents(k[:, :, at], weight, _columns(padding, at))
        tops.append(x.amax(dim=(1, 2, 3), keepdim=True))
        last, top = top, torch.maximum(top, tops[-1])
        shrink = (last - top).exp()  # sums so far have another shift
        x = x.sub_(_half_squares(k[:, :, at]).add_(top)).exp_()
        sums.mul_(shrink).add_(x.transpose(-1, -2) @ v[:, :, at])
        totals.mul_(shrink).add_(x.sum(dim=2).unsqueeze(-1))
    if padding is None:
        sums += EPS * v.sum(dim=2, keepdim=True)
        totals += EPS * n
    else:
        real = (~padding[:, None, :, None]).to(v)
        sums += EPS * (v * real).sum(dim=2, keepdim=True)
        totals += EPS * real.sum(dim=2, keepdim=True)
    return _Keys(sums, totals, top, torch.cat(tops, dim=1).argmax(dim=1).flatten())


def _read(out: Tensor, q: Tensor, weight: Tensor, keys: _Keys) -> None:
    sums, totals = (EPS * part.sum(dim=2, keepdim=True) for part in (keys.sums, keys.totals))
    for at in _chunks(q, weight):
        x = _query_features(q[:, :, at], weight)
        torch.div((x @ keys.sums).add_(sums), (x @ keys.totals).add_(totals), out=out[:, :, at])


def _read_backward(
    dq: Tensor, grad: Tensor, q: Tensor, out: Tensor, weight: Tensor, keys: _Keys
) -> tuple[Tensor, Tensor]:
    """Write the gradient of the queries, and return those of sums and totals."""
    dsums, dtotals = torch.zeros_like(keys.sums), torch.zeros_like(keys.totals)
    totals = EPS * keys.totals.sum(dim=2, keepdim=True)
    for at in _chunks(q, weight):
        x = _query_features(q[:, :, at], weight)
        g = grad[:, :, at] / (x @ keys.totals).add_(totals)  # of the numerator
        of_total = -(g * out[:, :, at]).sum(dim=-1, keepdim=True)  # and of the denominator
        dsums += (x.transpose(-1, -2) @ g).add_(g.sum(dim=2, keepdim=True), alpha=EPS)
        dtotals += (x.transpose(-1, -2) @ of_total).add_(of_total.sum(dim=2, keepdim=True), alpha=EPS)
        largest = x.argmax(dim=-1)
        x *= (g @ keys.sums.transpose(-1, -2)).addcmul_(of_total, keys.totals.transpose(-1, -2))
        dq[:, :, at], total = _of_exponents(x, q[:, :, at], weight)
        dq[:, :, at] -= total * weight[largest]  # each was shifted by its largest
    return dsums, dtotals


def _sum_keys_backward(
    dk: Tensor,
    dv: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    padding: Tensor | None,
    keys: _Keys,
    dsums: Tensor,
    dtotals: Tensor,
) -> None:
    """Write the gradients of keys and values."""
    of_top, sums = torch.zeros_like(keys.top), EPS * dsums.sum(dim=2, keepdim=True)
    for at in _chunks(k, weight):
        x = _exponents(k[:, :, at], weight, _columns(padding, at))
        x = x.sub_(_half_squares(k[:, :, at]).add_(keys.top)).exp_()
        part = (x @ dsums).add_(sums)
        if padding is not None:
            part.masked_fill_(padding[:, None, at, None], 0)
        dv[:, :, at] = part
        x *= (v[:, :, at] @ dsums.transpose(-1, -2)).add_(dtotals.transpose(-1, -2))
        dk[:, :, at], total = _of_exponents(x, k[:, :, at], weight)
        of_top -= total.sum(dim=(1, 2, 3), keepdim=True)
    _add_of_largest(dk, of_top.flatten(), k, weight, padding, keys.winner)


def _cells(x: Tensor) -> Iterator[slice]:
    """Cells that are processed together."""
    if x.device.type != "cpu" or one_block_is_enough(x):
        yield slice(None)
    else:
        yield from (slice(row, row + 1) for row in range(len(x)))


def _rows(padding: Tensor | None, at: slice) -> Tensor | None:
    return None if padding is None else padding[at]


def _columns(padding: Tensor | None, at: slice) -> Tensor | None:
    return None if padding is None else padding[:, at]


def _chunks(x: Tensor, weight: Tensor) -> Iterator[slice]:
    """Tokens that are processed together."""
    b, h, n, _ = x.shape
    size = max(1, CHUNK[x.device.type == "cpu"] // (b * h * len(weight)))
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
        if one_block_is_enough(x):
            break


def _exponents(x: Tensor, weight: Tensor, padding: Tensor | None = None) -> Tensor:
    dash = x @ weight.T  # (b, h, chunk, m)
    return dash if padding is None else dash.masked_fill_(padding[:, None, :, None], -torch.inf)


def _half_squares(x: Tensor) -> Tensor:
    return x.square().sum(dim=-1, keepdim=True).mul_(0.5 * x.shape[-1] ** -0.5)


def _query_features(q: Tensor, weight: Tensor) -> Tensor:
    x = _exponents(q, weight)
    return x.sub_(_half_squares(q).add_(x.amax(dim=-1, keepdim=True))).exp_()


def _of_exponents(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of queries or keys from that of the exponents before the shift, and its sum over the features."""
    total = gradient.sum(dim=-1, keepdim=True)
    return (gradient @ weight).addcmul_(total, x, value=-(x.shape[-1] ** -0.5)), total


def _add_of_largest(
    dk: Tensor, of_top: Tensor, k: Tensor, weight: Tensor, padding: Tensor | None, winner: Tensor
) -> None:
    """Add the gradient of each cell's shift, ``(b,)``, to the key it comes from, in the chunk ``winner`` ``(b,)``."""
    b, h, n, e = k.shape
    size = next(_chunks(k, weight)).stop
    tokens = (winner[:, None] * size + torch.arange(size, device=k.device)).clamp(max=n - 1)  # (b, chunk)
    keys = k.gather(2, tokens[:, None, :, None].expand(b, h, size, e))
    x = _exponents(keys, weight, None if padding is None else padding.gather(1, tokens))
    place = x.flatten(1).argmax(dim=1)
    feature, place = place % len(weight), place // len(weight)
    cell, head = torch.arange(b, device=k.device), place // size
    dk[cell, head, tokens[cell, place % size]] += of_top[:, None] * weight[feature]
