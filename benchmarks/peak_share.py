"""Fraction of the machine's peak rate of matrix multiplication that the network reaches, and time by operation.

    python benchmarks/run.py peak_share
    python benchmarks/run.py peak_share --quick

The peak is a plain multiplication of two square matrices (``torch.mm``) in the same process, best of several, before and
after the measurements. In float32 this is the rate of MKL, which oneDNN exceeds by far on some processors; the network's layers
use the faster one, so the rate of their own product is reported as well. Operations are counted from the sizes of the network (``benchmarks/flops.py`` has the formula: 2 m n k for a linear
layer, 4 s^2 d for attention, nothing for all else; a training step counts three forward passes). Whole-human size, batches
of 8 cells of 1,200 tokens and of 40 cells of 240 tokens, no padding. Embedding is ``SCGPT.run``: tokens, and the forward pass
with the last block for ``<cls>`` alone and the value side looked up, neither of which is counted. bfloat16 is
``"bf16-true"`` for embedding and autocast for the step.

The costs are those of torch's profiler: CPU time of each operator without the operators that it calls.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from benchmarks import flops
from benchmarks.harness import Report, Side, Spread, begin, interleave, parser, results_folder, say
from benchmarks.inputs import SMALL, WHOLE_HUMAN, Size

if TYPE_CHECKING:
    from collections.abc import Sequence

AIM = {("embedding", "float32"): 0.75, ("embedding", "bfloat16"): 0.50}
CALLS: dict[tuple[str, str], tuple[str, str]] = {
    ("embedding", "float32"): ("embed", "32-true"),
    ("embedding", "bfloat16"): ("embed", "bf16-true"),
    ("training step", "float32"): ("step", "32-true"),
    ("training step", "bfloat16"): ("step", "bf16-mixed"),
}
N_TOP = 5
PEAKS = ("peak", "linear_peak")


def measure(
    report: Report, side: Side, size: Size, batches: Sequence[tuple[int, int]], n_rounds: int
) -> dict[tuple[int, int], dict[tuple[str, str], list[float]]]:
    """FLOP/s of every call on every batch."""
    config = size.config(pad_id=size.n_tokens - 3)
    rates: dict[tuple[int, int], dict[tuple[str, str], list[float]]] = {}
    side.ask("build", size=asdict(size))
    for n_cells, length in batches:
        side.ask("make_batch", n_cells=n_cells, length=length)
        for do, precision in CALLS.values():
            side.ask(do, precision=precision)  # state and casts are made on first use
        tasks = {
            " ".join(key): lambda do=do, precision=precision: side.ask(do, precision=precision)
            for key, (do, precision) in CALLS.items()
        }
        answers = interleave(tasks, n_rounds, f"{n_cells} x {length}")
        work = {"embedding": flops.embedding(config, length, tables=True), "training step": flops.step(config, length)}
        rates[n_cells, length] = {
            key: [n_cells * work[key[0]] / answer.wall for answer in answers[" ".join(key)]] for key in CALLS
        }
        report.measured[f"{n_cells} x {length}"] = {
            name: [{"wall": a.wall, "cpu": a.cpu} for a in some] for name, some in answers.items()
        }
    return rates


def peaks(side: Side) -> dict[str, dict[str, float]]:
    """FLOP/s of plain multiplications, and of those that the layers use."""
    return {do: {dtype: side.ask(do, dtype=dtype).value for dtype in ("float32", "bfloat16")} for do in PEAKS}


def top_costs(report: Report, side: Side, batch: tuple[int, int]) -> None:
    """Tables of what takes most time."""
    n_cells, length = batch
    side.ask("make_batch", n_cells=n_cells, length=length)
    for (what, precision_name), (do, precision) in CALLS.items():
        costs: list[dict[str, Any]] = side.ask("costs", of=do, precision=precision, n_top=N_TOP).value
        report.measured[f"costs, {what}, {precision_name}"] = costs
        rows = [(f"`{cost['operator']}`", cost["calls"], f"{cost['share']:.1%}") for cost in costs]
        heading = f"Top {N_TOP} costs, {what}, {precision_name}, {n_cells} cells of {length:,} tokens."
        report.table(heading, ("operator", "calls", "share of CPU time"), rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    report = begin("peak_share", "Share of the peak", arguments)
    quick = arguments.quick
    size, batches = (SMALL, [(2, 100)]) if quick else (WHOLE_HUMAN, [(8, 1200), (40, 240)])
    with Side("benchmarks.networks", threads=arguments.threads) as side:
        before = peaks(side)
        rates = measure(report, side, size, batches, arguments.rounds or (2 if quick else 3))
        after = peaks(side)
        peak, own_peak = ({dtype: max(before[do][dtype], after[do][dtype]) for dtype in before[do]} for do in PEAKS)
        report.measured["peak_flops"] = {"before": before, "after": after}
        say(f"peak: {peak}, of the layers' products: {own_peak}")
        rows = []
        for (n_cells, length), by_call in rates.items():
            for (what, dtype), some in by_call.items():
                shares = Spread.of(rate / peak[dtype] for rate in some)
                speed = Spread.of(rate / 1e9 for rate in some).text("{:.0f}")
                own_share = Spread.of(rate / own_peak[dtype] for rate in some).text("{:.0%}")
                rates_of = f"{peak[dtype] / 1e9:.0f}", shares.text("{:.0%}"), f"{own_peak[dtype] / 1e9:.0f}", own_share
                rows.append((f"{n_cells} x {length:,}", what, dtype, speed, *rates_of))
                aim = AIM.get((what, dtype))
                target = "none" if aim is None else f"aim for {aim:.0%}"
                holds = None if aim is None else shares.median >= aim
                report.claim(
                    f"share of the peak, {what}, {dtype}, {n_cells} cells of {length:,} tokens",
                    target,
                    shares.text("{:.0%}"),
                    holds=holds,
                )
        columns = ("batch", "what", "dtype", "GFLOP/s", "torch.mm", "share", "oneDNN", "share")
        report.table(
            "GFLOP/s, and share of the peak of torch.mm and of the product that the layers use.", columns, rows
        )
        top_costs(report, side, batches[0])
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
