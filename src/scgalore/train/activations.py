"""What a training step keeps for its backward pass, and what it needs beside that, counted from sizes.

Formulas of our network (:mod:`scgalore.nn.scgpt`), held in tests against the bytes that autograd really keeps. Letters:
b cells, s tokens of the longest cell, T = b s, d width, f feed-forward width, h heads, U = T d and F = T f numbers.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scgalore.nn import SCGPTConfig

__all__ = ["Activations", "Step", "count_activations"]

FP32 = 4
INPUTS = 40
"""Bytes a token of a batch: ids, values, targets and flags of 8 and 4 bytes, masks of 1."""

# Queries at a time and scores of them, of attention in bfloat16 on a CPU (scgalore.nn.cpu.blockwise).
_QUERIES, _SCORES = 256, 2**21

# glibc does not use freed aligned blocks again for blocks of the same size (its bug 14581), unless they were so large that
# they were given back: shares of a block's tensors that stay, measured with glibc 2.36 over lengths from 500 to 5,000.
_LARGEST_HELD = 2**25
_HELD = {True: 0.42, False: 0.77}


@dataclass(frozen=True)
class Step:
    """What the bytes of a step hang on.

    Attributes
    ----------
    network
        Sizes of the network.
    objective
        Name of what is trained for.
    n_cells, n_tokens
        Cells of a batch and tokens of its longest one, ``<cls>`` included.
    half
        Whether products are in half precision (autocast); weights stay float32.
    checkpointing
        Whether blocks are computed once more in the backward pass.
    dropout
        Its probability.
    on_cpu
        Whether the step runs on a CPU.
    padded
        Whether some cells are shorter than the longest.
    frozen_input
        Whether nothing before the blocks is trained.
    trains_table
        Whether the gene embedding is.
    factors
        Numbers a token that low-rank factors add to each block.
    """

    network: SCGPTConfig
    objective: str
    n_cells: int
    n_tokens: int
    half: bool
    checkpointing: bool
    dropout: float
    on_cpu: bool
    padded: bool = True
    frozen_input: bool = False
    trains_table: bool = True
    factors: int = 0

    @property
    def size(self) -> int:
        """Bytes of a number in products."""
        return 2 if self.half else FP32

    @property
    def tokens(self) -> int:
        """Tokens of a batch, padding included."""
        return self.n_cells * self.n_tokens

    @property
    def cell_only(self) -> bool:
        """Whether the last block works on ``<cls>`` alone."""
        return self.objective == "classification" and self.network.cell_style == "cls"


@dataclass(frozen=True)
class Activations:
    """Bytes of a step.

    Attributes
    ----------
    kept
        What autograd keeps between the forward and the backward pass.
    transient
        Most that exists beyond that at any moment.
    held
        Freed memory that the allocator of a CPU does not give back.
    """

    kept: int
    transient: int
    held: int


def count_activations(step: Step) -> Activations:
    """Count the bytes of a step."""
    n_blocks = step.network.n_layers
    entry, block, last, head = _entry(step), _block(step), _block(step, cls_only=step.cell_only), _head(step)
    weights = _block_weights(step.network) * 2 if step.half else 0
    if step.checkpointing:
        kept = entry + n_blocks * _block_input(step) + head
        again = block + weights - _block_input(step)
    else:
        kept = entry + (n_blocks - 1) * (block + weights) + last + weights + head
        again = 0
    forward = _forward_work(step) + (n_blocks * weights if step.checkpointing else 0)
    # The heads' share is free again when the gradient reaches the blocks.
    backward = max(_head_work(step), again + _block_work(step) - head)
    return Activations(kept, max(forward, backward) + INPUTS * step.tokens, _held(step))


def _numbers(step: Step) -> tuple[int, int]:
    return step.tokens * step.network.d_model, step.tokens * step.network.d_hid


def _entry(step: Step) -> int:
    """Encoders of genes, values and flags."""
    config, (wide, _) = step.network, _numbers(step)
    if step.frozen_input:
        return 0
    d, tokens = config.d_model, step.tokens
    kept = FP32 * wide + 8 * tokens  # norm of the gene embedding: its input, two statistics a token
    kept += 8 * tokens * step.trains_table
    if config.value_style == "continuous":
        # The norm of the values is in float32 on a GPU, in whatever it is given on a CPU.
        of_norm = step.size if step.on_cpu else FP32
        kept += step.size * tokens + step.size * wide + of_norm * wide + 8 * tokens
        kept += wide * (step.dropout > 0) + (2 * d * d if step.half else 0)
    elif config.value_style == "category":
        kept += 16 * tokens + FP32 * wide
    else:
        kept += FP32 * tokens
    kept += 8 * tokens * config.perturbation
    return kept + FP32 * wide * (config.batch_norm != "none")


def _block_input(step: Step) -> int:
    return FP32 * _numbers(step)[0]


def _block_weights(config: SCGPTConfig) -> int:
    return 4 * config.d_model**2 + 2 * config.d_model * config.d_hid


def _block(step: Step, *, cls_only: bool = False) -> int:
    """Tensors of one block, half-precision copies of its weights left out."""
    config, e = step.network, step.size
    of_all, of_queries = step.tokens, step.n_cells if cls_only else step.tokens
    wide, wide_q, hidden_q = of_all * config.d_model, of_queries * config.d_model, of_queries * config.d_hid
    kept = e * (3 * wide + 2 * wide_q)  # input, keys and values; queries and what attention gives
    kept += e * wide_q * cls_only  # the input of the queries is a copy then
    # Inputs of two norms are float32, with two statistics a token; between them is the input of the feed-forward part.
    kept += 2 * FP32 * wide_q + 16 * of_queries + e * wide_q
    kept += e * hidden_q
    if step.dropout > 0:
        kept += 2 * wide_q + hidden_q + e * hidden_q  # masks of one byte, and what is left of the hidden values
    if not (step.half and step.on_cpu):
        kept += FP32 * of_queries * config.n_heads  # normalisers of the softmax
    if step.padded:
        kept += of_all * (1 if step.half and step.on_cpu else e)
    return kept + e * of_all * step.factors


def _head(step: Step) -> int:
    """Decoders and the loss, with half-precision copies of their weights."""
    config, e, tokens, (wide, _) = step.network, step.size, step.tokens, _numbers(step)
    d, zeros = config.d_model, config.zero_probabilities
    if step.objective == "classification":
        depth = 2 * (config.n_layers_cls - 1) + 1
        return depth * FP32 * step.n_cells * d + (2 * (config.n_layers_cls - 1) * d * d if step.half else 0)
    d_context = 2 * d if config.batch_labels and not config.perturbation else d
    n_networks = (2 if config.perturbation else 1) * (2 if zeros else 1)
    # Autocast casts the states anew for each network that reads them.
    kept = (n_networks if step.half else 1) * e * tokens * d_context + n_networks * 4 * e * wide
    weights = n_networks * (d_context * d + d * d)
    kept += (8 + 24 * zeros) * tokens  # the error and the mask as numbers
    if step.objective == "perturbation":
        return kept + FP32 * tokens + (2 * weights if step.half else 0)
    if config.mvc:
        kept += (1 + zeros) * e * tokens * d_context + (8 + 24 * zeros) * tokens + 2 * e * wide
        weights += d * d + (1 + zeros) * d * d_context
    return kept + (2 * weights if step.half else 0)


def _forward_work(step: Step) -> int:
    wide, _ = _numbers(step)
    # In half precision the last states and the gene embeddings are kept as copies, and exist as they are beside them.
    return (11 if step.half else 2) * wide


def _head_work(step: Step) -> int:
    return 3 * FP32 * (step.n_cells * step.network.d_model if step.cell_only else _numbers(step)[0])


def _block_work(step: Step) -> int:
    """Most that the backward pass of a block needs beyond what the block has kept and not yet freed."""
    wide, hidden = _numbers(step)
    config = step.network
    if not step.half:
        return FP32 * max(wide + 2 * hidden, 4 * wide)
    if not step.on_cpu:
        return 4 * FP32 * wide
    rows = min(step.n_tokens, _QUERIES)
    at_once = min(step.n_cells, max(1, _SCORES // (config.n_heads * rows * step.n_tokens)))
    # Attention in blocks: two of scores; copies and gradients of queries, keys and values, two of them in float32.
    return 2 * 2 * at_once * config.n_heads * rows * step.n_tokens + 23 * wide


def _held(step: Step) -> int:
    if not (step.on_cpu and _keeps_freed_blocks()):
        return 0
    (wide, hidden), e = _numbers(step), step.size
    tensors = [e * 3 * wide, *[e * wide] * 3, *[FP32 * wide] * 2, *[e * hidden] * 2, wide, wide, hidden]
    small = sum(tensor for tensor in tensors if tensor < _LARGEST_HELD)
    return int(_HELD[step.half] * step.network.n_layers * small)


def _keeps_freed_blocks() -> bool:
    """Whether memory of the CPU is glibc's with its own settings."""
    other = any(name in os.environ.get("LD_PRELOAD", "") for name in ("jemalloc", "tcmalloc", "mimalloc"))
    return platform.libc_ver()[0] == "glibc" and "MALLOC_MMAP_THRESHOLD_" not in os.environ and not other
