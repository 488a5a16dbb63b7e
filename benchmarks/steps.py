"""The side of the benchmarks of memory: training steps of a network with random weights, and the bytes they take."""

from __future__ import annotations

import math
from typing import Any

import torch
from benchmarks.inputs import Size
from benchmarks.side import saved_for_backward, serve, storages_of
from torch import Tensor

from scgalore.data.tokens import TokenBatch
from scgalore.nn import SCGPTNetwork, layout
from scgalore.objectives import MaskedExpression
from scgalore.optim import build_optimizer, state_bytes

STATE: dict[str, Any] = {}
OURS = layout._attend
WINDOW = 64


def build(size: dict[str, int]) -> None:
    """Make a network."""
    made = Size(**size)
    torch.manual_seed(0)
    STATE["network"] = SCGPTNetwork(made.config(made.n_tokens - 1)).train()


def attend(kind: str) -> None:
    """Choose how attention is computed: ``exact`` is ours; the others take its place to be measured against."""
    layout._attend = {"exact": OURS, "maps": _maps, "masked": _masked, "none": _none}[kind]


def _maps(q: Tensor, k: Tensor, v: Tensor, attended: Tensor | None = None) -> Tensor:
    """Attention that keeps its probabilities, as it is written down."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return torch.softmax(scores, dim=-1) @ v


def _masked(q: Tensor, k: Tensor, v: Tensor, attended: Tensor | None = None) -> Tensor:
    """Local attention by a dense mask over all pairs of tokens."""
    place = torch.arange(q.shape[2])
    near = (place[:, None] - place[None, :]).abs() <= WINDOW
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=near[None, None])


def _none(q: Tensor, k: Tensor, v: Tensor, attended: Tensor | None = None) -> Tensor:
    """No attention at all: what remains is the rest of the network."""
    return v + 0 * (q + k)


def make_batch(n_cells: int, length: int) -> None:
    """Cells of exactly ``length`` tokens, 40 % of their values masked."""
    generator = torch.Generator().manual_seed(0)
    n_tokens = STATE["network"].config.n_tokens
    values = torch.randint(1, 51, (n_cells, length), generator=generator).float()
    masked = torch.rand(n_cells, length, generator=generator) < 0.4
    STATE["batch"] = TokenBatch(
        genes=torch.randint(0, n_tokens - 1, (n_cells, length), generator=generator),
        values=torch.where(masked, torch.full_like(values, -1.0), values),
        padding=torch.zeros_like(masked),
        cells=torch.arange(n_cells),
        keys=torch.zeros(n_cells, dtype=torch.int64),
        targets={"expression": values, "masked": masked},
        padded=False,
    )


def _loss(precision: str) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
        return MaskedExpression()(STATE["network"], STATE["batch"]).total


def saved_bytes(precision: str, recompute: bool) -> int:  # noqa: FBT001 (from JSON)
    """Bytes kept for the backward pass."""
    network = STATE["network"]
    network.recompute = recompute
    return saved_for_backward(lambda: _loss(precision), storages_of(network))


def pass_both(precision: str, recompute: bool) -> float:  # noqa: FBT001 (from JSON)
    """One forward and backward pass; gradients are added to those that are there."""
    STATE["network"].recompute = recompute
    loss = _loss(precision)
    loss.backward()
    return loss.item()


def gradient_bytes() -> int:
    """Bytes of the gradients that are there."""
    grads = [param.grad for param in STATE["network"].parameters() if param.grad is not None]
    return sum(grad.untyped_storage().nbytes() for grad in grads)


def optimizer_bytes(name: str) -> int:
    """Bytes of state after one step on the gradients that are there."""
    network = STATE["network"]
    optimizer = build_optimizer(name, network)
    if hasattr(optimizer, "update_curvature"):
        batch = STATE["batch"]
        optimizer.update_curvature(*MaskedExpression().self_sampled(network, batch, torch.Generator().manual_seed(0)))
    optimizer.step()
    return state_bytes(optimizer)


if __name__ == "__main__":
    handlers = (build, attend, make_batch, saved_bytes, pass_both, gradient_bytes, optimizer_bytes)
    serve({handler.__name__: handler for handler in handlers})
