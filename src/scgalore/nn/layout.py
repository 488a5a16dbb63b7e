"""How the tokens of some cells lie in a tensor, and attention within each cell in that layout.

Shape letters: b cells, s tokens of the longest cell, n tokens of all cells, d width, h heads, e width of a head.
"""

from __future__ import annotations

from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F

from scgalore.nn.cpu.blockwise import attend_in_blocks
from scgalore.nn.cpu.choice import differentiates, takes
from scgalore.nn.cpu.measure import LONG

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["Layout", "Packed", "Padded"]


class Layout(Protocol):
    """Where each cell's tokens are; ``<cls>`` is the first of each."""

    @property
    def generated(self) -> Tensor | None:
        """``True`` at tokens that only attend, ``(b, s)``; ``None`` where all tokens are attended to."""
        ...

    def cls(self, x: Tensor) -> Tensor:
        """States of the ``<cls>`` tokens, in the same layout with one token a cell."""
        ...

    def cells(self, x: Tensor) -> Tensor:
        """What :meth:`cls` gave, as ``(b, d)``."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, n_heads: int) -> Tensor:
        """Mix the values of each cell; ``q`` holds all tokens or, as :meth:`cls` gives them, one a cell."""
        ...

    def attend_once(self, q: Tensor, x: Tensor) -> Tensor:
        """Mix the states of each cell as the queries of its ``<cls>`` weigh them.

        Parameters
        ----------
        q
            Scaled queries of each head, against states, ``(b, h, d)``.
        x
            States of all tokens.

        Returns
        -------
        Tensor
            ``(b, h, d)``.
        """
        ...

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the tokens of each cell that may be attended to, ``(b, d)``."""
        ...

    def count(self) -> Tensor | int:
        """Number of these tokens, broadcast against ``(b, d)``."""
        ...


