"""Pre-training from random weights on several real files: held-out loss of each optimizer at equal steps and at equal time.

A small scGPT (64 dimensions, two blocks) on the files of ``--data`` that are there: CITE-seq, Kang et al. 2018 (9,015 genes), a 10k panel
with proteins, symphony's PBMC, human embryonic stem cells, and mouse brain through orthologs. Half of the masked values are predicted from
the tokens and all from the cell embedding. Each optimizer has a rate of its own, the best of three after a quarter of the steps by a
seed of its own, and then trains with other seeds, each of which draws the weights, the order of cells and the held-out cells anew. Differences
to AdamW are paired by seed. Embeddings of symphony's held-out cells are scored by the cell types of nearest neighbours, next to principal
components of the same cells. Run with one thread on a quiet machine.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from benchmarks.harness import begin, parser, results_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FILES = {
    "CITE-seq": "citeseq_500cells_citefuse.h5ad",
    "Kang": "kang18_pbmc_ifnb_9015genes.h5ad",
    "proteins": "pbmc_10k_protein_v3_200cells.h5ad",
    "symphony": "pbmc_3assays_symphony.h5ad",
    "stem cells": "hesc_chen_385cells.h5ad",
    "mouse brain": "mouse_brain_1000cells.h5ad",
}
RATES = {
    "adamw": (3e-4, 1e-3, 3e-3),
    "galore": (3e-4, 1e-3, 3e-3),
    "apollo": (3e-4, 1e-3, 3e-3),
    "apollo-mini": (3e-4, 1e-3, 3e-3),
    "muon": (3e-4, 1e-3, 3e-3),
    "adafactor": (1e-3, 3e-3, 1e-2),
    "sophia": (1e-4, 3e-4, 1e-3),
}
SIZES = {"d_model": 64, "n_heads": 4, "d_hid": 128, "n_layers": 2, "max_length": 160}
EPOCHS, TUNING_SEED = 8, 100


def one_run(paths: dict[str, Path], optimizer: str, lr: float, seed: int, steps: int) -> dict[str, Any]:
    """History and the model of a run."""
    import scgalore as sg

    started = time.perf_counter()
    each = max(1, steps // EPOCHS)
    model = sg.tl.pretrain(
        {name: [path] for name, path in paths.items()},
        sg.model.scgpt_config(**SIZES),
        optimizer=optimizer,
        lr=lr,
        max_steps=steps,
        steps_per_epoch=each,
        mask_ratio=0.5,
        validation_cells=400,
        min_matched=0,
        accelerator="cpu",
        rng=seed,
    )
    history = model.history
    result = model.result
    assert result is not None
    return {
        "model": model,
        "losses": history["validation_loss"].to_numpy(),
        "seconds": history["seconds"].cumsum().to_numpy(),
        "state": result.optimizer_bytes,
        "wall": time.perf_counter() - started,
    }


def neighbours(path: Path, model: Any) -> tuple[float, float]:
    """Share of cells whose type their neighbours have, in the embedding and in principal components."""
    import scanpy as sc
    from sklearn.decomposition import PCA
    from sklearn.model_selection import cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    import scgalore as sg

    cells = sc.read_h5ad(path)
    labels = cells.obs["cell_type"].astype(str).to_numpy()
    kept = pd.Series(labels).map(pd.Series(labels).value_counts()).to_numpy() >= 10
    cells, labels = cells[kept].copy(), labels[kept]
    sg.tl.embed(cells, model)
    components = PCA(50, random_state=0).fit_transform(
        np.asarray(cells.X.todense() if hasattr(cells.X, "todense") else cells.X)
    )
    scores = [
        cross_val_score(KNeighborsClassifier(15), x, labels, cv=5).mean() for x in (cells.obsm["X_scGPT"], components)
    ]
    return float(scores[0]), float(scores[1])


def at_time(run: dict[str, Any], seconds: float) -> float:
    """Lowest held-out loss up to some time."""
    done = run["losses"][run["seconds"] <= seconds * 1.001]
    return float(done.min()) if len(done) else float("nan")


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--seeds", type=int, default=3, help="repetitions")
    arguments_of.add_argument("--steps", type=int, default=400, help="steps of each run")
    arguments = arguments_of.parse_args(argv)
    report = begin("pretraining_optimizers", "Pre-training on several files, by optimizer", arguments)
    torch.set_num_threads(arguments.threads)
    quick = arguments.quick
    paths = {name: arguments.data / file for name, file in FILES.items()} if arguments.data else {}
    paths = {name: path for name, path in paths.items() if path.is_file()}
    if not paths:
        print("no data sets: pass --data FOLDER")
        return
    steps, seeds = (16, 1) if quick else (arguments.steps, arguments.seeds)
    runs: dict[str, list[dict[str, Any]]] = {}
    chosen: dict[str, float] = {}
    for optimizer, rates in RATES.items():
        tuned = (
            {}
            if quick
            else {lr: one_run(paths, optimizer, lr, TUNING_SEED, steps // 4)["losses"].min() for lr in rates}
        )
        chosen[optimizer] = rates[1] if quick else min(tuned, key=tuned.__getitem__)
        print(optimizer, {lr: round(float(loss), 1) for lr, loss in tuned.items()}, flush=True)
        runs[optimizer] = [one_run(paths, optimizer, chosen[optimizer], seed, steps) for seed in range(seeds)]
        print(
            optimizer, chosen[optimizer], [round(float(run["losses"].min()), 2) for run in runs[optimizer]], flush=True
        )
    # What the quickest needs for all of its steps.
    limit = [min(runs[name][seed]["seconds"][-1] for name in runs) for seed in range(seeds)]
    rows, measured = [], {}
    for optimizer, of_optimizer in runs.items():
        at_end = np.array([run["losses"].min() for run in of_optimizer])
        in_time = np.array([at_time(run, limit[seed]) for seed, run in enumerate(of_optimizer)])
        base = np.array([run["losses"].min() for run in runs["adamw"]])
        difference = at_end / base - 1
        scores = (
            [neighbours(paths["symphony"], run["model"]) for run in of_optimizer]
            if "symphony" in paths
            else [(np.nan, np.nan)]
        )
        seconds = np.median([run["seconds"][-1] for run in of_optimizer]) / steps
        rows.append(
            [
                optimizer,
                f"{chosen[optimizer]:g}",
                f"{at_end.mean():.1f} ± {at_end.std(ddof=1) if seeds > 1 else 0:.1f}",
                f"{difference.mean():+.1%} ± {difference.std(ddof=1) / np.sqrt(seeds) if seeds > 1 else 0:.1%}",
                f"{np.nanmean(in_time):.1f}",
                f"{1000 * seconds:.0f}",
                f"{of_optimizer[0]['state'] / 1e3:,.0f}",
                f"{np.mean([score[0] for score in scores]):.3f}",
            ]
        )
        measured[optimizer] = {
            "lr": chosen[optimizer],
            "losses": [run["losses"].tolist() for run in of_optimizer],
            "seconds": [run["seconds"].tolist() for run in of_optimizer],
            "state": of_optimizer[0]["state"],
            "neighbours": [score[0] for score in scores],
            "components": scores[0][1],
        }
    header = [
        "optimizer",
        "lr",
        "held-out loss",
        "against adamw",
        "in equal time",
        "ms/step",
        "state, kB",
        "neighbours",
    ]
    title = f"{', '.join(paths)}: {steps} steps of 32 cells, {seeds} seeds. Neighbours in principal components: {scores[0][1]:.3f}."
    report.table(title, header, rows)
    report.measured.update(measured)
    for optimizer in runs:
        first = np.mean([run["losses"][0] for run in runs[optimizer]])
        last = np.mean([run["losses"].min() for run in runs[optimizer]])
        report.claim(
            f"{optimizer} learns: lowest held-out loss below that of the first epoch",
            "yes",
            f"{first:.1f} to {last:.1f}",
            holds=bool(last < first),
        )
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
