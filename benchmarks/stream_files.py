"""A stream of 1 to 200 files that are cut from a real one: cells/s, memory, and whether draws hit their targets.

    python benchmarks/run.py stream_files --data FOLDER
    python benchmarks/run.py stream_files --quick

Each file holds cells of ``kang18_pbmc_ifnb_9015genes.h5ad`` (or of the 700 cells that scanpy ships, where it is not there) with
its own choice of 8 in 9 genes, in its own order, so that no two files share a list of genes, which is the costly case. Batches of
64, blocks of 64 cells, buffers of 512: one file fills several buffers, and a buffer takes from many files.

Each number of files is measured in a process of its own, with one thread, after a first pass over one file: modules that are loaded
on first use would count as memory of the first. Times are of the processor. Memory is the most resident memory above what there was
before, from making the stream to the end of an epoch.

Draws: two named sources with shares, a column of two values drawn equally often, and the test of Pearson over source and value.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from benchmarks.harness import MB, Report, Side, begin, parser, results_folder, say
from scipy.stats import chisquare

if TYPE_CHECKING:
    from collections.abc import Sequence

DATA = "kang18_pbmc_ifnb_9015genes.h5ad"
SHARES = {"first": 0.7, "second": 0.3}
MOST_KB = 60  # 8,000 token ids of two bytes, and what the allocator does not give back
SMALL = {"batch_size": 64, "block_size": 64, "buffer_size": 512}
SOME = 0.3  # of the cells have the first value


def write_files(folder: Path, data: Path | None, n_files: int, n_cells: int) -> tuple[list[str], list[str]]:
    """Cut files out of the data; their paths and the names of all genes."""
    if data is not None and (data / DATA).exists():
        whole = ad.read_h5ad(data / DATA)
    else:
        say(f"{DATA} is not there, so scanpy's cells are taken")
        whole = sc.datasets.pbmc68k_reduced().raw.to_adata()
    rng = np.random.default_rng(0)
    paths = []
    for number in range(n_files):
        genes = rng.permutation(whole.n_vars)[: whole.n_vars * 8 // 9]
        rows = rng.choice(whole.n_obs, n_cells)
        x = whole.X[rows][:, genes].tocsr()
        x.sort_indices()
        kind = np.where(np.arange(n_cells) < SOME * n_cells, "few", "many")
        obs = pd.DataFrame({"kind": pd.Categorical(kind)}, index=[f"{number}-{cell}" for cell in range(n_cells)])
        paths.append(str(folder / f"{number:03}.h5ad"))
        ad.AnnData(x, obs=obs, var=pd.DataFrame(index=whole.var_names[genes])).write_h5ad(paths[-1])
    return paths, whole.var_names.tolist()


def by_number(report: Report, paths: list[str], genes: list[str], numbers: Sequence[int]) -> None:
    """Speed and memory with more and more files."""
    rows, added, rates = [], {}, {}
    for number in numbers:
        with Side("benchmarks.readers", threads=1) as side:
            side.ask("files", paths=paths[:1], genes=genes, **SMALL)
            answer = side.ask("files", paths=paths[:number], genes=genes, **SMALL)
        added[number] = answer.peak - answer.rss
        rates[number] = answer.value["cells"] / answer.value["read"]
        each = 1000 * answer.value["made"] / number
        rows.append(
            (number, f"{answer.value['cells']:,}", f"{rates[number]:,.0f}", f"{each:.0f}", f"{added[number] / MB:.1f}")
        )
        say(f"{number} files: {rates[number]:,.0f} cells per CPU s, {added[number] / MB:.1f} MB")
    heading = "Files of their own genes each, buffers of 512 cells, blocks of 64, one thread."
    columns = ("files", "cells", "cells per CPU s", "ms of each file to make the stream", "MB added at most")
    report.table(heading, columns, rows)
    report.measured["by_number"] = {"added": added, "rates": rates}
    most = numbers[-1]
    more = (added[most] - added[numbers[0]]) / (most - numbers[0]) / 1000
    what = f"memory that a file adds, from {numbers[0]} to {most} files"
    report.claim(what, f"at most {MOST_KB} kB", f"{more:.0f} kB", holds=more <= MOST_KB)


def draws(report: Report, paths: list[str], genes: list[str], n_epochs: int) -> None:
    """Shares of the cells that are drawn, compared with those asked for."""
    half = len(paths) // 2
    named = {"first": paths[:half], "second": paths[half:]}
    with Side("benchmarks.readers", threads=1) as side:
        answer = side.ask(
            "draws", named=named, genes=genes, n_epochs=n_epochs, shares=SHARES, weights_key="kind", **SMALL
        )
    found = {(name, kind): n for name, kind, n in answer.value["counts"]}
    total = sum(found.values())
    target = {(name, kind): SHARES[name] / 2 for name in SHARES for kind in ("few", "many")}
    rows = [(*key, f"{share:.3f}", f"{found.get(key, 0) / total:.4f}") for key, share in target.items()]
    report.table(f"{total:,} draws.", ("source", "value", "asked for", "drawn"), rows)
    p = chisquare([found.get(key, 0) for key in target], [share * total for share in target.values()]).pvalue
    report.measured["draws"] = {"counts": answer.value["counts"], "p": float(p)}
    report.claim(
        "draws by source and value, chi-squared with 3 degrees of freedom",
        "p > 0.001",
        f"p = {p:.2f}",
        holds=bool(p > 1e-3),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    made = parser(__doc__)
    arguments = made.parse_args(argv)
    report = begin("stream_files", "Streams of many files", arguments)
    numbers = (1, 4) if arguments.quick else (1, 10, 50, 200)
    with tempfile.TemporaryDirectory() as name:
        paths, genes = write_files(Path(name), arguments.data, numbers[-1], 600 if arguments.quick else 1_000)
        by_number(report, paths, genes, numbers)
        draws(report, paths[: 4 if arguments.quick else 20], genes, 2 if arguments.quick else 5)
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
