"""Embedding of cells: ``sg.tl.embed`` in float32 and bfloat16 against ``scgpt.tasks.embed_data``, whole-human size.

The original runs as it comes, and at equal settings: without torch's fast path, which packs cells of unequal length for each layer. Ours
runs with the kernels that were chosen on this machine, and with torch's own (``sg.settings.cpu_kernels="torch"``).

    python benchmarks/run.py embedding --data FOLDER
    python benchmarks/run.py embedding --quick

Before anything is timed, both programs embed the same tokens with the same file of random weights; unless the results
agree, nothing is compared. Model time is that of a loaded network on cells that lie in memory: ``sg.tl.embed(adata,
model)`` (checks, tokens, network) against ``get_batch_cell_embeddings``, which is what ``embed_data`` calls once
vocabulary and weights are there. ``SCGPT.run`` alone leaves out checks and counting. End to end is from the files, vocabulary and
weights included. The original knows no bfloat16 on a CPU, so its time is that of float32 throughout.

Memory is the most resident bytes of the process less those before its first call. Processes that the original's data
loader starts are not counted. Embeddings of the two programs on the same cells are not equal: values that tie with several
bin edges get a random bin in the original, a fixed one here. The distance between two runs of the original shows how
much that is.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from benchmarks import peers
from benchmarks.harness import (
    MB,
    Answer,
    Report,
    Side,
    Spread,
    begin,
    growth,
    interleave,
    parser,
    ratio,
    results_folder,
    say,
    seconds,
)
from benchmarks.inputs import FILES, PBMC68K, SMALL, WHOLE_HUMAN, Cells, data_set, weights_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ORIGINAL, EQUAL = "scGPT 0.2.4", "scGPT 0.2.4, no fast path"
FP32, BF16 = "scgalore, float32", "scgalore, bfloat16"
FP32_TORCH, BF16_TORCH = "scgalore, float32, torch's kernels", "scgalore, bfloat16, torch's kernels"
SIDES = {FP32: "32-true", BF16: "bf16-true"}
"""Processes of ours, and their arithmetic."""
OURS = {FP32: (FP32, "auto"), FP32_TORCH: (FP32, "torch"), BF16: (BF16, "auto"), BF16_TORCH: (BF16, "torch")}
"""Process and kernels of each way of ours."""
N_CELLS = {PBMC68K: 32, "CITE-seq": 4, "Kang": 16}
OWN_TORCH = {FP32: FP32_TORCH, BF16: BF16_TORCH}
SAME = 1e-5  # cosine distance up to which two float32 results count as the same
MAX_LENGTH = 1200


def cosine_distances(a: Path, b: Path) -> np.ndarray:
    """Cosine distance of each cell between two saved embeddings, in float64."""
    one, other = (np.load(path).astype(np.float64) for path in (a, b))
    one, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one, other))
    # Not 1 - cosine, which loses all digits of a small distance.
    return 0.5 * np.square(one - other).sum(axis=1)


class Comparison:
    """Three processes with the same weights."""

    def __init__(self, report: Report, folder: Path, weights: Path, sides: dict[str, Side]) -> None:
        self.report, self.folder, self.weights, self.sides = report, folder, weights, sides

    def load(self) -> None:
        """Load weights everywhere, and refuse to go on where a tensor stays random."""
        about = self.sides[ORIGINAL].ask("about").value
        self.report.measured["original"] = about
        self.sides[ORIGINAL].ask("vocabulary", folder=str(self.weights))
        self.report.measured["kernels"] = chosen = self.sides[FP32].ask("kernels").value
        self.report.note(
            "Kernels chosen on this machine: " + "; ".join(f"{dtype}: {own}" for dtype, own in chosen.items()) + "."
        )
        for name, side in self.sides.items():
            left = [
                tensor for tensor in side.ask("load", folder=str(self.weights)).value if "cls_decoder" not in tensor
            ]
            if left:
                msg = f"{name} did not load {left[:5]}: it would run with other weights."
                raise RuntimeError(msg)

    def warm_up(self, cells: Cells) -> None:
        """Let all sides embed some cells, so that no time holds what is loaded on first use."""
        self.open(cells)
        self.sides[ORIGINAL].ask("embed", max_length=64)
        for task in self._ours("embed", max_length=64).values():
            task()

    def open(self, cells: Cells) -> None:
        """Read a data set everywhere."""
        for side in self.sides.values():
            side.ask("open_cells", path=str(cells.path))

    def check(self, cells: Cells) -> None:
        """Embed the same tokens on both sides."""
        tokens = self.folder / "tokens.npz"
        self.sides[FP32].ask("write_tokens", path=str(tokens), max_length=MAX_LENGTH, n_cells=min(4, cells.n_obs))
        outs = {}
        for name in (ORIGINAL, FP32):
            outs[name] = self.folder / f"{name}.npy"
            self.sides[name].ask("encode", path=str(tokens), out=str(outs[name]))
        apart = float(cosine_distances(*outs.values()).max())
        self.report.measured.setdefault("same_tokens", {})[cells.name] = apart
        say(f"{cells.name}: same tokens, same weights: largest cosine distance {apart:.1e}")
        if apart > SAME:
            msg = f"Both programs give other embeddings for the same tokens ({apart:.1e}), so there is nothing to compare."
            raise RuntimeError(msg)

    def model_time(self, cells: Cells, n_rounds: int) -> dict[str, list[Answer]]:
        """Embed in turn, with loaded networks."""
        number = iter(range(n_rounds))
        tasks: dict[str, Callable[[], Answer]] = {
            ORIGINAL: lambda: self._original(next(number)),
            EQUAL: partial(self.sides[ORIGINAL].ask, "embed", max_length=MAX_LENGTH, fast_path=False),
            **self._ours("embed", max_length=MAX_LENGTH),
        }
        return interleave(tasks, n_rounds, f"{cells.name}, model time")

    def _ours(self, do: str, **arguments: Any) -> dict[str, Callable[[], Answer]]:
        return {
            name: partial(self.sides[side].ask, do, precision=SIDES[side], kernels=kernels, **arguments)
            for name, (side, kernels) in OURS.items()
        }

    def _original(self, number: int) -> Answer:
        answer = self.sides[ORIGINAL].ask("embed", max_length=MAX_LENGTH, seed=number)
        self.sides[ORIGINAL].ask("save_embedding", path=str(self.folder / f"original-{number % 2}.npy"))
        return answer

    def network_alone(self, cells: Cells, n_rounds: int) -> dict[str, list[Answer]]:
        """Run the networks of ours alone, over cells made ready before."""
        for name in SIDES:
            self.sides[name].ask("tokenise", max_length=MAX_LENGTH)
        return interleave(self._ours("run"), n_rounds, f"{cells.name}, network alone")

    def end_to_end(self, cells: Cells, n_rounds: int) -> dict[str, list[Answer]]:
        """From files to embeddings."""
        files: dict[str, Any] = {"path": str(cells.path), "folder": str(self.weights), "max_length": MAX_LENGTH}
        tasks: dict[str, Callable[[], Answer]] = {
            ORIGINAL: partial(self.sides[ORIGINAL].ask, "end_to_end", **files),
            EQUAL: partial(self.sides[ORIGINAL].ask, "end_to_end", fast_path=False, **files),
            **self._ours("end_to_end", **files),
        }
        return interleave(tasks, n_rounds, f"{cells.name}, end to end")

    def distances(self, n_rounds: int) -> dict[str, tuple[float, float]]:
        """Largest and mean cosine distance between the embeddings of the last calls."""
        paths = {name: self.folder / f"last-{name}.npy" for name in SIDES}
        for name, path in paths.items():
            self.sides[name].ask("save_embedding", path=str(path))
        last, other = (self.folder / f"original-{number % 2}.npy" for number in (n_rounds - 1, n_rounds))
        pairs = {"bfloat16 to float32": tuple(paths.values()), "float32 to the original": (paths[FP32], last)}
        if n_rounds > 1:
            pairs["original to itself, other seed"] = (last, other)
        found = {what: cosine_distances(*pair) for what, pair in pairs.items()}
        return {what: (float(far.max()), float(far.mean())) for what, far in found.items()}


def as_record(answers: dict[str, list[Answer]]) -> dict[str, list[dict[str, float]]]:
    """Answers as plain numbers."""
    return {
        name: [{"wall": a.wall, "cpu": a.cpu, "rss": a.rss, "peak": a.peak} for a in some]
        for name, some in answers.items()
    }


def add_table(report: Report, heading: str, cells: Cells, answers: dict[str, list[Answer]], base: str) -> None:
    """Cells per second, ratios to ``base`` and memory."""
    rows = []
    for name, some in answers.items():
        rate = Spread.of(cells.n_obs / answer.wall for answer in some)
        ratios = (ratio(answers[base], some, clock).text() for clock in ("wall", "cpu"))
        memory = f"{growth(some) / MB:,.0f}", f"{max(answer.peak for answer in some) / MB:,.0f}"
        rows.append((name, rate.text(), seconds(some, "cpu").text("{:.1f}"), *ratios, *memory))
    columns = ("side", "cells/s", "CPU s", f"{base} / this, wall", "CPU", "MB added", "MB at most")
    report.table(heading, columns, rows)


def compare(comparison: Comparison, cells: Cells, n_rounds: int, *, alone: bool) -> None:
    """All of one data set but end to end."""
    report = comparison.report
    comparison.open(cells)
    comparison.check(cells)
    answers = comparison.model_time(cells, n_rounds)
    far = comparison.distances(n_rounds)
    record: dict[str, Any] = {"n_cells": cells.n_obs, "expressed": cells.expressed, "distances": far}
    record["model_time"] = as_record(answers)
    heading = f"{cells.name}: {cells.n_obs} cells, {len(cells.genes):,} genes, {cells.expressed:.0f} of them expressed in a cell. Model time."
    add_table(report, heading, cells, answers, ORIGINAL)
    if alone:
        network = comparison.network_alone(cells, n_rounds)
        record["network_alone"] = as_record(network)
        add_table(report, f"{cells.name}: the network alone.", cells, network, FP32)
    claim_ratios(report, answers, cells.name)
    for name in SIDES:
        less = growth(answers[name]) / growth(answers[ORIGINAL])
        report.claim(f"memory added, {cells.name}, {name}", "at most half", f"{less:.2f}x", holds=less <= 0.5)
    for what, (largest, mean) in far.items():
        report.claim(
            f"cosine distance, {cells.name}, {what}", "none", f"largest {largest:.1e}, mean {mean:.1e}", holds=None
        )
    report.measured[cells.name] = record


def claim_ratios(report: Report, answers: dict[str, list[Answer]], what: str) -> None:
    """Ratios to both ways of the original, and to torch's kernels, which are the ones that are claimed."""
    for name in SIDES:
        for base in (ORIGINAL, EQUAL):
            clocks = (f"{ratio(answers[base], answers[name], clock).text()}x {clock}" for clock in ("wall", "cpu"))
            report.claim(f"{what}, {name}, against {base}", "none", ", ".join(clocks), holds=None)
        not_slower(report, f"{what}, {name}", answers[OWN_TORCH[name]], answers[name])


