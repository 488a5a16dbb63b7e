"""A training step of whole-human size: batch of 8 cells of 1,200 tokens, masked expression by both heads.

    python benchmarks/run.py training_step
    python benchmarks/run.py training_step --quick

Both programs have the same weights, batch, losses (squared error of 40 % masked values, from the tokens and from the cell
embedding) and optimizer settings (Adam, 1e-4, no decay; gradient clipped at norm 1). Both have dropout 0.2, the original
also on its attention probabilities, scgalore never. A step is ``zero_grad``, forward, backward, clip and update. Before
anything is timed the losses without dropout must agree. The original's scripts have no bfloat16 on a CPU; a step of it
under ``torch.autocast`` stands beside for comparison, and the claims are against its float32.

Activation memory is what the forward pass keeps for the backward pass: every storage once, parameters left out, counted
exactly on one cell and proportional to the cells. The growth of resident memory in a step stands beside it. Where the
original's step does not fit into the memory of the machine, it takes fewer cells and its time is scaled, which the
result says.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import peers
from benchmarks.harness import (
    GB,
    MB,
    Answer,
    Report,
    Side,
    begin,
    interleave,
    parser,
    ratio,
    results_folder,
    say,
    seconds,
)
from benchmarks.inputs import SMALL, WHOLE_HUMAN, Size, training_batch, weights_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ORIGINAL, ORIGINAL_BF16 = "scGPT 0.2.4, float32", "scGPT 0.2.4, autocast"
FP32, BF16 = "scgalore, float32", "scgalore, bfloat16"
FP32_AGAIN, BF16_AGAIN = "scgalore, float32, checkpointing", "scgalore, bfloat16, checkpointing"
STEPS: dict[str, dict[str, Any]] = {
    ORIGINAL: {"precision": "32-true"},
    FP32: {"precision": "32-true", "recompute": False},
    BF16: {"precision": "bf16-mixed", "recompute": False},
    FP32_AGAIN: {"precision": "32-true", "recompute": True},
    BF16_AGAIN: {"precision": "bf16-mixed", "recompute": True},
    ORIGINAL_BF16: {"precision": "bf16-mixed"},
}
AT_LEAST = {FP32: 2.2, BF16: 5.0}
AT_MOST = {FP32: 1 / 3, BF16: 1 / 3, FP32_AGAIN: 0.1, BF16_AGAIN: 0.1}
SAME = 1e-4


def available_memory() -> float:
    """Bytes that processes may still take; endless where the system does not say."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return float("inf")
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines())
    return 1024.0 * int(fields["MemAvailable"].split()[0])


def cells_that_fit(n_cells: int, bytes_per_cell: int, available: float) -> int:
    """Largest part of a batch, by halving, whose activations take no more than 85 % of the memory."""
    while n_cells > 1 and n_cells * bytes_per_cell > 0.85 * available:
        n_cells //= 2
    return n_cells


def side_of(name: str, sides: Mapping[str, Side]) -> Side:
    """Process that takes the steps of this name."""
    return sides["original" if name in (ORIGINAL, ORIGINAL_BF16) else "ours"]


def prepare(sides: Mapping[str, Side], weights: Path, batch: Path) -> None:
    """Load weights and batch on both sides, and compare the losses."""
    sides["original"].ask("vocabulary", folder=str(weights))
    losses = []
    for side in sides.values():
        side.ask("load", folder=str(weights))
        side.ask("prepare_training", batch=str(batch), lr=1e-4)
        losses.append(side.ask("evaluate", n_cells=1).value)
    say(f"loss without dropout: {losses[0]:.6f} and {losses[1]:.6f}")
    if not math.isclose(losses[0], losses[1], rel_tol=SAME):
        msg = f"Both programs give other losses for the same batch ({losses}), so there is nothing to compare."
        raise RuntimeError(msg)


def count_saved(sides: Mapping[str, Side]) -> dict[str, int]:
    """Bytes a cell that each kind of step keeps for its backward pass."""
    saved = {}
    for name, how in STEPS.items():
        saved[name] = int(side_of(name, sides).ask("saved_bytes", n_cells=1, **how).value)
        say(f"{name}: {saved[name] / MB:,.0f} MB a cell kept for the backward pass")
    return saved


