"""Pre-training from random weights on several real files: held-out loss of each optimizer at equal steps and at equal time.

A small scGPT (64 dimensions, two blocks) on the files of ``--data`` that are there: CITE-seq, Kang et al. 2018 (9,015 genes), a 10k panel
with proteins, symphony's PBMC, human embryonic stem cells, and mouse brain through orthologs. Half of the values are hidden, and
predicted from the other tokens and from the cell embedding. The learning rate of each optimizer is the best of four after a quarter of the
steps, by a seed of its own; other seeds then draw the weights, the order of cells and the held-out cells anew. Differences to AdamW are
paired by seed. Time is that of the processor, so that neighbours matter little. Embeddings of symphony's cells are scored by the cell types of nearest
neighbours, next to principal components of the same cells and to random weights. Each run is kept in
``benchmarks/.cache/pretraining_optimizers``, so what was interrupted goes on; delete the folder to measure anew.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from benchmarks.harness import CACHE, begin, parser, results_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

    Runs = dict[str, list[dict[str, Any]]]

FOLDER = CACHE / "pretraining_optimizers"
FILES = {
    "CITE-seq": "citeseq_500cells_citefuse.h5ad",
    "Kang": "kang18_pbmc_ifnb_9015genes.h5ad",
    "proteins": "pbmc_10k_protein_v3_200cells.h5ad",
    "symphony": "pbmc_3assays_symphony.h5ad",
    "stem cells": "hesc_chen_385cells.h5ad",
    "mouse brain": "mouse_brain_1000cells.h5ad",
}
RATES = {
    "adamw": (1e-3, 3e-3, 1e-2, 3e-2),
    "galore": (1e-3, 3e-3, 1e-2, 3e-2),
    "apollo": (1e-3, 3e-3, 1e-2, 3e-2),
    "apollo-mini": (1e-3, 3e-3, 1e-2, 3e-2),
    "muon": (1e-3, 3e-3, 1e-2, 3e-2),
    "adafactor": (3e-3, 1e-2, 3e-2, 1e-1),
    "sophia": (1e-4, 3e-4, 1e-3, 3e-3),
}
SIZES = {"d_model": 64, "n_heads": 4, "d_hid": 128, "n_layers": 2, "max_length": 160}
EPOCHS, TUNING_SEED = 8, 100
MORE = ("adamw", "muon", "apollo")
"""Optimizers that are compared in longer runs, too: the default and the two that are best in the shorter ones."""
UNTRAINED = 1e-12
"""A learning rate at which random weights stay what they are."""


def one_run(paths: dict[str, Path | AnnData], optimizer: str, lr: float, seed: int, steps: int) -> dict[str, Any]:
    """Held-out losses by epoch, seconds of the processor for each step, bytes of state and the score of neighbours."""
    import scgalore as sg

    begun = time.process_time()
    model = sg.tl.pretrain(
        {name: [cells] for name, cells in paths.items()},
        sg.model.scgpt_config(**SIZES),
        optimizer=optimizer,
        lr=lr,
        max_steps=steps,
        steps_per_epoch=max(1, steps // EPOCHS),
        mask_ratio=0.5,
        validation_cells=400,
        min_matched=0,
        accelerator="cpu",
        rng=seed,
    )
    taken, result = time.process_time() - begun, model.result
    assert result is not None
    history = model.history
    return {
        "loss": history["validation_loss"].tolist(),
        "of tokens": history["validation_mse"].tolist(),
        "seconds": taken / steps,
        "state": result.optimizer_bytes,
        "neighbours": of_embedding(paths["symphony"], model) if "symphony" in paths else float("nan"),
    }


def sources(folder: Path | None) -> dict[str, Path | AnnData]:
    """Files that are there, by name; scanpy's cells without a folder."""
    import scanpy as sc

    if folder is None:
        return {"pbmc68k": sc.datasets.pbmc68k_reduced().raw.to_adata()}
    return {name: folder / file for name, file in FILES.items() if (folder / file).is_file()}