def not_slower(report: Report, what: str, torchs: list[Answer], ours: list[Answer]) -> None:
    """Claim that the kernels that were chosen are no slower than torch's: where they are the same ones, the ratio is 1 but for noise."""
    found = ratio(torchs, ours, "cpu")
    report.claim(
        f"{what}, against torch's kernels",
        "not below 1 by more than its spread",
        f"{found.text()}x cpu",
        holds=found.high >= 1,
    )


def compare_end_to_end(comparison: Comparison, cells: Cells, n_rounds: int, newer: Side | None) -> None:
    """From files to embeddings, also with the vocabulary of scGPT 0.2.5."""
    report = comparison.report
    answers = comparison.end_to_end(cells, n_rounds)
    report.measured["end_to_end"] = as_record(answers)
    heading = f"{cells.name}: {cells.n_obs} cells, end to end; the original's vocabulary is the stand-in's."
    add_table(report, heading, cells, answers, ORIGINAL)
    claim_ratios(report, answers, f"end to end, {cells.name}")
    if newer is not None:
        asked = newer.ask("end_to_end", path=str(cells.path), folder=str(comparison.weights), max_length=MAX_LENGTH)
        say(f"scGPT 0.2.5, end to end: {asked.wall:.1f} s")
        report.measured["end_to_end_newer"] = as_record({"scGPT 0.2.5": [asked]})
        for name in SIDES:
            found = ratio([asked] * n_rounds, answers[name])
            report.claim(
                f"end to end against scGPT 0.2.5 (one call), {name}", "none", f"{found.text()}x wall", holds=None
            )
    for name in SIDES:
        most = {side: max(answer.peak for answer in answers[side]) for side in (ORIGINAL, name)}
        text = f"{most[name] / MB:,.0f} of {most[ORIGINAL] / MB:,.0f} MB ({most[name] / most[ORIGINAL]:.2f}x)"
        report.claim(f"memory of the whole process, end to end, {name}", "none", text, holds=None)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    report = begin("embedding", "Embedding of cells", arguments)
    quick = arguments.quick
    n_rounds = arguments.rounds or (2 if quick else 3)
    sets = [data_set(name, 4 if quick else N_CELLS[name], arguments.data) for name in (PBMC68K, *FILES)]
    present = [cells for cells in sets if cells is not None]
    weights = weights_folder(SMALL if quick else WHOLE_HUMAN, (gene for cells in present for gene in cells.genes))
    python = peers.ensure_original()
    report.note(f"Stand-ins in the environment of the original: {', '.join(peers.stubs(python))}.")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = {ORIGINAL: stack.enter_context(Side("benchmarks.original", threads=arguments.threads, python=python))}
        for name in SIDES:
            sides[name] = stack.enter_context(Side("benchmarks.ours", threads=arguments.threads))
        comparison = Comparison(report, folder, weights, sides)
        comparison.load()
        comparison.warm_up(present[0])
        for cells in present:
            compare(comparison, cells, n_rounds, alone=cells.name == PBMC68K)
        newer = None
        if peers.interpreter("newer").exists():
            newer = stack.enter_context(
                Side("benchmarks.original", threads=arguments.threads, python=peers.interpreter("newer"))
            )
        compare_end_to_end(comparison, present[0], min(n_rounds, 2), newer)
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
