"""A training step with ``compile=True`` and without, on the device at hand.

    python benchmarks/run.py compiled
    python benchmarks/run.py compiled --quick

Whole-human size, 2 cells of 1,200 tokens, masked expression by both heads, AdamW. The blocks are compiled as
:class:`scgalore.train.TrainConfig` does it, for batches of any shape; what compiling takes is the first step's time.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import torch
from benchmarks.harness import Report, Side, begin, interleave, parser, ratio, results_folder, say, seconds
from benchmarks.inputs import SMALL, WHOLE_HUMAN, Size

if TYPE_CHECKING:
    from collections.abc import Sequence

PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}


def measure(
    report: Report,
    size: Size,
    n_cells: int,
    length: int,
    n_rounds: int,
    threads: int,
    *,
    precisions: Sequence[str] = tuple(PRECISIONS),
) -> None:
    """Take steps of all kinds in turn."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    with (
        Side("benchmarks.networks", threads=threads) as plain_side,
        Side("benchmarks.networks", threads=threads) as side,
    ):
        for one in (plain_side, side):
            one.ask("build", size=asdict(size), device=device)
            one.ask("make_batch", n_cells=n_cells, length=length)
        side.ask("compile_blocks")
        for name in precisions:
            plain, fast = (partial(one.ask, "step", precision=PRECISIONS[name]) for one in (plain_side, side))
            plain()
            first = fast().wall
            say(f"{name}: first compiled step {first:.0f} s")
            answers = interleave({"plain": plain, "compiled": fast}, n_rounds, name)
            gain = ratio(answers["plain"], answers["compiled"])
            for kind, some in answers.items():
                rows.append((name, kind, seconds(some).text(), f"{first:.0f}" if kind == "compiled" else ""))
            report.measured[name] = {kind: [a.wall for a in some] for kind, some in answers.items()} | {"first": first}
            report.claim(f"plain / compiled, {name}, {device}", "none", f"{gain.text()}x", holds=None)
    heading = f"{n_cells} cells of {length:,} tokens on the {device}, {size.n_layers} layers of {size.d_model}."
    report.table(heading, ("precision", "step", "s", "s of the first step"), rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    report = begin("compiled", "torch.compile", arguments)
    if arguments.quick:
        # Each precision is compiled anew, which takes longer than all else.
        measure(report, SMALL, 2, 64, arguments.rounds or 2, arguments.threads, precisions=["float32"])
    else:
        measure(report, WHOLE_HUMAN, 2, 1200, arguments.rounds or 5, arguments.threads)
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
