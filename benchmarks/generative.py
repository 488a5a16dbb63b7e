"""What the generative objective costs, and what two other ways to compute its attention would cost.

    python benchmarks/generative.py [--quick]

One thread, float32, rounds alternate; milliseconds are medians with the smallest and largest value. A step is forward and backward of the whole
objective, without an optimizer, on cells of equal length, of which a quarter, a half or three quarters of the genes are generated.

What it printed on 2 shared cores of an Intel Xeon with a load of 8, so that the ratios count and not the milliseconds; 7 rounds (attention: 9):

    whole-human width, 2 layers, 16 x 240: masked expression: 6252 ms (4521 to 7450), 1.00x, 258 MB kept
    whole-human width, 2 layers, 16 x 240: generative, one pass: 6032 ms (4636 to 8513), 1.03x, 262 MB kept
    whole-human width, 2 layers, 16 x 240: generative: 11775 ms (10330 to 14229), 1.98x, 500 MB kept
    whole-human width, 2 layers, 4 x 1200: masked expression: 8539 ms (4929 to 11352), 1.00x, 323 MB kept
    whole-human width, 2 layers, 4 x 1200: generative, one pass: 9259 ms (5423 to 11133), 1.15x, 346 MB kept
    whole-human width, 2 layers, 4 x 1200: generative: 19403 ms (9843 to 23253), 2.14x, 662 MB kept
    width 128, 4 layers, 16 x 240: masked expression: 2036 ms (1603 to 2285), 1.00x, 160 MB kept
    width 128, 4 layers, 16 x 240: generative, one pass: 2136 ms (1721 to 2634), 1.05x, 164 MB kept
    width 128, 4 layers, 16 x 240: generative: 4272 ms (3904 to 4821), 2.02x, 322 MB kept
    width 128, 4 layers, 4 x 1200: masked expression: 3523 ms (3299 to 4674), 1.00x, 201 MB kept
    width 128, 4 layers, 4 x 1200: generative, one pass: 4220 ms (2368 to 5704), 1.05x, 224 MB kept
    width 128, 4 layers, 4 x 1200: generative: 7658 ms (5879 to 9664), 2.12x, 440 MB kept
    attention, 16 x 240: mask of keys (not the same function): 265 ms (228 to 310), 0.98x
    attention, 16 x 240: mask of pairs, numbers (ours): 262 ms (232 to 334), 1.00x
    attention, 16 x 240: mask of pairs, booleans: 275 ms (233 to 309), 0.99x
    attention, 16 x 240: own key folded in: 412 ms (365 to 510), 1.62x
    attention, 4 x 1200: mask of keys (not the same function): 1839 ms (1280 to 2510), 0.91x
    attention, 4 x 1200: mask of pairs, numbers (ours): 2117 ms (1412 to 3297), 1.00x
    attention, 4 x 1200: mask of pairs, booleans: 1794 ms (1382 to 3295), 1.01x
    attention, 4 x 1200: own key folded in: 1982 ms (1639 to 3551), 1.14x
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scgalore.data.tokens import TokenBatch
from scgalore.nn import SCGPTConfig, SCGPTNetwork
from scgalore.objectives import GenerativeExpression, MaskedExpression
from scgalore.train.trace import Shape, trace_step

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = {
    "whole-human width, 2 layers": (
        {"d_model": 512, "n_heads": 8, "d_hid": 512, "n_layers": 2},
        [(16, 240), (4, 1200)],
    ),
    "width 128, 4 layers": ({"d_model": 128, "n_heads": 4, "d_hid": 512, "n_layers": 4}, [(16, 240), (4, 1200)]),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    for title, (sizes, shapes) in SIZES.items():
        for n_cells, length in [(2, 40)] if quick else shapes:
            steps(title, sizes, n_cells, length, rounds=2 if quick else 7)
    for n_cells, length in [(2, 40)] if quick else [(16, 240), (4, 1200)]:
        attention(n_cells, length, rounds=2 if quick else 9)


def steps(title: str, sizes: dict[str, int], n_cells: int, length: int, *, rounds: int) -> None:
    """Steps of masked expression and of the generative objective without and with its second pass."""
    torch.manual_seed(0)
    network = SCGPTNetwork(SCGPTConfig(n_tokens=5_000, pad_id=4_999, generative=True, **sizes)).train()
    batch = cells(n_cells, length)
    ways = {
        "masked expression": MaskedExpression((0.25, 0.5, 0.75)),
        "generative, one pass": GenerativeExpression(),
        "generative": GenerativeExpression(from_cell_prompt=True),
    }

    def step(objective: MaskedExpression) -> None:
        network.zero_grad()
        objective(network, objective.corrupt(batch, seed=0, draw=0)).total.backward()

    times = alternate({name: lambda way=way: step(way) for name, way in ways.items()}, rounds)
    for name, way in ways.items():
        kept = trace_step(network, way, Shape(n_cells, length)).kept
        report(
            f"{title}, {n_cells} x {length}: {name}",
            times[name],
            times["masked expression"],
            f", {kept / 1e6:.0f} MB kept",
        )


def attention(n_cells: int, length: int, *, rounds: int) -> None:
    """Forward and backward of one attention, 8 heads of 64: by a mask over pairs, or with each token's own key folded in."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n_cells, 8, length, 64, generator=generator).requires_grad_() for _ in range(3))
    generated = torch.rand(n_cells, length, generator=generator) < 0.5
    generated[:, 0] = False
    keys = ~generated[:, None, None, :]
    pairs = keys | torch.eye(length, dtype=torch.bool)
    numbers = torch.zeros(pairs.shape).masked_fill_(~pairs, -torch.inf)
    ways = {
        "mask of keys (not the same function)": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=keys),
        "mask of pairs, numbers (ours)": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=numbers),
        "mask of pairs, booleans": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=pairs),
        "own key folded in": lambda: folded(q, k, v, generated),
    }
    with torch.no_grad():
        assert torch.allclose(ways["own key folded in"](), ways["mask of pairs, booleans"](), atol=1e-5)
    times = alternate({name: lambda way=way: way().sum().backward() for name, way in ways.items()}, rounds)
    for name, taken in times.items():
        report(f"attention, {n_cells} x {length}: {name}", taken, times["mask of pairs, numbers (ours)"])