class Padded:
    """Cells as rows of equal length, ``(b, s, d)``.

    Parameters
    ----------
    padding
        ``True`` at padding, ``(b, s)``; ``None`` where nothing is padded.
    length
        Tokens in a row.
    generated
        ``True`` at tokens that attend to the other tokens of the cell and to themselves, and that no other token attends
        to, ``(b, s)``; never ``<cls>``.
    """

    def __init__(self, padding: Tensor | None, length: int, generated: Tensor | None = None) -> None:
        self.length, self.generated = length, generated
        #: Tokens that no other token attends to.
        self.unseen = generated if padding is None else (padding if generated is None else padding | generated)
        self._attended = None if self.unseen is None else ~self.unseen[:, None, None, :]  # (b, 1, 1, s)
        if self._attended is not None and generated is not None:
            self._attended = self._attended | torch.eye(
                length, dtype=torch.bool, device=generated.device
            )  # (b, 1, s, s)
        self._bias: Tensor | None = None

    def cls(self, x: Tensor) -> Tensor:
        """First token of each row, ``(b, 1, d)``."""
        return x[:, :1]

    def cells(self, x: Tensor) -> Tensor:
        """First token of each row, ``(b, d)``."""
        return x[:, 0]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, n_heads: int) -> Tensor:
        """Exact attention; padding and generated tokens are never attended to by others."""
        q, k, v = (split_heads(part, n_heads) for part in (q, k, v))
        mixed = _attend(q, k, v, self._mask(q, k, v))  # (b, h, s, e)
        return mixed.transpose(1, 2).flatten(-2)  # (b, s, d)

    def attend_once(self, q: Tensor, x: Tensor) -> Tensor:
        """See :meth:`Layout.attend_once`."""
        unseen = None if self.unseen is None else self.unseen.unsqueeze(1)
        return _mix_states(q, x, unseen)

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the tokens that are neither padding nor generated."""
        return (x if self.unseen is None else x.masked_fill(self.unseen.unsqueeze(-1), 0)).sum(dim=1)

    def count(self) -> Tensor | int:
        """Number of these tokens, ``(b, 1)``."""
        return self.length if self.unseen is None else (~self.unseen).sum(dim=1, keepdim=True)

    def _mask(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
        """Which keys the queries ``q`` see: booleans, or numbers to add to the scores."""
        attended = None if self._attended is None else self._attended[:, :, : q.shape[2]]
        if attended is None or attended.shape[2] == 1 or _in_blocks(q, k, v):
            return attended
        # Torch would make numbers of the booleans in each layer, and keep them all for the backward pass.
        if self._bias is None or self._bias.dtype != q.dtype:
            # Rows of a multiple of 8 numbers, since the memory-efficient kernel would copy others in each layer.
            rows = (*attended.shape[:3], -(-self.length // 8) * 8)
            bias = torch.zeros(rows, dtype=q.dtype, device=q.device)[..., : self.length]
            self._bias = bias.masked_fill_(~attended, -torch.inf)
        return self._bias


class Packed:
    """Cells one after the other without padding, ``(n, d)``: for inference, where nothing is then computed in vain.

    Parameters
    ----------
    lengths
        Tokens of each cell, at least one each. Cells of equal length that follow each other are attended to together.
    device
        Where the tokens are.
    """

    generated = None

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = list(lengths)
        bounds = [0, *accumulate(self.lengths)]
        self.offsets = torch.tensor(bounds).to(device)
        runs = [(length, len(list(group))) for length, group in groupby(self.lengths)]
        #: Number of cells and of tokens of each run of cells of equal length.
        self._n_cells = [n_cells for _, n_cells in runs]
        self._n_tokens = [length * n_cells for length, n_cells in runs]

    def cls(self, x: Tensor) -> Tensor:
        """First token of each cell, ``(b, d)``; what has one token a cell already stays as it is."""
        return x if len(x) == len(self.lengths) else x[self.offsets[:-1]]

    def cells(self, x: Tensor) -> Tensor:
        """The same."""
        return x

    def attend(self, q: Tensor, k: Tensor, v: Tensor, n_heads: int) -> Tensor:
        """Exact attention: a run of equal cells at a time on a CPU, all cells in one call elsewhere."""
        if q.device.type != "cpu":
            return self.attend_jagged(q, k, v, n_heads)
        one_query = len(q) == len(self.lengths)
        mixed = []
        by_run = self._by_run(q, cells=one_query), self._by_run(k), self._by_run(v)
        for n_cells, *parts in zip(self._n_cells, *by_run, strict=True):
            q_, k_, v_ = (split_heads(part.unflatten(0, (n_cells, -1)), n_heads) for part in parts)
            mixed.append(_attend(q_, k_, v_).transpose(1, 2).flatten(0, 1).flatten(-2))
        return torch.cat(mixed)

    def attend_jagged(self, q: Tensor, k: Tensor, v: Tensor, n_heads: int) -> Tensor:
        """Exact attention over all cells in one call, which flash attention takes without a mask."""
        # Lengths are told, since finding them would wait for the device.
        ends, shortest, longest = self.offsets, min(self.lengths), max(self.lengths)

        def jagged(part: Tensor, offsets: Tensor, shortest: int, longest: int) -> Tensor:
            heads = part.unflatten(-1, (n_heads, -1))
            nested = torch.nested.nested_tensor_from_jagged(
                heads, offsets=offsets, min_seqlen=shortest, max_seqlen=longest
            )
            return nested.transpose(1, 2)

        one_query = len(q) == len(self.lengths)
        ones = torch.arange(len(ends), device=q.device)
        queries = jagged(q, ones, 1, 1) if one_query else jagged(q, ends, shortest, longest)
        keys, values = (jagged(part, ends, shortest, longest) for part in (k, v))
        return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).values().flatten(-2)

    def _by_run(self, x: Tensor, *, cells: bool = False) -> Sequence[Tensor]:
        """What ``x`` has for each run: all tokens or one a cell. The backward pass joins the parts in one go."""
        return x.split(self._n_cells if cells else self._n_tokens)

    def attend_once(self, q: Tensor, x: Tensor) -> Tensor:
        """See :meth:`Layout.attend_once`; a run of equal cells at a time."""
        runs = zip(self._n_cells, self._by_run(q, cells=True), self._by_run(x), strict=True)
        return torch.cat([_mix_states(q_, states.unflatten(0, (n_cells, -1))) for n_cells, q_, states in runs])

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the tokens of each cell."""
        return torch.segment_reduce(x, "sum", offsets=self.offsets, axis=0)

    def count(self) -> Tensor:
        """Tokens of each cell, ``(b, 1)``."""
        return self.offsets.diff().unsqueeze(1)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Exact attention ``(b, h, s, e)`` by the kernel that is the faster one."""
    if _in_blocks(q, k, v):
        return attend_in_blocks(q, k, v, mask, forward=_in_blocks(q, k, v, backward=False))
    # Attention probabilities carry no dropout: with it SDPA falls back to the path that materialises (s, s) maps.
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _mix_states(q: Tensor, x: Tensor, unseen: Tensor | None = None) -> Tensor:
    """Means of states ``(b, s, d)`` by the scores of queries ``(b, h, d)``, excluding ``unseen`` tokens ``(b, 1, s)``."""
    scores = q @ x.transpose(1, 2)  # (b, h, s)
    if unseen is not None:
        scores = scores.masked_fill(unseen, -torch.inf)
    return scores.softmax(dim=-1) @ x  # (b, h, d)


def _in_blocks(q: Tensor, k: Tensor, v: Tensor, *, backward: bool | None = None) -> bool:
    backward = differentiates(q, k, v) if backward is None else backward
    return takes("attention", q, large=k.shape[2] > LONG, backward=backward)


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """From ``(b, s, d)`` to ``(b, h, s, e)``."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)
