"""A curriculum over genes compared with all genes from the start, at equal compute and at equal wall time, several seeds.

The four phases admit the 500, 1,200, 2,500 and 5,000 best-ranked genes of peripheral blood cells (Kang et al. 2018), as many
epochs each; there are no other genes. The other sides train on all of them from the first step, with as many tokens in a batch, for as many epochs as the
curriculum's floating point operations or its seconds buy, and for as many epochs as it has. All start from the same weights and
choose the best epoch by the same validation cells, with all genes. Without the file: fewer genes of the cells that scanpy ships.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
from benchmarks import flops
from benchmarks.fitting import fit
from benchmarks.harness import begin, parser, results_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from benchmarks.harness import Report

FILE = "kang18_pbmc_ifnb_9015genes.h5ad"
TASKS = {"classes": "annotation", "expression": "masked expression"}
SIDES = {
    "curriculum": "curriculum",
    "compute": "all genes, equal compute",
    "time": "all genes, equal wall time",
    "epochs": "all genes, equal epochs",
}
METRICS = {
    "classes": {"validation_loss": "validation loss", "test_loss": "test loss", "accuracy": "test accuracy"},
    "expression": {"validation_loss": "validation loss", "test_loss": "test loss"},
}


@dataclass(frozen=True)
class Plan:
    """One comparison.

    Attributes
    ----------
    data
        Folder with the file; ``None`` takes scanpy's cells.
    task
        Of :data:`TASKS`.
    seed
        Of split, draws and, with random weights, weights.
    phases
        Epochs by number of genes.
    n_cells
        Cells to take.
    batch_size
        Cells of average length in a batch.
    """

    data: Path | None
    task: str
    seed: int
    phases: dict[int, int]
    n_cells: int
    batch_size: int = 16

    @property
    def epochs(self) -> int:
        """Epochs of the curriculum."""
        return sum(self.phases.values())


def cells_of(plan: Plan) -> tuple[AnnData, str]:
    """Cells, and the column with their classes."""
    import scanpy as sc

    if plan.data is None:
        reduced = sc.datasets.pbmc68k_reduced()
        adata, key = reduced.raw.to_adata(), "bulk_labels"
        adata.obs = reduced.obs.copy()
    else:
        adata, key = sc.read_h5ad(plan.data / FILE), "condition"
    rows = np.random.default_rng(0).permutation(adata.n_obs)[: plan.n_cells]
    return adata[np.sort(rows)].copy(), key


def run(plan: Plan) -> dict[str, dict[str, float]]:
    """Train all sides from the same weights; numbers of each by name."""
    import torch

    import scgalore as sg
    from scgalore.data.labels import encode_labels
    from scgalore.data.split import random_split
    from scgalore.selection.ranking import rank_adata

    torch.set_num_threads(1)
    sg.settings.progress = False
    adata, key = cells_of(plan)
    codes, classes = encode_labels(adata, key)
    split = random_split(adata.n_obs, validation_size=0.1, test_size=0.7, strata=codes, seed=plan.seed)
    seen = np.isin(np.arange(adata.n_obs), split.train)
    ranks = rank_adata(adata, "biological", train=seen).rank
    # What the last phase admits is what all sides see, in validation and test too.
    selected = ranks < max(plan.phases)
    adata, ranks = adata[:, selected].copy(), ranks[selected]
    found: dict[str, dict[str, float]] = {}

    def side(name: str, epochs: int, **options: Any) -> None:
        model = sg.model.SCGPT.from_pretrained("scgpt-mini")
        cells = model.cells(adata, rng=plan.seed).with_ranks(ranks)
        if plan.task == "classes":
            cells = cells.with_targets(labels=codes)
        config = sg.train.TrainConfig(
            max_epochs=epochs, lr=1e-3, optimizer_options={"rank": 32}, seed=plan.seed, accelerator="cpu", **options
        )
        fit(model, cells, split, config, classes if plan.task == "classes" else ())
        found[name] = {
            "epochs": epochs,
            "steps": model.result.steps,
            "seconds": float(model.history["seconds"].sum()),
            "flop": operations(plan, cells, split.train, model, epochs if name != "curriculum" else None),
            "validation_loss": float(model.history["validation_loss"].min()),
            **on_test(model, cells, split.test, plan),
        }

    side("curriculum", plan.epochs, curriculum=plan.phases, batch_size=plan.batch_size)
    mine = found["curriculum"]
    whole = sg.model.SCGPT.from_pretrained("scgpt-mini").cells(adata, rng=plan.seed)
    cap = int(np.ceil(plan.batch_size * whole.lengths[split.train].mean()))
    plain = {"batch_size": adata.n_obs, "batch_tokens": cap}
    side("epochs", plan.epochs, **plain)
    each = {name: found["epochs"][name] / plan.epochs for name in ("flop", "seconds")}
    for name, of in (("compute", "flop"), ("time", "seconds")):
        epochs = max(1, round(mine[of] / each[of]))
        same = [other for other in found if other != "curriculum" and found[other]["epochs"] == epochs]
        if same:
            found[name] = found[same[0]]
        else:
            side(name, epochs, **plain)
    return found


def operations(plan: Plan, cells: Any, train: np.ndarray, model: Any, epochs: int | None) -> float:
    """Floating point operations of training; of the curriculum where the epochs are left out."""
    config = model.network.config
    forward = flops.embedding if plan.task == "classes" else flops.forward

    def once(lengths: np.ndarray) -> float:
        sizes, counts = np.unique(lengths[lengths > 1], return_counts=True)
        return 3.0 * sum(n * forward(config, int(size)) for size, n in zip(sizes, counts, strict=True))

    if epochs is not None:
        return epochs * once(cells.lengths[train])
    total = 0.0
    for n_genes, of_phase in plan.phases.items():
        admitted = cells if n_genes >= len(cells.ranked) else cells.within(cells.ranked[:n_genes])
        total += of_phase * once(admitted.lengths[train])
    return total


def on_test(model: Any, cells: Any, test: np.ndarray, plan: Plan) -> dict[str, float]:
    """What the kept weights are worth on the test cells, with all genes."""
    import torch

    from scgalore.data.sampler import sorted_batches
    from scgalore.objectives import Classification, MaskedExpression

    masked = MaskedExpression(mask_value=model.network.config.mask_value)
    objective = Classification(model.network.config.heads["classes"]) if plan.task == "classes" else masked
    sums: dict[str, float] = {}
    model.network.eval()
    with torch.inference_mode():
        for request in sorted_batches(test, cells.lengths[test], batch_size=32):
            batch = objective.corrupt(cells.batch(request), seed=plan.seed, draw=0)
            loss = objective(model.network, batch)
            for name, value in {"test_loss": loss.total, **loss.parts}.items():
                sums[name] = sums.get(name, 0.0) + float(value) * loss.n
    return {name: value / len(test) for name, value in sums.items()}


def table_of(report: Report, task: str, runs: Sequence[dict[str, dict[str, float]]]) -> None:
    """All sides of a task, with the spread over the seeds, and the paired differences."""
    shown = {"epochs": "epochs", "steps": "steps", "flop": "TFLOP", "seconds": "seconds", **METRICS[task]}
    rows = []
    for side, title in SIDES.items():
        values = {name: np.array([run[side][name] for run in runs]) for name in shown}
        values["flop"] = values["flop"] / 1e12
        rows.append([title, *(_text(values[name], name) for name in shown)])
    report.table(
        f"{TASKS[task].capitalize()}: mean and standard deviation over {len(runs)} seeds", ("", *shown.values()), rows
    )
    for other in ("compute", "time", "epochs"):
        for metric, words in METRICS[task].items():
            paired = np.array([run["curriculum"][metric] - run[other][metric] for run in runs])
            error = paired.std(ddof=1) / np.sqrt(len(paired)) if len(paired) > 1 else float("nan")
            report.claim(
                f"{TASKS[task]}, {words}, curriculum minus {SIDES[other]}",
                "reported, whatever it is",
                f"{paired.mean():+.4f} ± {error:.4f} (standard error, n = {len(paired)})",
                holds=None,
            )
            report.measured[f"{task} {metric} minus {other}"] = paired.tolist()
    saved = [run["epochs"]["seconds"] / run["curriculum"]["seconds"] for run in runs]
    report.claim(
        f"{TASKS[task]}, time of all genes over that of the curriculum, equal epochs",
        "above 1",
        f"{np.median(saved):.2f} ({min(saved):.2f} to {max(saved):.2f})",
        holds=min(saved) > 1,
    )


def _text(values: np.ndarray, name: str) -> str:
    form = {"epochs": "{:.1f}", "steps": "{:.0f}", "flop": "{:.1f}", "seconds": "{:.0f}"}.get(name, "{:.4f}")
    spread = f" ± {form.format(values.std(ddof=1))}" if len(values) > 1 and values.std() > 0 else ""
    return form.format(values.mean()) + spread


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    options = parser(__doc__)
    options.add_argument("--processes", type=int, default=1, help="seeds that are trained at a time")
    options.add_argument("--seeds", type=int, default=4, help="seeds")
    arguments = options.parse_args(argv)
    report = begin("curriculum", "A curriculum over genes", arguments)
    here = arguments.data is not None and (arguments.data / FILE).exists()
    seeds = 1 if arguments.quick else arguments.seeds
    phases = {500: 3, 1200: 3, 2500: 3, 5000: 3} if here else {50: 2, 120: 2, 250: 2, 500: 2}
    size: dict[str, Any] = {"phases": phases, "n_cells": 1000 if here else 700}
    if arguments.quick:
        size = {"phases": dict.fromkeys(phases, 1), "n_cells": 80}
    data = arguments.data if here else None
    if not here:
        report.note(f"{FILE} is not here (name its folder with --data): cells and genes are those that scanpy ships.")
    tasks = list(TASKS)
    plans = [Plan(data, task, seed, **size) for task in tasks for seed in range(seeds)]
    runs = []
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        for plan, one in zip(plans, pool.map(run, plans), strict=True):
            mine = one["curriculum"]
            print(f"{plan.task}, seed {plan.seed}: curriculum {mine['seconds']:.0f} s", flush=True)
            runs.append(one)
    report.note(
        f"scgpt-mini, {size['n_cells']} cells, 20 % of them to train on, 10 % to choose the epoch by and 70 % to test on; phases (genes: epochs) "
        f"{', '.join(f'{n:,}: {epochs}' for n, epochs in size['phases'].items())}; genes ranked from the training cells, and those beyond the last phase left out. "
        "Operations are counted from the lengths of the cells and the sizes of the network; seconds are those of training and "
        "validation on one core."
    )
    for task in tasks:
        table_of(report, task, [one for plan, one in zip(plans, runs, strict=True) if plan.task == task])
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
