"""A training step of whole-human size: batches of 8 cells of 250 tokens and of 2 of 1,200, masked expression by both heads.

    python benchmarks/run.py training_step
    python benchmarks/run.py training_step --quick

Both implementations have the same weights, batch, losses (squared error of 40 % masked values, from the tokens and from the cell
embedding) and optimizer settings (Adam, 1e-4, no decay; gradient clipped at norm 1). Both have dropout 0.2, the original
also on its attention probabilities, scgalore never. A step is ``zero_grad``, forward, backward, clip and update. Before
times are measured, the losses without dropout must agree. The original's scripts do not use bfloat16 on a CPU; its step
under ``torch.autocast`` is shown for comparison, and ratios refer to its float32. At equal settings it has no dropout on
attention probabilities. scgalore is measured with the kernels selected on this machine and with PyTorch's.

Activation memory is the memory that the forward pass keeps for the backward pass, counting every storage once and no
parameters, exactly for one cell and proportional to the number of cells. The growth of resident memory in a step is
reported as well. If the original's step does not fit into the memory of the machine, it uses fewer cells and its time is
scaled, which the result states.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import peers
from benchmarks.embedding import not_slower
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
EQUAL, EQUAL_BF16 = (f"{name}, no attention dropout" for name in (ORIGINAL, ORIGINAL_BF16))
FP32, BF16 = "scgalore, float32", "scgalore, bfloat16"
FP32_AGAIN, BF16_AGAIN = "scgalore, float32, checkpointing", "scgalore, bfloat16, checkpointing"
FP32_TORCH, BF16_TORCH = (f"{name}, torch's kernels" for name in (FP32, BF16))
STEPS: dict[str, dict[str, Any]] = {
    ORIGINAL: {"precision": "32-true"},
    EQUAL: {"precision": "32-true", "attention_dropout": False},
    FP32: {"precision": "32-true", "recompute": False},
    FP32_TORCH: {"precision": "32-true", "recompute": False, "kernels": "torch"},
    BF16: {"precision": "bf16-mixed", "recompute": False},
    BF16_TORCH: {"precision": "bf16-mixed", "recompute": False, "kernels": "torch"},
    FP32_AGAIN: {"precision": "32-true", "recompute": True},
    BF16_AGAIN: {"precision": "bf16-mixed", "recompute": True},
    ORIGINAL_BF16: {"precision": "bf16-mixed"},
    EQUAL_BF16: {"precision": "bf16-mixed", "attention_dropout": False},
}
OF_ORIGINAL = {name for name in STEPS if name.startswith("scGPT")}
AT_MOST = {FP32: 1 / 3, BF16: 1 / 3, FP32_AGAIN: 0.1, BF16_AGAIN: 0.1}
CLAIMED_FROM = 1000
"""Tokens from which on the maps of the original's attention are most of what it keeps."""
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
    return sides["original" if name in OF_ORIGINAL else "ours"]


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
        in_gb = f"{n_cells * saved[name] / GB:.2f}", f"{grown / GB:.2f}"
        rows.append((name, cells[name], seconds(some).text(), seconds(some, "cpu").text(), *ratios, *in_gb))
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
    what = f"step, {length:,} tokens"
    for name, own_torch in {FP32: FP32_TORCH, BF16: BF16_TORCH}.items():
        for base in (ORIGINAL, EQUAL):
            clocks = {
                clock: ratio(answers[base], answers[name], clock, factor=n_cells / cells[base])
                for clock in ("wall", "cpu")
            }
            text = f"{clocks['wall'].text()}x wall, {clocks['cpu'].text()}x cpu"
            report.claim(f"{what}, {name}, against {base}", "none", text, holds=None)
        not_slower(report, f"{what}, {name}", answers[own_torch], answers[name])
    for name, most in AT_MOST.items():
        for base in (ORIGINAL, EQUAL):
            share, claimed = saved[name] / saved[base], base == ORIGINAL and length >= CLAIMED_FROM
            target = f"at most {most:.2f}x" if claimed else "none"
            memory = f"memory for activations, {length:,} tokens, {name}, against {base}"
            report.claim(memory, target, f"{share:.3f}x", holds=share <= most if claimed else None)


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
        chosen = ours.ask("kernels").value
        report.note(
            "Kernels chosen on this machine: " + "; ".join(f"{dtype}: {own}" for dtype, own in chosen.items()) + "."
        )
    report.measured[f"{n_cells} x {length}"] = {
        "kernels": chosen,
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
        for n_cells, length in ((8, 250), (2, 1200)):
            run(report, WHOLE_HUMAN, n_cells, length, arguments.rounds or 3, arguments.threads)
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