def folded(q: Tensor, k: Tensor, v: Tensor, generated: Tensor) -> Tensor:
    """One more key has the score of each query with its own key; what it gets is the weight of the own value."""
    e = q.shape[-1]
    own = torch.where(generated[:, None, :, None], (q * k).sum(dim=-1, keepdim=True), -3e4)
    keys, values = F.pad(k, (0, 1, 0, 1)), F.pad(v, (0, 1, 0, 1))
    keys[..., -1, e] = values[..., -1, e] = 1
    seen = F.pad(~generated, (0, 1), value=True)[:, None, None, :]
    mixed = F.scaled_dot_product_attention(
        torch.cat([q, own], dim=-1), keys, values, attn_mask=seen, scale=1 / math.sqrt(e)
    )
    return mixed[..., :e] + mixed[..., e:] * v


def cells(n_cells: int, length: int) -> TokenBatch:
    """Cells of equal length."""
    generator = torch.Generator().manual_seed(0)
    genes = torch.stack([torch.randperm(4_998, generator=generator)[:length] for _ in range(n_cells)])
    values = torch.randint(1, 51, genes.shape, generator=generator).float()
    keys = torch.arange(n_cells)
    return TokenBatch(genes, values, torch.zeros_like(genes, dtype=torch.bool), cells=keys, keys=keys, padded=False)


def alternate(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def report(what: str, taken: list[float], reference: list[float], more: str = "") -> None:
    """Print one line."""
    ratio = statistics.median(a / b for a, b in zip(taken, reference, strict=True))
    ms = [1000 * seconds for seconds in (statistics.median(taken), min(taken), max(taken))]
    print(f"{what}: {ms[0]:.0f} ms ({ms[1]:.0f} to {ms[2]:.0f}), {ratio:.2f}x{more}", flush=True)


if __name__ == "__main__":
    main()
