"""A network made ready to embed many cells: no padding, and what is the same for all cells computed once."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from scgalore.nn.layout import Packed
from scgalore.nn.scgpt import ContinuousValueEncoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from scgalore.nn.scgpt import SCGPTNetwork

__all__ = ["CellEncoder"]


class CellEncoder:
    """Cell embeddings of a network in evaluation mode, for as long as its weights do not change.

    Embeddings of genes, ``LayerNorm(E[gene])``, and of binned values are tables, and tokens look both up. The last block
    works on ``<cls>`` alone where nothing else is read.

    Parameters
    ----------
    network
        In evaluation mode, on the device to compute on.
    tokens
        Ids of the tokens that cells may hold, int64 ``(t,)``, sorted.
    levels
        Values that they may hold, whole numbers in a range without gaps; ``None`` for values that are not binned.
    dtype
        Arithmetic of the blocks, of which a copy is made; the network's own when left out. Tables and norms keep theirs.
    """

    @torch.no_grad()
    def __init__(
        self,
        network: SCGPTNetwork,
        tokens: Tensor,
        *,
        levels: range | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.network = network
        own = network.encoder.embedding.weight
        self.dtype, device = dtype or own.dtype, own.device
        tokens = tokens.to(device)
        self._genes = network.encoder(tokens)  # (t, d)
        self._row_of = torch.full((network.config.n_tokens,), -1, device=device)
        self._row_of[tokens] = torch.arange(len(tokens), device=device)
        self._lowest, self._values = 0, None
        if levels is not None and isinstance(network.value_encoder, ContinuousValueEncoder):
            self._lowest = levels.start
            self._values = network.value_encoder(torch.tensor(levels, dtype=torch.float32, device=device))
        self._blocks: nn.Module = network.transformer_encoder
        if self.dtype != own.dtype:
            self._blocks = _copied(self._blocks, self.dtype)

    @torch.no_grad()
    def __call__(
        self, genes: Tensor, values: Tensor, lengths: Sequence[int], *, batches: Tensor | None = None
    ) -> Tensor:
        """Embed some cells.

        Parameters
        ----------
        genes
            Token ids of the cells, one after the other, each with ``<cls>`` first, int64 ``(n,)``.
        values
            Their values, float32 ``(n,)``.
        lengths
            Tokens of each cell.
        batches
            Codes of the sequencing batches, int64 ``(b,)``; for networks that normalise within batches.

        Returns
        -------
        Tensor
            Cell embeddings in the network's precision, ``(b, d)``.
        """
        hidden, layout = self._run(genes, values, lengths, batches, cls_only=self.network.config.cell_style == "cls")
        return self.network.pool(hidden.to(self._genes), values, layout)

    @torch.no_grad()
    def states(self, genes: Tensor, values: Tensor, lengths: Sequence[int], *, batches: Tensor | None = None) -> Tensor:
        """Last states ``(n, d)`` of all tokens, ``<cls>`` included, for the same parameters."""
        return self._run(genes, values, lengths, batches, cls_only=False)[0].to(self._genes)

    def _run(
        self, genes: Tensor, values: Tensor, lengths: Sequence[int], batches: Tensor | None, *, cls_only: bool
    ) -> tuple[Tensor, Packed]:
        network = self.network
        x = F.embedding(self._row_of[genes], self._genes)  # (n, d); an id that was not announced is an error
        if self._values is None:
            x = network.add_values(x, values)
        else:
            x += F.embedding((values - self._lowest).long(), self._values)
        layout = Packed(lengths, device=x.device)
        of_tokens = None if batches is None else batches.repeat_interleave(layout.offsets.diff())
        x = network.normalise(x.unsqueeze(1), of_tokens).squeeze(1).to(self.dtype)
        return self._blocks(x, layout, cls_only=cls_only), layout


def _copied(blocks: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy blocks with the weights of their layers in another precision, and those of the norms as they are."""
    memo: dict[int, Any] = {}
    for part in blocks.modules():
        for weight in part.parameters(recurse=False):
            kept = weight if isinstance(part, nn.LayerNorm) else weight.detach().to(dtype)
            memo[id(weight)] = nn.Parameter(kept.detach(), requires_grad=False)
    return copy.deepcopy(blocks, memo)  # looks weights up instead of copying them first
