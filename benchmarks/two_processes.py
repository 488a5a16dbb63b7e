"""Embeddings and 20 training steps with one and with two processes (gloo, one thread each).

    python benchmarks/run.py two_processes
    python benchmarks/run.py two_processes --quick

scgpt-mini on cells of pbmc68k. A step has 32 cells in total: 32 of one process, or 16 of each of two. Both kinds of run are
started by torchrun, in turn. Shown is that embeddings do not depend on the number of processes, that both ranks hold the
same weights after training, bit for bit, and how far these are from those of one process (each rank draws its own dropout; reported).
Training times include the start of Lightning, which takes about a second. A machine with fewer than two idle cores shows no gain.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from benchmarks.harness import ROOT, Report, Spread, begin, parser, results_folder, say

if TYPE_CHECKING:
    from collections.abc import Sequence

SAME = 1e-6  # largest difference of an embedding's entry, of rows with unit norm


def launch(folder: Path, n_processes: int, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Run with some processes; what each rank found."""
    folder.mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_processes}"]
    command = [*torchrun, "-m", "benchmarks.processes", str(folder), *map(str, sizes)]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    if result.returncode:
        msg = f"{n_processes} processes failed:\n{result.stderr[-4000:]}"
        raise RuntimeError(msg)
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(n_processes)]
    took = {name: max(one[name] for one in found) for name in ("embed_s", "train_s")}
    say(f"{n_processes} processes: embedding {took['embed_s']:.2f} s, training {took['train_s']:.2f} s")
    return found


def apart(one: Path, other: Path) -> tuple[float, float]:
    """Largest difference of embeddings, and of weights relative to the largest weight of their tensor."""
    with np.load(one) as a, np.load(other) as b:
        embedding = float(np.abs(a["embedding"] - b["embedding"]).max())
        weights = [np.abs(a[name] - b[name]).max() / np.abs(a[name]).max() for name in a.files if name != "embedding"]
    return embedding, float(max(weights))


def report_runs(
    report: Report, runs: dict[int, list[list[dict[str, Any]]]], sizes: Sequence[int], differences: tuple[float, float]
) -> None:
    """Table and claims."""
    n_embed, n_steps, cells_a_step = sizes
    rates: dict[str, dict[int, list[float]]] = {"embedding": {}, "training": {}}
    work = {"embedding": ("embed_s", n_embed), "training": ("train_s", n_steps * cells_a_step)}
    for n_processes, some in runs.items():
        for what, (key, n_cells) in work.items():
            rates[what][n_processes] = [n_cells / max(rank[key] for rank in ranks) for ranks in some]
    rows = []
    for what, by_count in rates.items():
        gain = Spread.of(two / one for one, two in zip(by_count[1], by_count[2], strict=True))
        rows.append((what, *(Spread.of(by_count[n]).text("{:,.0f}") for n in (1, 2)), gain.text()))
        report.claim(f"throughput of two processes against one, {what}", "none", f"{gain.text()}x", holds=None)
    report.table("Cells a second, one thread a process.", ("what", "1 process", "2 processes", "2 / 1"), rows)
    report.measured |= {"runs": runs, "embedding_apart": differences[0], "weights_apart": differences[1]}
    same = all(len({rank[key] for rank in ranks}) == 1 for ranks in runs[2] for key in ("weights", "embedding"))
    report.claim(
        "embeddings with two processes and with one",
        f"the same (entries within {SAME:.0e})",
        f"largest difference {differences[0]:.1e}",
        holds=differences[0] <= SAME,
    )
    report.claim(
        f"weights on both ranks after {n_steps} steps", "the same", "equal" if same else "not equal", holds=same
    )
    report.claim(
        "weights of two processes and of one", "none", f"largest relative difference {differences[1]:.1e}", holds=None
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    arguments.threads = 1
    report = begin("two_processes", "Two processes", arguments)
    sizes = (128, 3, 8) if arguments.quick else (7_000, 20, 32)
    n_rounds = arguments.rounds or (1 if arguments.quick else 3)
    runs: dict[int, list[list[dict[str, Any]]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        for number in range(n_rounds):
            for n_processes, some in runs.items():
                some.append(launch(Path(name) / f"{number}-{n_processes}", n_processes, sizes))
        differences = apart(Path(name) / "0-1" / "0.npz", Path(name) / "0-2" / "0.npz")
    report_runs(report, runs, sizes, differences)
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