def typed_cells(path: Any) -> tuple[Any, Any]:
    """Cells of the types that ten cells or more have, and their types."""
    import scanpy as sc

    cells = sc.read_h5ad(path)
    labels = cells.obs["cell_type"].astype(str)
    cells = cells[(labels.map(labels.value_counts()) >= 10).to_numpy()].copy()
    return cells, cells.obs["cell_type"].astype(str).to_numpy()


def neighbours(x: Any, labels: Any) -> float:
    """Share of cells whose type their 15 neighbours have; neighbours are of other folds."""
    from sklearn.model_selection import cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    return float(cross_val_score(KNeighborsClassifier(15), x, labels, cv=5).mean())


def of_embedding(path: Any, model: Any) -> float:
    """Score of a model without training on types."""
    import scgalore as sg

    cells, labels = typed_cells(path)
    sg.tl.embed(cells, model, accelerator="cpu")
    return neighbours(cells.obsm["X_scGPT"], labels)


def components(path: Any) -> float:
    """Score of 50 principal components."""
    from sklearn.decomposition import PCA

    cells, labels = typed_cells(path)
    x = cells.X.toarray() if hasattr(cells.X, "toarray") else np.asarray(cells.X)
    return neighbours(PCA(50, random_state=0).fit_transform(x), labels)


def kept(
    paths: dict[str, Path | AnnData], optimizer: str, lr: float, seed: int, steps: int, *, keep: bool
) -> dict[str, Any]:
    """What :func:`one_run` gives, read from the cache if it is there."""
    path = FOLDER / f"{optimizer}, {lr:g}, seed {seed}, {steps} steps.json"
    if keep and path.is_file():
        return dict(json.loads(path.read_text()))
    made = one_run(paths, optimizer, lr, seed, steps)
    if keep:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made))
    print(f"{optimizer}, lr {lr:g}, seed {seed}, {steps} steps: {min(made['loss']):.1f}", flush=True)
    return made


def in_time(run: dict[str, Any], seconds: float) -> float:
    """Lowest held-out loss when all epochs together may take so long."""
    done = int(seconds / run["seconds"] + 1e-9)
    return min(run["loss"][: max(1, done)])


