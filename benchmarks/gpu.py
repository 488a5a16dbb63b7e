"""Cells a second on a GPU: embedding and training at whole-human size, cells of 1,200 tokens, bfloat16.

    python benchmarks/run.py gpu
    python benchmarks/run.py gpu --quick

Also the most memory that tensors took, and the share of the card's bfloat16 peak, measured by a large plain matrix
multiplication in the same run. Where there is no GPU it says so and measures nothing.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from benchmarks import flops
from benchmarks.harness import GB, Report, Side, Spread, begin, interleave, parser, results_folder
from benchmarks.inputs import SMALL, WHOLE_HUMAN, Size

if TYPE_CHECKING:
    from collections.abc import Sequence

EMBEDDING, STEP, STEP_AGAIN = "embedding", "training step", "training step, checkpointing"
NOT_MEASURED = "not measured: no GPU on this machine"


def measure(report: Report, size: Size, n_cells: tuple[int, int], length: int, n_rounds: int, threads: int) -> None:
    """Run everything on the first GPU."""
    config = size.config(pad_id=size.n_tokens - 3)
    report.machine["gpu"] = torch.cuda.get_device_name(0)
    work = {EMBEDDING: flops.embedding(config, length, tables=True), STEP: flops.step(config, length)}
    work[STEP_AGAIN] = work[STEP]
    rows = []
    with Side("benchmarks.networks", threads=threads) as side:
        peak = side.ask("peak", dtype="bfloat16", device="cuda", size=8192).value
        side.ask("build", size=asdict(size), device="cuda")
        calls = {
            EMBEDDING: (n_cells[0], lambda: side.ask("embed", precision="bf16-true")),
            STEP: (n_cells[1], lambda: side.ask("step", precision="bf16-mixed")),
            STEP_AGAIN: (n_cells[1], lambda: side.ask("step", precision="bf16-mixed", recompute=True)),
        }
        for name, (cells, call) in calls.items():
            side.ask("make_batch", n_cells=cells, length=length)
            for _ in range(3):
                call()
            side.ask("device_memory", reset=True)
            answers = interleave({name: call}, n_rounds, name)[name]
            memory = side.ask("device_memory", reset=True).value
            rate = Spread.of(cells / answer.wall for answer in answers)
            share = rate.median * work[name] / peak
            report.measured[name] = {
                "cells": cells,
                "wall": [a.wall for a in answers],
                "memory": memory,
                "share": share,
            }
            rows.append((name, cells, rate.text("{:,.1f}"), f"{memory / GB:.2f}", f"{share:.0%}"))
            report.claim(
                f"cells/s on {report.machine['gpu']}, {name}",
                "none",
                f"{rate.text('{:,.1f}')}, {share:.0%} of the peak",
                holds=None,
            )
    report.measured["peak_flops"] = peak
    heading = f"{report.machine['gpu']}: {size.n_layers} layers of {size.d_model}, {length:,} tokens a cell, bfloat16, peak {peak / 1e12:.0f} TFLOP/s."
    report.table(heading, ("what", "cells in a batch", "cells/s", "GB at most", "share of the peak"), rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    report = begin("gpu", "On a GPU", arguments)
    if not torch.cuda.is_available():
        report.claim("cells/s on a GPU, embedding and training", "none", NOT_MEASURED, holds=None)
    elif arguments.quick:
        measure(report, SMALL, (8, 4), 100, arguments.rounds or 3, arguments.threads)
    else:
        measure(report, WHOLE_HUMAN, (64, 16), 1200, arguments.rounds or 20, arguments.threads)
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
