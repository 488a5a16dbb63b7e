"""Streaming of token batches from several files, and embedding of a file that is larger than the memory allowed.

    python benchmarks/run.py streaming
    python benchmarks/run.py streaming --quick

Files of 10,000 cells, 5,000 genes and 400 counts a cell, each with its own choice and order of genes. ``sg.data.stream``
passes over 3 of them, shuffled, into padded token batches, in one process. Beside it stand ways to read random rows of the same
files with anndata: a backed AnnData a file, and AnnCollection. They return rows of counts and make no tokens, so they do less;
they read fewer cells, and cells a second are compared. Files lie in the system's cache for all.

Memory against the number of files is measured in a fresh process for 1, 3 and 6 files: what an epoch adds at most, with
buffers of 2,048 cells, since one file must fill several of them to need what more files need.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import sparse_dataset, write_elem
from benchmarks.harness import (
    MB,
    ROOT,
    Report,
    Side,
    Spread,
    begin,
    growth,
    interleave,
    parser,
    results_folder,
    say,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

STREAM, BACKED, COLLECTION = "sg.data.stream", "backed AnnData", "AnnCollection"
AT_LEAST = 40_000
GROWS = 1.15
MAX_LENGTH = 64


@dataclass(frozen=True)
class Plan:
    """Sizes."""

    n_cells: int = 10_000
    n_genes: int = 5_000
    n_counts: int = 400
    n_rounds: int = 5
    other_cells: int = 2_048  # that the other ways read
    file_counts: tuple[int, ...] = (1, 3, 6)
    buffer_size: int = 2_048  # where memory is measured: one file fills several
    large_bytes: float = 1.1e9
    limit: float = 0.8e9


FULL = Plan()
QUICK = Plan(
    n_cells=1_000, n_genes=500, n_counts=50, n_rounds=2, other_cells=256, buffer_size=128, large_bytes=0, limit=2e9
)


def counts(n_cells: int, n_genes: int, n_counts: int, rng: np.random.Generator) -> sp.csr_matrix:
    """Matrix with exactly ``n_counts`` entries a cell."""
    columns = np.stack([rng.choice(n_genes, n_counts, replace=False) for _ in range(n_cells)])
    columns.sort(axis=1)
    data = rng.geometric(0.5, columns.size).astype(np.float32)
    indptr = np.arange(0, columns.size + 1, n_counts)
    return sp.csr_matrix((data, columns.ravel().astype(np.int32), indptr), shape=(n_cells, n_genes))


def write_files(folder: Path, plan: Plan, n_files: int) -> tuple[list[Path], list[str]]:
    """Write the files; their paths and all gene names. A sixth of all genes is missing from each file."""
    rng = np.random.default_rng(0)
    genes = np.array([f"GENE{number:05d}" for number in range(plan.n_genes * 6 // 5)])
    paths = []
    for number in range(n_files):
        own = rng.choice(genes, plan.n_genes, replace=False)
        obs = pd.DataFrame(index=[f"{number}-{cell}" for cell in range(plan.n_cells)])
        matrix = counts(plan.n_cells, plan.n_genes, plan.n_counts, rng)
        paths.append(folder / f"cells-{number}.h5ad")
        ad.AnnData(matrix, obs=obs, var=pd.DataFrame(index=own)).write_h5ad(paths[-1])
    return paths, genes.tolist()


def write_large(path: Path, n_bytes: float, known: Iterable[str]) -> int:
    """Write a sparse file of at least ``n_bytes``, a piece at a time; number of its cells."""
    rng = np.random.default_rng(0)
    names = [*known, *(f"UNKNOWN{number}" for number in range(4_500))]
    n_counts = len(names) // 2
    piece = counts(500, len(names), n_counts, rng)
    with h5py.File(path, "w") as file:
        ad.AnnData(piece, var=pd.DataFrame(index=names)).write_h5ad(path.with_suffix(".first"))
        with h5py.File(path.with_suffix(".first")) as first:
            for key in first:
                first.copy(key, file)
            file.attrs.update(first.attrs)
        n_cells = piece.shape[0]
        while path.stat().st_size < n_bytes:
            sparse_dataset(file["X"]).append(piece)
            n_cells += piece.shape[0]
            file.flush()
        del file["obs"]
        write_elem(file, "obs", pd.DataFrame(index=[f"cell{number}" for number in range(n_cells)]))
    path.with_suffix(".first").unlink()
    return n_cells


def compare(report: Report, paths: list[Path], genes: list[str], plan: Plan, threads: int) -> None:
    """Cells per second of all ways to read."""
    files = [str(path) for path in paths[:3]]
    with (
        Side("benchmarks.readers", threads=threads) as stream,
        Side("benchmarks.readers", threads=threads) as backed,
        Side("benchmarks.readers", threads=threads) as collection,
    ):
        few = {"paths": files, "batch_size": 64, "n_cells": plan.other_cells}
        tasks = {
            STREAM: lambda: stream.ask("stream", paths=files, genes=genes, batch_size=64),
            BACKED: lambda: backed.ask("backed_rows", **few),
            COLLECTION: lambda: collection.ask("collection_rows", **few),
        }
        answers = interleave(tasks, plan.n_rounds, "3 files")
    rates = {name: Spread.of(a.value["cells"] / a.wall for a in some) for name, some in answers.items()}
    by_cpu = {name: Spread.of(a.value["cells"] / a.cpu for a in some) for name, some in answers.items()}
    rows = []
    for name, some in answers.items():
        faster = rates[STREAM].median / rates[name].median
        cells = f"{some[0].value['cells']:,}"
        rows.append(
            (
                name,
                cells,
                rates[name].text("{:,.0f}"),
                by_cpu[name].text("{:,.0f}"),
                f"{faster:.1f}",
                f"{growth(some) / MB:,.0f}",
            )
        )
    heading = (
        f"3 files of {plan.n_cells:,} cells, {plan.n_genes:,} genes and {plan.n_counts} counts a cell, batches of 64."
    )
    report.table(heading, ("reader", "cells", "cells/s", "cells per CPU s", "stream / this", "MB added"), rows)
    report.measured["readers"] = {
        name: [{"wall": a.wall, "cpu": a.cpu, "rss": a.rss, "peak": a.peak, **a.value} for a in some]
        for name, some in answers.items()
    }
    expected = 3 * plan.n_cells
    if answers[STREAM][0].value["cells"] != expected:
        msg = f"An epoch gave {answers[STREAM][0].value['cells']:,} cells of {expected:,}."
        raise RuntimeError(msg)
    report.claim(
        "cells a second into token batches, one process",
        f"at least {AT_LEAST:,}",
        rates[STREAM].text("{:,.0f}"),
        holds=rates[STREAM].median >= AT_LEAST,
    )


def memory_by_files(report: Report, paths: list[Path], genes: list[str], plan: Plan, threads: int) -> None:
    """What an epoch adds to memory, with more and more files."""
    added = {}
    for n_files in plan.file_counts:
        with Side("benchmarks.readers", threads=threads) as side:
            files = [str(path) for path in paths[:n_files]]
            # Modules that are loaded on first use would count as memory of the first file.
            side.ask("stream", paths=files[:1], genes=genes, batch_size=64)
            answer = side.ask("stream", paths=files, genes=genes, batch_size=64, buffer_size=plan.buffer_size)
        added[n_files] = answer.peak - answer.rss
        say(f"files: {n_files}, {added[n_files] / MB:.1f} MB added")
    size = sum(path.stat().st_size for path in paths) / len(paths)
    rows = [(n_files, f"{n_files * size / MB:.0f}", f"{grown / MB:.1f}") for n_files, grown in added.items()]
    heading = f"Memory of an epoch of the stream, buffers of {plan.buffer_size:,} cells."
    report.table(heading, ("files", "MB on disk", "MB added at most"), rows)
    report.measured["memory_by_files"] = added
    more = added[plan.file_counts[-1]] / max(added[plan.file_counts[0]], 1)
    what = f"memory with {plan.file_counts[-1]} files against 1"
    report.claim(what, f"does not grow (at most {GROWS}x)", f"{more:.2f}x", holds=more <= GROWS)


def embed_under_limit(report: Report, folder: Path, plan: Plan, threads: int) -> None:
    """Embed a backed file in a process that may not hold it."""
    import scgalore as sg

    path = folder / "large.h5ad"
    n_cells = write_large(path, plan.large_bytes, sg.model.SCGPT.from_pretrained("scgpt-mini").vocab.tokens[:500])
    say(f"{path.stat().st_size / MB:,.0f} MB, {n_cells:,} cells; limit {plan.limit / MB:,.0f} MB")
    command = [sys.executable, "-m", "benchmarks.limited", str(path), str(int(plan.limit)), str(MAX_LENGTH)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    size = path.stat().st_size
    path.unlink()
    what = f"embedding of a backed file of {size / MB:,.0f} MB with scgpt-mini, at most {plan.limit / MB:,.0f} MB of data memory"
    if result.returncode:
        report.measured["limited"] = {"error": result.stderr[-2000:]}
        report.claim(what, "succeeds", f"failed: {result.stderr.strip().splitlines()[-1]}", holds=False)
        return
    found = json.loads(result.stdout.splitlines()[-1])
    report.measured["limited"] = {**found, "file_bytes": size, "limit": plan.limit, "max_length": MAX_LENGTH}
    whole = "does not fit" if found["whole_fails"] else "fits"
    text = f"{found['cells']:,} cells in {found['seconds']:.0f} s; {found['data_before'] / MB:,.0f} MB before; the file as a whole {whole}"
    report.claim(
        what, "succeeds", text, holds=found["unit_rows"] and found["cells"] == n_cells and found["whole_fails"]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    report = begin("streaming", "Streaming", arguments)
    plan = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths, genes = write_files(folder, plan, max(plan.file_counts))
        say(f"{len(paths)} files of {paths[0].stat().st_size / MB:.0f} MB written")
        embed_under_limit(report, folder, plan, arguments.threads)
        compare(report, paths, genes, plan, arguments.threads)
        memory_by_files(report, paths, genes, plan, arguments.threads)
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
