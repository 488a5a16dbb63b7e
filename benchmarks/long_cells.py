"""Memory of a training step at 5,000 tokens: attention that keeps its maps, against exact attention and our best settings.

    python benchmarks/run.py long_cells
    python benchmarks/run.py long_cells --quick

One cell, 12 layers of 512, masked expression by both heads, random weights. Every kind of step has a process of its own; its
memory is the growth of the process in a forward and a backward pass, beyond the network, the gradients and the batch. The
first kind is the same network with attention as it is written down, whose probabilities (8 heads x 5,000 x 5,000 numbers a
layer) are kept. It takes 13 GB, and is left out where they are not free.

Two further kinds are no settings of ours. In one attention is local, by a dense mask over all pairs of tokens. In the other
there is no attention at all: what that saves of time and memory is more than any approximation of attention could.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import psutil
from benchmarks.harness import GB, MB, Answer, Report, Side, begin, parser, results_folder, say
from benchmarks.inputs import SMALL, Size
from benchmarks.memory_estimate import GIVES_BACK, NETWORK, environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LENGTH = 5000
AT_LEAST = 15
NEEDED = 15 * GB
MAPS, EXACT, AGAIN = "maps kept, float32", "exact, float32", "exact, float32, checkpointing"
BF16, BEST = "exact, bfloat16", "exact, bfloat16, checkpointing"
BEST_BACK = "the same, freed blocks given back"
MASKED, NONE, NONE_BF16 = "dense mask of a window, float32", "no attention, float32", "no attention, bfloat16"
FP, HALF = "32-true", "bf16-mixed"
STEPS: dict[str, dict[str, Any]] = {
    MAPS: {"kind": "maps", "precision": FP, "recompute": False},
    EXACT: {"kind": "exact", "precision": FP, "recompute": False},
    AGAIN: {"kind": "exact", "precision": FP, "recompute": True},
    BF16: {"kind": "exact", "precision": HALF, "recompute": False},
    BEST: {"kind": "exact", "precision": HALF, "recompute": True},
    BEST_BACK: {"kind": "exact", "precision": HALF, "recompute": True},
    MASKED: {"kind": "masked", "precision": FP, "recompute": False},
    NONE: {"kind": "none", "precision": FP, "recompute": False},
    NONE_BF16: {"kind": "none", "precision": HALF, "recompute": False},
}


def take(name: str, size: Size, length: int, side: Side) -> tuple[int, Answer]:
    """Bytes kept, and a pass forwards and backwards."""
    how = dict(STEPS[name])
    kind = how.pop("kind")
    side.ask("build", size=asdict(size))
    side.ask("attend", kind=kind)
    side.ask("make_batch", n_cells=1, length=32)
    side.ask("pass_both", **how)
    side.ask("make_batch", n_cells=1, length=length)
    answer = side.ask("pass_both", **how)
    kept = side.ask("saved_bytes", **how).value
    say(f"{name}: {(answer.peak - answer.rss) / MB:,.0f} MB added, {kept / MB:,.0f} MB kept, {answer.wall:.1f} s")
    return kept, answer


def write_report(report: Report, kept: Mapping[str, int], answers: Mapping[str, Answer], length: int) -> None:
    """Table and claims."""
    grown = {name: answer.peak - answer.rss for name, answer in answers.items()}
    first = grown.get(MAPS)
    rows = [
        (
            name,
            f"{grown[name] / MB:,.0f}",
            "" if first is None else f"{first / grown[name]:.1f}",
            f"{kept[name] / MB:,.0f}",
            f"{answer.wall:.1f}",
            f"{answer.cpu:.1f}",
        )
        for name, answer in answers.items()
    ]
    columns = ("attention and settings", "MB added in the step", "first / this", "MB kept for backward", "s", "CPU s")
    report.table(f"One cell of {length:,} tokens, forwards and backwards.", columns, rows)
    if first is None:
        report.note(f"Attention that keeps its maps is left out: it needs {NEEDED / GB:.0f} GB of free memory.")
    else:
        ratio = first / grown[BEST]
        target = f"at least {AT_LEAST}x"
        report.claim("memory, maps kept / our best settings", target, f"{ratio:.1f}x", holds=ratio >= AT_LEAST)
    for what, with_, without in (("float32", EXACT, NONE), ("bfloat16", BF16, NONE_BF16)):
        memory, time = 1 - kept[without] / kept[with_], 1 - answers[without].cpu / answers[with_].cpu
        text = f"{memory:.0%} of the memory kept, {time:.0%} of the CPU time"
        report.claim(f"share of attention, {what}", "none", text, holds=None)
    more = kept[MASKED] / kept[EXACT]
    report.claim("memory kept with a dense mask / without", "none", f"{more:.2f}x", holds=None)


def run(report: Report, size: Size, length: int, threads: int, *, quick: bool = False) -> None:
    """Measure everything, each in a process of its own: what one has left in the allocator another would use."""
    kept, answers = {}, {}
    with Side("benchmarks.steps", threads=threads) as shared:
        for name in STEPS:
            if name == MAPS and length == LENGTH and psutil.virtual_memory().available < NEEDED:
                continue
            if quick:  # starting a process takes longer than a step of a small network
                kept[name], answers[name] = take(name, size, length, shared)
                continue
            with environment(GIVES_BACK if name == BEST_BACK else {}), Side("benchmarks.steps", threads=threads) as own:
                kept[name], answers[name] = take(name, size, length, own)
    report.measured |= {
        name: {"kept": kept[name], "grown": a.peak - a.rss, "wall": a.wall, "cpu": a.cpu} for name, a in answers.items()
    }
    write_report(report, kept, answers, length)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    report = begin("long_cells", "Long cells", arguments)
    if arguments.quick:
        run(report, SMALL, 300, arguments.threads, quick=True)
    else:
        run(report, NETWORK, LENGTH, arguments.threads)
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
