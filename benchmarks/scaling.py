"""Throughput per token by number of cells and by length of cells.

    python benchmarks/run.py scaling
    python benchmarks/run.py scaling --quick

Cells: scgpt-mini, the network that ships with the package, embeds 1,000 to 100,000 cells of pbmc68k (drawn with
replacement, every fourth gene, so that the largest run takes a minute or two), checks and tokens included. One network for
all sizes.

Length: forward pass to the cell embedding at whole-human size, batches of about 4,800 tokens, cells of 150 to 2,400
tokens, which are made and counted outside of the clock. The seconds per token are fitted by a + b s, where a is the cost of
the linear layers and b s that of attention. A plot of both is written next to the results.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
from benchmarks import flops
from benchmarks.harness import Answer, Report, Side, Spread, begin, interleave, parser, results_folder, say
from benchmarks.inputs import SMALL, WHOLE_HUMAN, Size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

CELLS = (1_000, 3_000, 10_000, 30_000, 100_000)
LENGTHS = (150, 300, 600, 1200, 2400)
QUICK_CELLS, QUICK_LENGTHS = (100, 300), (50, 100, 200)
TOKENS = 4_800
FLAT = 0.15


def fit_line(lengths: Sequence[int], seconds_a_token: Sequence[float]) -> tuple[float, float, float]:
    """Fit ``a + b s`` by least squares of relative errors: a, b, and the largest relative error."""
    s, y = np.asarray(lengths, dtype=float), np.asarray(seconds_a_token)
    design = np.stack([np.ones_like(s), s], axis=1)
    (a, b), *_ = np.linalg.lstsq(design / y[:, None], np.ones_like(y), rcond=None)
    return float(a), float(b), float(np.abs((a + b * s) / y - 1).max())


def over_cells(report: Report, side: Side, counts: Sequence[int], n_rounds: int) -> dict[int, list[float]]:
    """Tokens a second, by number of cells."""
    side.ask("load_mini")
    side.ask("embed_cells", n_cells=counts[0], precision="32-true")  # what is loaded on first use
    tasks = {f"{n:,} cells": lambda n=n: side.ask("embed_cells", n_cells=n, precision="32-true") for n in counts}
    answers = list(interleave(tasks, n_rounds, "cells").values())
    rates = {
        n: [a.value["tokens"] / (a.value["cells_s"] + a.value["run_s"]) for a in some]
        for n, some in zip(counts, answers, strict=True)
    }
    rows = []
    for n, some in zip(counts, answers, strict=True):
        parts = (Spread.of(a.value[part] for a in some).text("{:.2f}") for part in ("cells_s", "run_s"))
        grown = max(a.peak - a.rss for a in some) / 1e6
        rows.append(
            (f"{n:,}", f"{some[0].value['tokens']:,}", *parts, Spread.of(rates[n]).text("{:,.0f}"), f"{grown:,.0f}")
        )
    columns = ("cells", "tokens", "s for checks and tokens", "s for the network", "tokens/s", "MB added")
    report.table("scgpt-mini, float32.", columns, rows)
    middle = {n: Spread.of(some).median for n, some in rates.items()}
    apart = max(middle.values()) / min(middle.values()) - 1
    what = f"tokens a second from {counts[0]:,} to {counts[-1]:,} cells"
    report.claim(what, f"within {FLAT:.0%}", f"largest over smallest {1 + apart:.2f}", holds=apart <= FLAT)
    report.measured["cells"] = {n: [a.value for a in some] for n, some in zip(counts, answers, strict=True)}
    return rates


def over_lengths(
    report: Report, side: Side, size: Size, lengths: Sequence[int], n_rounds: int
) -> dict[int, list[float]]:
    """Seconds a token, by length."""
    side.ask("build", size=asdict(size))

    def one(length: int) -> Answer:
        side.ask("make_batch", n_cells=max(TOKENS // length, 1), length=length)
        return side.ask("embed", precision="32-true")

    one(lengths[0])
    tasks = {f"{length} tokens": lambda length=length: one(length) for length in lengths}
    answers = list(interleave(tasks, n_rounds, "length").values())
    took = {
        length: [a.wall / (max(TOKENS // length, 1) * length) for a in some]
        for length, some in zip(lengths, answers, strict=True)
    }
    middle = [Spread.of(took[length]).median for length in lengths]
    a, b, error = fit_line(lengths, middle)
    config = size.config(pad_id=size.n_tokens - 3)
    # By the count of operations: attention costs 4 s d a token and block of all that a token costs.
    linear = flops.embedding(config, 1000, tables=True) / 1000 - 4 * 1000 * config.d_model * (config.n_layers - 1)
    expected = 4 * config.d_model * (config.n_layers - 1) / linear
    rows = [
        (
            length,
            f"{1e6 * Spread.of(took[length]).median:.1f}",
            f"{1e6 * (a + b * length):.1f}",
            f"{flops.embedding(config, length, tables=True) / length / Spread.of(took[length]).median / 1e9:.0f}",
        )
        for length in lengths
    ]
    report.table(
        f"{size.n_layers} layers of {size.d_model}, float32.",
        ("tokens of a cell", "us a token", "fitted", "GFLOP/s"),
        rows,
    )
    measured = f"a = {1e6 * a:.1f} us, b = {1e9 * b:.2f} ns a token, largest error {error:.0%}; b/a = {b / a:.1e}, by operations {expected:.1e}"
    report.claim(
        "seconds a token are a + b s",
        "linear up to the attention term (errors within 15%)",
        measured,
        holds=error <= FLAT,
    )
    report.measured["lengths"] = {"seconds_a_token": took, "a": a, "b": b, "error": error}
    return took


def plot(path: Path, rates: Mapping[int, Sequence[float]], took: Mapping[int, Sequence[float]]) -> None:
    """Two panels: tokens a second by cells, microseconds a token by length."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axis, values, factor in ((left, rates, 1e-3), (right, took, 1e6)):
        spreads = {x: Spread.of(factor * value for value in some) for x, some in values.items()}
        middle = [spread.median for spread in spreads.values()]
        errors = [[s.median - s.low for s in spreads.values()], [s.high - s.median for s in spreads.values()]]
        axis.errorbar(list(spreads), middle, yerr=errors, fmt="o", color="black", capsize=3)
        axis.set_ylim(0, 1.2 * max(s.high for s in spreads.values()))
    left.set(xscale="log", xlabel="cells", ylabel="thousand tokens a second", title="scgpt-mini")
    a, b, _ = fit_line(list(took), [Spread.of(some).median for some in took.values()])
    ends = np.array([0, max(took)])
    right.plot(ends, 1e6 * (a + b * ends), color="tab:blue", label="fit: a + b s")
    right.axhline(1e6 * a, color="grey", linestyle=":", label="linear layers: a")
    right.set(xlabel="tokens of a cell", ylabel="microseconds a token", title="forward pass")
    right.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    say(f"plot: {path}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    report = begin("scaling", "Scaling", arguments)
    quick = arguments.quick
    n_rounds = arguments.rounds or (2 if quick else 3)
    # Each in a process of its own, so that neither inherits the other's memory.
    with Side("benchmarks.networks", threads=arguments.threads) as side:
        size = SMALL if quick else WHOLE_HUMAN
        took = over_lengths(report, side, size, QUICK_LENGTHS if quick else LENGTHS, n_rounds)
    with Side("benchmarks.networks", threads=arguments.threads) as side:
        rates = over_cells(report, side, QUICK_CELLS if quick else CELLS, n_rounds)
    folder = results_folder(arguments)
    if folder is not None:
        plot(folder / "scaling.png", rates, took)
        report.note("![Tokens a second by cells, and time a token by length](scaling.png)")
    report.finish(folder)


if __name__ == "__main__":
    main()