def compared(numbers: np.ndarray[Any, Any], base: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Mean relative difference and its standard error over pairs."""
    difference = numbers / base - 1
    error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else float("nan")
    return float(difference.mean()), float(error)


def shown(difference: float, error: float) -> str:
    """A difference with its error, if there is one."""
    return f"{difference:+.1%}" + ("" if np.isnan(error) else f" ± {error:.1%}")


def rows_of(runs: Runs, chosen: dict[str, float]) -> list[tuple[str, ...]]:
    """A row for each optimizer, AdamW's first."""
    base = np.array([min(run["loss"]) for run in runs["adamw"]])
    # As long as AdamW needs for all its steps.
    limits = [run["seconds"] * len(run["loss"]) for run in runs["adamw"]]
    rows = []
    for optimizer, of_optimizer in runs.items():
        ends = np.array([min(run["loss"]) for run in of_optimizer])
        equal = np.array([in_time(run, limit) for run, limit in zip(of_optimizer, limits, strict=True)])
        rows.append(
            (
                optimizer,
                f"{chosen[optimizer]:g}",
                f"{of_optimizer[0]['state'] / 1e3:,.0f}",
                f"{1000 * np.median([run['seconds'] for run in of_optimizer]):.0f}",
                f"{ends.mean():.1f}",
                *(shown(*compared(numbers, base)) for numbers in (ends, equal)),
                f"{np.mean([min(run['of tokens']) for run in of_optimizer]):.1f}",
                f"{np.mean([run['neighbours'] for run in of_optimizer]):.3f}",
            )
        )
    return rows


def plot(path: Path, runs: Runs, more: Runs, steps: int, more_steps: int) -> None:
    """Held-out loss by seconds and by steps, and by steps in the longer runs; lines are means over seeds, bands their range."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained", sharey=True)
    colors = dict(zip(runs, plt.get_cmap("tab10").colors, strict=False))  # type: ignore[attr-defined]
    for axis, shown, n, in_seconds in (
        (axes[0], runs, steps, True),
        (axes[1], runs, steps, False),
        (axes[2], more, more_steps, False),
    ):
        for optimizer, of_optimizer in shown.items():
            losses = np.array([run["loss"] for run in of_optimizer])
            at = n / losses.shape[1] * np.arange(1, losses.shape[1] + 1)
            at = at * (np.mean([run["seconds"] for run in of_optimizer]) if in_seconds else 1)
            axis.plot(at, losses.mean(axis=0), color=colors[optimizer], marker="o", markersize=3, label=optimizer)
            axis.fill_between(
                at, losses.min(axis=0), losses.max(axis=0), color=colors[optimizer], alpha=0.15, linewidth=0
            )
        axis.set(xlabel="CPU seconds" if in_seconds else "steps", yscale="log", title=f"{n:,} steps")
    axes[0].set_ylabel("held-out loss")
    axes[0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--seeds", type=int, default=3, help="repetitions")
    arguments_of.add_argument("--steps", type=int, default=800, help="steps of each run")
    arguments_of.add_argument("--more-steps", type=int, default=3200, help=f"steps of the longer runs of {MORE}")
    arguments_of.add_argument("--more-seeds", type=int, default=1, help="repetitions of the longer runs")
    arguments = arguments_of.parse_args(argv)
    report = begin("pretraining_optimizers", "Pre-training on several files, by optimizer", arguments)
    paths = sources(arguments.data)
    keep = not arguments.quick
    steps, seeds = (4, 1) if arguments.quick else (arguments.steps, arguments.seeds)
    more_steps, more_seeds = (8, 1) if arguments.quick else (arguments.more_steps, arguments.more_seeds)
    runs: Runs = {}
    chosen: dict[str, float] = {}
    for optimizer, grid in RATES.items():
        rates = grid[1:2] if arguments.quick else grid
        tuned = {lr: kept(paths, optimizer, lr, TUNING_SEED, steps // 4, keep=keep)["loss"][-1] for lr in rates}
        chosen[optimizer] = min(tuned, key=tuned.__getitem__)
        runs[optimizer] = [kept(paths, optimizer, chosen[optimizer], seed, steps, keep=keep) for seed in range(seeds)]
    # Seed by seed, so that all have as many where the benchmark is interrupted.
    longer = [
        [kept(paths, optimizer, chosen[optimizer], seed, more_steps, keep=keep) for optimizer in MORE]
        for seed in range(more_seeds)
    ]
    more: Runs = {
        optimizer: list(of_optimizer) for optimizer, of_optimizer in zip(MORE, zip(*longer, strict=True), strict=True)
    }
    before = kept(paths, "adamw", UNTRAINED, TUNING_SEED, EPOCHS, keep=keep)
    note = ""
    if "symphony" in paths:
        note = f" Neighbours: {before['neighbours']:.3f} in the embedding of random weights, {components(paths['symphony']):.3f} in principal components."
    for n, of_steps in ((steps, runs), (more_steps, more)):
        report.table(
            f"{', '.join(paths)}: {n:,} steps of 32 cells, means over seeds ({len(of_steps['adamw'])}).{note}",
            (
                "optimizer",
                "learning rate",
                "state, kB",
                "CPU ms per step",
                "held-out loss",
                "against adamw, equal steps",
                "equal time",
                "of it from tokens",
                "neighbours",
            ),
            rows_of(of_steps, chosen),
        )
        note = " Learning rates are those of the shorter runs."
        report.measured[f"{n} steps"] = {name: {"lr": chosen[name], "runs": some} for name, some in of_steps.items()}
        base = np.array([min(run["loss"]) for run in of_steps["adamw"]])
        for optimizer in MORE[1:]:
            difference, error = compared(np.array([min(run["loss"]) for run in of_steps[optimizer]]), base)
            report.claim(
                f"{optimizer}, {n:,} steps: held-out loss against adamw at equal steps",
                "below by more than two standard errors",
                shown(difference, error),
                holds=None if np.isnan(error) else difference < -2 * error,
            )
    folder = results_folder(arguments)
    if folder is not None:
        plot(folder / "pretraining_optimizers.png", runs, more, steps, more_steps)
        report.note("![Held-out loss of each optimizer by seconds and by steps](pretraining_optimizers.png)")
    report.finish(folder)


if __name__ == "__main__":
    main()
