"""Floating point operations of the scGPT network, counted from its sizes.

A multiplication of matrices (m, k) and (k, n) counts 2 m n k; sums, norms, activations, lookups and softmax are not counted.
For a cell of s tokens at width d, with feed-forward layers of width f:

- a block: 2 s d 3d (queries, keys, values) + 2 s d d (output) + 2 * 2 s d f (feed-forward) + 4 s^2 d (scores and mixing);
- the last block for ``<cls>`` alone: keys and values of all tokens, 2 s d 2d, and queries, output, feed-forward and
  attention of one token, 2 d d + 2 d d + 2 * 2 d f + 4 s d;
- the encoder of values: 2 s d + 2 s d d;
- the heads of training: expression from tokens, 2 * 2 s d d + 2 s d; from the cell embedding, 2 * 2 s d d + 2 s d.

The backward pass counts twice the forward pass, and checkpointing another forward pass of the blocks. A share of the
peak counts what the mathematics needs: a program that computes the value side once a bin, or skips what nobody reads,
is not credited for work that it does not do, so ``tables=True`` leaves out the encoder of values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scgalore.nn import SCGPTConfig


def block(config: SCGPTConfig, s: int) -> int:
    """One block over ``s`` tokens of one cell."""
    d, f = config.d_model, config.d_hid
    return 2 * s * d * (3 * d) + 2 * s * d * d + 4 * s * d * f + 4 * s * s * d


def last_block(config: SCGPTConfig, s: int) -> int:
    """Last block if only ``<cls>`` is needed, in float32 on a CPU: keys and values of the other tokens are not computed."""
    d, f = config.d_model, config.d_hid
    return 8 * d * d + 4 * d * f + 4 * s * config.n_heads * d


def value_encoder(config: SCGPTConfig, s: int) -> int:
    """Encoder of continuous values."""
    return 2 * s * config.d_model + 2 * s * config.d_model**2


def heads(config: SCGPTConfig, s: int) -> int:
    """Both heads that predict expression."""
    d = config.d_model
    return 2 * (4 * s * d * d + 2 * s * d)


def embedding(config: SCGPTConfig, s: int, *, tables: bool = False) -> int:
    """Forward pass of one cell of ``s`` tokens to its embedding.

    Parameters
    ----------
    config
        Sizes of the network.
    s
        Tokens, ``<cls>`` included.
    tables
        Whether the value side is looked up and not computed.
    """
    values = 0 if tables else value_encoder(config, s)
    return values + (config.n_layers - 1) * block(config, s) + last_block(config, s)


def forward(config: SCGPTConfig, s: int) -> int:
    """Forward pass of one cell with both heads."""
    return value_encoder(config, s) + config.n_layers * block(config, s) + heads(config, s)


def step(config: SCGPTConfig, s: int) -> int:
    """Training step of one cell, without checkpointing and without the optimizer."""
    return 3 * forward(config, s)
