"""Scores of integration: seconds and memory for made embeddings, and the table of two real data sets.

``--data`` names a folder with ``pbmc_3assays_symphony.h5ad`` and ``kang18_pbmc_ifnb_muscat.h5ad``. Their cells are scored with three seeds:
principal components, Harmony, and embeddings of the bundled model without fine-tuning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from benchmarks.harness import begin, parser, results_folder
from benchmarks.side import measured

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from benchmarks.harness import Report

SIZES = ((5_000, 512), (20_000, 512))
SECONDS, GIGABYTES = 120.0, 1.0
REAL = {"pbmc_3assays_symphony": ("batch", "cell_type"), "kang18_pbmc_ifnb_muscat": ("group_id", "cluster_id")}
N_SEEDS = 3


def cells(n_obs: int, n_dims: int) -> AnnData:
    """Fifteen labels in five batches, with a shift of each."""
    from anndata import AnnData

    rng = np.random.default_rng(0)
    labels, batches = rng.integers(15, size=n_obs), rng.integers(5, size=n_obs)
    obs = pd.DataFrame(
        {"label": labels.astype(str), "batch": batches.astype(str)}, index=[f"c{i}" for i in range(n_obs)]
    )
    adata = AnnData(np.zeros((n_obs, 1), dtype=np.float32), obs=obs)
    shifts = rng.normal(size=(15, n_dims))[labels] + 0.5 * rng.normal(size=(5, n_dims))[batches]
    adata.obsm["X_made"] = (shifts + rng.normal(size=(n_obs, n_dims))).astype(np.float32)
    return adata


def time_scores(report: Report, n_obs: int, n_dims: int, *, holds: bool) -> None:
    """Score one embedding, which is also the one without integration."""
    from scgalore.tl import evaluate_integration

    how = {"embeddings": "X_made", "baselines": (), "unintegrated": "X_made"}
    found = measured(evaluate_integration, data=cells(n_obs, n_dims), batch_key="batch", labels_key="label", **how)
    seconds, gigabytes = found["wall"], (found["peak"] - found["rss"]) / 1e9
    report.measured[f"{n_obs} x {n_dims}"] = {"seconds": seconds, "gigabytes": gigabytes}
    report.claim(
        f"scores of one embedding, {n_obs:,} cells x {n_dims} dimensions",
        f"under {SECONDS:g} s and {GIGABYTES:g} GB" if holds else "reported",
        f"{seconds:.0f} s, {gigabytes:.2f} GB",
        holds=seconds < SECONDS and gigabytes < GIGABYTES if holds else None,
    )


def score_real(report: Report, path: Path) -> None:
    """Mean and standard deviation of every score over seeds."""
    import anndata as ad

    import scgalore as sg

    adata = ad.read_h5ad(path)
    sg.tl.embed(adata, "scgpt-mini")
    tables = []
    for seed in range(N_SEEDS):
        sg.tl.evaluate_integration(adata, *REAL[path.stem], rng=seed)
        tables.append(sg.get.integration_scores(adata))
    stacked = np.stack([table.to_numpy() for table in tables])
    mean, deviation = stacked.mean(axis=0), stacked.std(axis=0, ddof=1)
    rows = [
        [score, *(f"{mean[row, column]:.3f} ({deviation[row, column]:.3f})" for row in range(len(mean)))]
        for column, score in enumerate(tables[0].columns)
    ]
    report.table(
        f"{path.stem}, {adata.n_obs:,} cells: means over {N_SEEDS} seeds (standard deviation)",
        ["score", *tables[0].index],
        rows,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    report = begin("integration_scores", "Scores of integration", arguments)
    sizes = ((300, 16),) if arguments.quick else SIZES
    for n_obs, n_dims in sizes:
        time_scores(report, n_obs, n_dims, holds=(n_obs, n_dims) == SIZES[-1])
    for name in REAL:
        path = arguments.data / f"{name}.h5ad" if arguments.data else None
        if path is None or not path.exists():
            report.note(f"{name} is skipped: there is no such file in --data.")
        else:
            score_real(report, path)
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
