"""Attention maps, from an explicit path that training never takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scgalore.nn.network import attention_mask

if TYPE_CHECKING:
    from torch import Tensor

    from scgalore.nn.network import SCGPTNetwork


@torch.no_grad()
def attention_scores(
    network: SCGPTNetwork, genes: Tensor, values: Tensor, padding: Tensor | None = None, *, layer: int = -1
) -> Tensor:
    """Give the raw query-key products of one layer.

    Parameters
    ----------
    network
        A network in evaluation mode.
    genes, values, padding
        Tokens as for :meth:`SCGPTNetwork.encode`, shape ``(b, s)``.
    layer
        Index of the block.

    Returns
    -------
    Tensor
        Float ``(b, h, s, s)``: queries by keys, neither scaled nor soft-maxed, as in upstream's gene network tutorial.
    """
    x = network._normalise(network._add_values(network.encoder(genes), values), None)
    attend = attention_mask(padding)
    blocks = network.transformer_encoder.layers
    for block in blocks[: layer % len(blocks)]:
        x = block(x, attend)
    q, k, _ = blocks[layer].self_attn.project(x)
    return q @ k.transpose(-1, -2)


def rank_scores(scores: Tensor) -> Tensor:
    """Rank scores within each row, then each column, scaled to [0, 1), and average over heads.

    Parameters
    ----------
    scores
        Query-key products ``(b, h, s, s)``.

    Returns
    -------
    Tensor
        ``(b, s, s)``.
    """
    for dim in (-1, -2):
        scores = scores.argsort(dim=dim).argsort(dim=dim) / scores.shape[-1]
    return scores.mean(dim=1)
