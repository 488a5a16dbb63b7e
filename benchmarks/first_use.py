"""What a user waits for in a new process: the first embedding, a fine-tuned model, a perturbation model.

700 cells of ``scanpy.datasets.pbmc68k_reduced`` and, with ``--data``, the K562 cells of PerturBench's devel data
(``perturbench_devel.h5ad``), with the bundled model and default settings. With ``--before FOLDER``, the source of an earlier
version (the folder that holds ``scgalore/``) does the same in turn, for example

    git worktree add --detach /tmp/before v0.12.0
    python benchmarks/run.py first_use --data FOLDER --before /tmp/before/src

Seconds are those of the call, with what it imports, and CPU time is that of all threads. The first embedding is timed twice: in
a script that imports anndata alone, its import and reading the file included, and where scanpy has been imported before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import ROOT, Answer, begin, interleave, parser, ratio, results_folder, seconds
from benchmarks.side import THREADS_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

SCREEN = "perturbench_devel.h5ad"
LEAST_GAIN = 2.0

CELLS = """
import scanpy as sc
adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
"""
WORK = {
    "first embedding": (
        "",
        """
import anndata as ad, scgalore as sg
adata = ad.read_h5ad(cells).raw.to_adata()
sg.tl.embed(adata, "scgpt-mini")
value = float(adata.obsm["X_scGPT"].std())
""",
    ),
    "first embedding, scanpy imported": (
        CELLS,
        """
import scgalore as sg
sg.tl.embed(adata, "scgpt-mini")
value = float(adata.obsm["X_scGPT"].std())
""",
    ),
    "fine-tuning": (
        CELLS + "adata.obs['bulk_labels'] = sc.datasets.pbmc68k_reduced().obs['bulk_labels']\n",
        """
import scgalore as sg
model = sg.tl.finetune(adata, "scgpt-mini", labels_key="bulk_labels", rng=0, **options)
value = {"epochs": len(model.history), "loss": float(model.history["validation_loss"].min())}
""",
    ),
    "perturbation fit": (
        """
import scanpy as sc, scgalore as sg
adata = sg.datasets.to_canonical(sc.read_h5ad(path), source="perturbench")
adata = adata[adata.obs["cell_type"].astype(str).str.lower() == "k562"].copy()
sc.pp.filter_genes(adata, min_cells=1)
sg.pp.split_perturbations(adata, "simulation", rng=0)
""",
        """
model = sg.tl.finetune(adata, "scgpt-mini", task="perturbation", split_key="split", rng=0, **options)
value = {"epochs": len(model.history), "loss": float(model.history["validation_loss"].min())}
""",
    ),
}
"""What is done before the clock starts, and what is timed, in a process of its own."""

CLOCK = """
import json, sys, time
cells, path, options = json.loads(sys.argv[1])
{before}
wall, cpu = time.perf_counter(), time.process_time()
{timed}
print(json.dumps([value, time.perf_counter() - wall, time.process_time() - cpu, sg.__file__]))
"""


def cells_file() -> Path:
    """File of the cells, as scanpy ships it."""
    import scanpy as sc

    return Path(sc.datasets.__file__).with_name("10x_pbmc68k_reduced.h5ad")


def run(name: str, source: Path, threads: int, path: Path | None, options: dict[str, Any]) -> Answer:
    """Do one piece of work in a new process that imports ``scgalore`` from this folder."""
    before, timed = WORK[name]
    names = (THREADS_VARIABLE, "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CLOCK.format(before=before, timed=timed)]
        + [json.dumps([str(cells_file()), None if path is None else str(path), options])],
        cwd=source,
        env={**os.environ, **dict.fromkeys(names, str(threads)), "PYTHONPATH": str(source), "SCGALORE_PROGRESS": "0"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        msg = f"{name} with {source} failed:\n{done.stderr[-4000:]}"
        raise RuntimeError(msg)
    value, wall, cpu, imported = json.loads(done.stdout.splitlines()[-1])
    if source not in Path(imported).parents:
        msg = f"{imported} was measured in place of {source}."
        raise RuntimeError(msg)
    return Answer(value, wall, cpu, 0, 0)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    options = parser(__doc__)
    options.add_argument("--before", type=Path, help="source folder of an earlier version")
    options.add_argument("--only", choices=WORK, help="this work alone")
    arguments = options.parse_args(argv)
    report = begin("first_use", "What a user waits for", arguments)
    sources = {"now": ROOT / "src"}
    if arguments.before is not None:
        sources = {"before": arguments.before.resolve(), **sources}
    path = None if arguments.data is None else (arguments.data / SCREEN).resolve()
    short = {"max_epochs": 1} if arguments.quick else {}
    rows = []
    for name in WORK if arguments.only is None else [arguments.only]:
        if name == "perturbation fit" and (path is None or not path.exists()):
            report.note(f"No perturbation fit: pass --data with a folder that has {SCREEN}.")
            continue
        sides = {
            side: lambda source=source: run(name, source, arguments.threads, path, short)  # noqa: B023 (used at once)
            for side, source in sources.items()
        }
        answers = interleave(sides, arguments.rounds or (1 if arguments.quick else 3), name)
        walls, cpus = ({side: seconds(found, clock) for side, found in answers.items()} for clock in ("wall", "cpu"))
        report.measured[name] = {
            side: {"wall": walls[side].to_dict(), "cpu": cpus[side].to_dict(), "value": found[-1].value}
            for side, found in answers.items()
        }
        rows += [(name, side, walls[side].text(), cpus[side].text()) for side in answers]
        if "before" in answers:
            gains = {clock: ratio(answers["before"], answers["now"], clock) for clock in ("wall", "cpu")}
            report.claim(
                f"{name}: CPU time before against now",
                f"at least {LEAST_GAIN:g}x",
                f"{gains['cpu'].text()}x; wall time {gains['wall'].text()}x",
                holds=gains["cpu"].median >= LEAST_GAIN,
            )
        else:
            report.claim(name, "reported", f"{walls['now'].text()} s, {cpus['now'].text()} s of CPU", holds=None)
    report.table("Seconds of a call in a new process:", ("", "version", "wall", "CPU"), rows)
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
