"""Fast embedding of many cells: no padding, and precomputed tables."""

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
    """Cell embeddings of a network in evaluation mode, valid as long as its weights do not change.

    Embeddings of genes, ``LayerNorm(E[gene])``, and of binned values are precomputed tables. The last block
    is applied only to ``<cls>`` if no other states are needed.

    Parameters
    ----------
    network
        Network in evaluation mode, on its device.
    tokens
        Ids of the tokens that may occur, int64 ``(t,)``, sorted.
    levels
        Values that may occur, integers in a range without gaps; ``None`` for unbinned values.
    dtype
        Dtype of the blocks, which are copied; by default that of the network. Tables and norms keep their dtype.
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
            values = torch.arange(levels.start, levels.stop, dtype=torch.float32, device=device)
            self._values = network.value_encoder(values)
        self._blocks: nn.Module = network.transformer_encoder
        if self.dtype != own.dtype:
            self._blocks = _copied(self._blocks, self.dtype)

    @torch.no_grad()
    def __call__(
        self, genes: Tensor, values: Tensor, lengths: Sequence[int], *, batches: Tensor | None = None
    ) -> Tensor:
        """Embed cells.

        Parameters
        ----------
        genes
            Concatenated token ids of the cells, each with ``<cls>`` first, int64 ``(n,)``.
        values
            Values of these tokens, float32 ``(n,)``.
        lengths
            Number of tokens of each cell.
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
        """Last states ``(n, d)`` of all tokens, including ``<cls>``; parameters as for calls."""
        return self._run(genes, values, lengths, batches, cls_only=False)[0].to(self._genes)

    def _run(
        self, genes: Tensor, values: Tensor, lengths: Sequence[int], batches: Tensor | None, *, cls_only: bool
    ) -> tuple[Tensor, Packed]:
        network = self.network
        x = F.embedding(self._row_of[genes], self._genes)  # (n, d); an unexpected id raises an error
        if self._values is None:
            x = network.add_values(x, values)
        else:
            x += F.embedding((values - self._lowest).long(), self._values)
        layout = Packed(lengths, device=x.device)
        of_tokens = None if batches is None else batches.repeat_interleave(layout.offsets.diff())
        x = network.normalise(x.unsqueeze(1), of_tokens).squeeze(1).to(self.dtype)
        return self._blocks(x, layout, cls_only=cls_only), layout


def _copied(blocks: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy blocks with the weights of layers in another precision, without changing those of norms."""
    memo: dict[int, Any] = {}
    for part in blocks.modules():
        for weight in part.parameters(recurse=False):
            kept = weight if isinstance(part, nn.LayerNorm) else weight.detach().to(dtype)
            memo[id(weight)] = nn.Parameter(kept.detach(), requires_grad=False)
    return copy.deepcopy(blocks, memo)  # uses converted weights instead of copying them first