def take_steps(sides: Mapping[str, Side], cells: Mapping[str, int], n_rounds: int) -> dict[str, list[Answer]]:
    """Steps of all kinds in turn; one of one cell first, which makes the optimizer's state."""
    for side, how in ((sides["original"], STEPS[ORIGINAL]), (sides["ours"], STEPS[FP32])):
        side.ask("step", n_cells=1, **how)
    tasks = {
        name: lambda name=name, how=how: side_of(name, sides).ask("step", n_cells=cells[name], **how)
        for name, how in STEPS.items()
    }
    return interleave(tasks, n_rounds, "step")


def write_report(
    report: Report, answers: Mapping[str, list[Answer]], saved: Mapping[str, int], cells: Mapping[str, int], length: int
) -> None:
    """Table and claims."""
    n_cells = cells[FP32]
    rows = []
    for name, some in answers.items():
        factor = cells[name] / cells[ORIGINAL]
        ratios = (ratio(answers[ORIGINAL], some, clock, factor=factor).text() for clock in ("wall", "cpu"))
        grown = max(answer.peak - answer.rss for answer in some)
        memory = f"{n_cells * saved[name] / GB:.2f}", f"{grown / GB:.2f}"
        rows.append((name, cells[name], seconds(some).text(), seconds(some, "cpu").text(), *ratios, *memory))
    columns = (
        "step",
        "cells",
        "s",
        "CPU s",
        "original / this, wall",
        "CPU",
        "GB kept for backward",
        "GB added in the step",
    )
    report.table(f"{n_cells} cells of {length:,} tokens; memory kept is that of {n_cells} cells.", columns, rows)
    for name, least in AT_LEAST.items():
        clocks = {
            clock: ratio(answers[ORIGINAL], answers[name], clock, factor=n_cells / cells[ORIGINAL])
            for clock in ("wall", "cpu")
        }
        text = f"{clocks['wall'].text()}x wall, {clocks['cpu'].text()}x CPU"
        report.claim(f"training step, {name}", f"at least {least}x", text, holds=clocks["wall"].median >= least)
    for name, most in AT_MOST.items():
        share = saved[name] / saved[ORIGINAL]
        what = f"activation memory against the original's, {name}"
        report.claim(what, f"at most {most:.2f}x", f"{share:.3f}x", holds=share <= most)


def run(report: Report, size: Size, n_cells: int, length: int, n_rounds: int, threads: int) -> None:
    """Measure everything."""
    python = peers.ensure_original()
    weights = weights_folder(size)
    with (
        tempfile.TemporaryDirectory() as folder,
        Side("benchmarks.original", threads=threads, python=python) as original,
        Side("benchmarks.ours", threads=threads) as ours,
    ):
        sides = {"original": original, "ours": ours}
        report.measured["original"] = original.ask("about").value
        batch = Path(folder) / "batch.npz"
        training_batch(batch, n_cells=n_cells, length=length, n_tokens=size.n_tokens)
        prepare(sides, weights, batch)
        saved = count_saved(sides)
        fits = cells_that_fit(n_cells, saved[ORIGINAL], available_memory())
        cells = {name: fits if side_of(name, sides) is original else n_cells for name in STEPS}
        if fits < n_cells:
            report.note(
                f"A step of {n_cells} cells would keep {n_cells * saved[ORIGINAL] / GB:.1f} GB in the original, of "
                f"{available_memory() / GB:.1f} GB that are free here: it takes {fits} cells, and its time counts {n_cells // fits}-fold."
            )
        answers = take_steps(sides, cells, n_rounds)
    report.measured |= {
        "saved_bytes_per_cell": saved,
        "cells": cells,
        "length": length,
        "steps": {
            name: [{"wall": a.wall, "cpu": a.cpu, "rss": a.rss, "peak": a.peak, "loss": a.value} for a in some]
            for name, some in answers.items()
        },
    }
    write_report(report, answers, saved, cells, length)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    report = begin("training_step", "A training step", arguments)
    if arguments.quick:
        run(report, SMALL, 1, 200, arguments.rounds or 2, arguments.threads)
    else:
        run(report, WHOLE_HUMAN, 8, 1200, arguments.rounds or 3, arguments.threads)
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
