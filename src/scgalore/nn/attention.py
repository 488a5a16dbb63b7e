"""Attention maps, from an explicit path that training never takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from scgalore.nn.layout import split_heads

if TYPE_CHECKING:
    from torch import Tensor, nn

    from scgalore.nn.scgpt import Block, SCGPTNetwork


@torch.no_grad()
def attention_scores(
    network: SCGPTNetwork,
    genes: Tensor,
    values: Tensor,
    padding: Tensor | None = None,
    *,
    batches: Tensor | None = None,
    flags: Tensor | None = None,
    layer: int = -1,
) -> Tensor:
    """Give the raw query-key products of one layer.

    Parameters
    ----------
    network
        A network in evaluation mode.
    genes, values, padding, batches, flags
        Tokens as for :meth:`SCGPTNetwork.encode`.
    layer
        Index of the block.

    Returns
    -------
    Tensor
        Float ``(b, h, s, s)``: queries by keys, neither scaled nor soft-maxed, as in upstream's gene network tutorial.
    """
    block = cast("Block", network.transformer_encoder.layers[layer])
    inputs: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        inputs.append(args[0])

    # Listening at the block leaves it to `encode` what a network adds to its tokens before.
    listener = block.register_forward_pre_hook(keep)
    try:
        network.encode(genes, values, padding, batches=batches, flags=flags)
    finally:
        listener.remove()
    q, k, _ = block.self_attn.Wqkv.parts(inputs[0])
    n_heads = block.self_attn.n_heads
    return split_heads(q, n_heads) @ split_heads(k, n_heads).transpose(-1, -2)


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
