"""Estimates of sg.estimate_memory compared with measurements: optimizer state, gradients, activations, memory of the process.

    python benchmarks/run.py memory_estimate
    python benchmarks/run.py memory_estimate --quick

The network has whole-human blocks (12 of 512) and 6,003 tokens, with random weights; one cell at a time, masked expression by
both heads, dropout 0.2. "Kept" is the memory that the forward pass keeps for the backward pass, counting every storage once and no
parameters. Memory of the process is its growth in a forward and a backward pass with existing gradients, measured twice:
with glibc's defaults, and with MALLOC_MMAP_THRESHOLD_=131072, with which freed blocks are returned to the system. The
latter is the memory of the tensors, the former that of the process.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from benchmarks.harness import MB, Report, Side, begin, parser, results_folder, say
from benchmarks.inputs import SMALL, Size

from scgalore.nn import SCGPTNetwork
from scgalore.objectives import MaskedExpression
from scgalore.optim import OPTIMIZERS
from scgalore.train import MemoryEstimate, TrainConfig, estimate_training

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NETWORK = Size(n_tokens=6_003)
LENGTHS = (500, 1200, 2500, 5000)
AT_MOST = {
    "activations kept": 0.001,
    "growth of the process, freed blocks given back": 0.25,
    "growth of the process, glibc as it comes": 0.25,
}
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072"}
KINDS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "32-true", "recompute": False},
    "float32, checkpointing": {"precision": "32-true", "recompute": True},
    "bfloat16": {"precision": "bf16-mixed", "recompute": False},
    "bfloat16, checkpointing": {"precision": "bf16-mixed", "recompute": True},
}


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables for the processes that are started inside, and for the estimate, which looks at them too."""
    before = {name: os.environ.get(name) for name in GIVES_BACK}
    for name in before:
        os.environ.pop(name, None)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def estimated(size: Size, length: int, *, precision: Any, recompute: bool, optimizer: str = "adamw") -> MemoryEstimate:
    """Estimate for one cell."""
    config = TrainConfig(
        optimizer=optimizer, embedding="full", precision=precision, gradient_checkpointing=recompute, accelerator="cpu"
    )
    with torch.device("meta"):
        network = SCGPTNetwork(size.config(size.n_tokens - 1))
    return estimate_training(network, MaskedExpression(), config, n_cells=1, n_tokens=length, n_rows=size.n_tokens)


def exact_parts(report: Report, size: Size, threads: int) -> None:
    """Gradients, and the state of every optimizer."""
    rows, wrong = [], []
    with Side("benchmarks.steps", threads=threads) as side:
        for name in OPTIMIZERS:
            side.ask("build", size=asdict(size))
            side.ask("make_batch", n_cells=1, length=64)
            side.ask("pass_both", precision="32-true", recompute=False)
            gradients = side.ask("gradient_bytes").value
            state = side.ask("optimizer_bytes", name=name).value
            said = estimated(size, 64, precision="32-true", recompute=False, optimizer=name)
            rows.append((name, f"{said.optimizer_state:,}", f"{state:,}", f"{said.gradients:,}", f"{gradients:,}"))
            if (said.optimizer_state, said.gradients) != (state, gradients):
                wrong.append(name)
    columns = ("optimizer", "state, estimate", "state, measured", "gradients, estimate", "gradients, measured")
    report.table("Bytes.", columns, rows)
    found = "equal for all entries" if not wrong else f"different for {', '.join(wrong)}"
    report.claim("optimizer state and gradients", "equal to the byte", found, holds=not wrong)


def measure(
    size: Size, lengths: Sequence[int], kinds: Sequence[str], threads: int, variables: dict[str, str]
) -> dict[str, dict[str, int]]:
    """Bytes kept, and growth of the process, by kind of step and length."""
    measured: dict[str, dict[str, int]] = {}
    with environment(variables):
        for kind in kinds:
            how = KINDS[kind]
            # A process of its own: what an earlier kind has left in the allocator would be used again.
            with Side("benchmarks.steps", threads=threads) as side:
                side.ask("build", size=asdict(size))
                side.ask("make_batch", n_cells=1, length=32)
                side.ask("pass_both", **how)
                for length in lengths:
                    side.ask("make_batch", n_cells=1, length=length)
                    kept = side.ask("saved_bytes", **how).value
                    answer = side.ask("pass_both", **how)
                    said = estimated(size, length, **how)
                    measured[f"{kind}, {length:,}"] = {
                        "kept": kept,
                        "grown": answer.peak - answer.rss,
                        "kept, estimate": said.activations,
                        "grown, estimate": said.activations + said.workspace,
                    }
                    say(f"{kind}, {length:,} tokens: {kept / MB:,.0f} MB kept, {answer.wall:.1f} s")
    return measured


def run(report: Report, size: Size, lengths: Sequence[int], kinds: Sequence[str], threads: int) -> None:
    """Measure everything."""
    exact_parts(report, size, threads)
    back = measure(size, lengths, kinds, threads, GIVES_BACK)
    plain = measure(size, lengths, kinds, threads, {})
    rows = []
    for name, of_back in back.items():
        of_plain = plain[name]
        pairs = (("kept", of_back), ("grown", of_back), ("grown", of_plain))
        cells = [f"{some[f'{what}, estimate'] / MB:,.0f} / {some[what] / MB:,.0f}" for what, some in pairs]
        rows.append((name, *cells))
    columns = ("step, tokens", "kept for backward", "process, freed blocks given back", "process, glibc as it comes")
    report.table("MB, estimate / measured.", columns, rows)
    for (claim, at_most), (what, some) in zip(
        AT_MOST.items(), (("kept", back), ("grown", back), ("grown", plain)), strict=True
    ):
        off = {name: of[f"{what}, estimate"] / of[what] - 1 for name, of in some.items()}
        worst = max(off, key=lambda name: abs(off[name]))
        found = f"{off[worst]:+.2%} ({worst})"
        report.claim(claim, f"within {at_most:.1%}", found, holds=abs(off[worst]) <= at_most)
    report.measured |= {"given back": back, "as it comes": plain}


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    report = begin("memory_estimate", "Memory, estimated and measured", arguments)
    if arguments.quick:
        run(report, SMALL, (100, 200), ["bfloat16, checkpointing"], arguments.threads)
    else:
        run(report, NETWORK, LENGTHS, list(KINDS), arguments.threads)
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
