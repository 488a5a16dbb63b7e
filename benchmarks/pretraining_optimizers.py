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


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--seeds", type=int, default=3, help="repetitions")
    arguments_of.add_argument("--steps", type=int, default=800, help="steps of each run")
    arguments = arguments_of.parse_args(argv)
    report = begin("pretraining_optimizers", "Pre-training on several files, by optimizer", arguments)
    paths = sources(arguments.data)
    keep = not arguments.quick
    steps, seeds = (16, 1) if arguments.quick else (arguments.steps, arguments.seeds)
    runs: dict[str, list[dict[str, Any]]] = {}
    chosen: dict[str, float] = {}
    for optimizer, grid in RATES.items():
        rates = grid[1:2] if arguments.quick else grid
        tuned = {lr: kept(paths, optimizer, lr, TUNING_SEED, steps // 4, keep=keep)["loss"][-1] for lr in rates}
        chosen[optimizer] = min(tuned, key=tuned.__getitem__)
        runs[optimizer] = [kept(paths, optimizer, chosen[optimizer], seed, steps, keep=keep) for seed in range(seeds)]
    rows = []
    for optimizer, of_optimizer in runs.items():
        ends = np.array([min(run["loss"]) for run in of_optimizer])
        # As long as AdamW needs for all its steps.
        limits = [run["seconds"] * len(run["loss"]) for run in runs["adamw"]]
        equal = np.array([in_time(run, limit) for run, limit in zip(of_optimizer, limits, strict=True)])
        base = np.array([min(run["loss"]) for run in runs["adamw"]])
        rows.append(
            (
                optimizer,
                f"{chosen[optimizer]:g}",
                f"{of_optimizer[0]['state'] / 1e3:,.0f}",
                f"{1000 * np.median([run['seconds'] for run in of_optimizer]):.0f}",
                f"{ends.mean():.1f}",
                *("{:+.1%} ± {:.1%}".format(*compared(numbers, base)) for numbers in (ends, equal)),
                f"{np.mean([min(run['of tokens']) for run in of_optimizer]):.1f}",
                f"{np.mean([run['neighbours'] for run in of_optimizer]):.3f}",
            )
        )
    before = kept(paths, "adamw", UNTRAINED, TUNING_SEED, EPOCHS, keep=keep)
    note = ""
    if "symphony" in paths:
        note = f" Neighbours: {before['neighbours']:.3f} in the embedding of random weights, {components(paths['symphony']):.3f} in principal components."
    report.table(
        f"{', '.join(paths)}: {steps} steps of 32 cells, means over {seeds} seeds.{note}",
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
        rows,
    )
    report.measured.update({name: {"lr": chosen[name], "runs": of_optimizer} for name, of_optimizer in runs.items()})
    base = np.array([min(run["loss"]) for run in runs["adamw"]])
    for optimizer in ("muon", "apollo"):
        difference, error = compared(np.array([min(run["loss"]) for run in runs[optimizer]]), base)
        report.claim(
            f"{optimizer}: held-out loss against adamw at equal steps",
            "below by more than two standard errors",
            f"{difference:+.1%} ± {error:.1%}",
            holds=difference < -2 * error,
        )
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
