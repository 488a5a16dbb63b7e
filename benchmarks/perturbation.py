"""Perturbation models on PerturBench's devel data (K562 cells of Norman et al. 2019), compared with all baselines and the ceiling.

The table asks what a model with the defaults of ``sg.tl.finetune`` is worth: three GEARS simulation splits and the five doubles
whose singles were measured, several training seeds each.
Every fit takes a minute or two on one core; ``--processes 2`` runs two at a time.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from benchmarks.harness import begin, parser, results_folder

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from benchmarks.harness import Report

FILE = "perturbench_devel.h5ad"
SPLITS = ("seed 1", "seed 2", "seed 42", "doubles")
METRICS = {
    "pearson_delta": "Pearson delta",
    "pearson_centroid": "centroid Pearson",
    "mse": "mse",
    "wmse": "wmse",
    "discrimination_score_l1": "discr. l1",
    "pds_cosine": "PDS cosine",
    "pr_auc": "pr_auc",
    "roc_auc": "roc_auc",
    "de_nsig_counts_pred": "DE genes predicted",
    "de_nsig_counts_real": "real",
}
METRICS_OF_MEANS = [name for name in METRICS if name not in ("pr_auc", "roc_auc") and not name.startswith("de_")]
MODEL, PRIOR, CEILING = "model", "prior", "ceiling"
ROWS = {MODEL: "**model**", PRIOR: "prior alone", CEILING: "ceiling of the data"}


@dataclass(frozen=True)
class Variant:
    """One way to make a model.

    Attributes
    ----------
    prior
        Rule that the network corrects.
    monitor
        Criterion for selecting the epoch, instead of the effects on validation perturbations compared with the prior's.
    flag_unmeasured
        Whether perturbed genes that are not measured become tokens.
    dropout
        While training.
    held_out
        Whether the network also sees what the prior says of perturbations it was not fitted to.
    max_epochs
        Most epochs.
    epochs_fixed
        Whether no score stops training early.
    """

    prior: str = "chosen"
    monitor: str | None = None
    flag_unmeasured: bool = True
    dropout: float = 0.0
    held_out: bool = True
    max_epochs: int = 10
    epochs_fixed: bool = False


DEFAULT = Variant()
Task: TypeAlias = "tuple[Path | None, str, int, Variant, bool]"
"""Folder of the data, split, seed, variant, and whether to test for differential expression."""


def is_here(folder: Path | None) -> bool:
    """Whether the data are in a folder, or can be fetched."""
    import scgalore as sg

    if folder is not None:
        return (folder / FILE).exists()
    try:
        sg.datasets.fetch_dataset("perturbench_devel")
    except sg.errors.DownloadError:
        return False
    return True


def not_measured(report: Report, arguments: argparse.Namespace) -> None:
    """Say so."""
    report.claim(
        "perturbation models", "", f"not measured: {FILE} is not here, name its folder with --data", holds=None
    )
    report.finish(arguments.out)


def cells(folder: Path | None) -> AnnData:
    """K562 cells of the devel data, with the genes that have a count there."""
    import scanpy as sc

    import scgalore as sg

    if folder is None:
        adata = sg.datasets.perturbench_devel()
    else:
        adata = sg.datasets.to_canonical(sc.read_h5ad(folder / FILE), source="perturbench")
    adata = adata[adata.obs["cell_type"].astype(str).str.lower() == "k562"].copy()
    sc.pp.filter_genes(adata, min_cells=1)
    return adata


def split(adata: AnnData, name: str) -> None:
    """Write the split of this name; the doubles leave three training perturbations to choose the epoch by."""
    import scgalore as sg

    if name != "doubles":
        sg.pp.split_perturbations(adata, "simulation", rng=int(name.removeprefix("seed ")))
        return
    names = [str(label) for label in pd.unique(adata.obs["perturbation"]) if label != "control"]
    test = [label for label in names if "+" in label and set(label.split("+")) <= set(names)]
    rest = sorted(set(names) - set(test))
    validation = np.random.default_rng(0).choice(rest, 3, replace=False).tolist()
    sg.pp.split_perturbations(adata, "custom", parts={"test": test, "validation": validation})


def run(job: Task) -> dict[str, Any]:
    """Fit one model, predict the test perturbations and score them."""
    import torch

    import scgalore as sg
    from scgalore.perturb.labels.screen import Screen
    from scgalore.tasks import TASKS
    from scgalore.tasks.perturbation.fitting import prepare_screen
    from scgalore.train.config import TrainConfig

    folder, name, seed, variant, de = job
    torch.set_num_threads(1)
    sg.settings.progress = False
    adata = cells(folder)
    split(adata, name)
    screen = Screen.from_adata(adata, pert_key="perturbation", split_key="split")
    model = sg.model.SCGPT.from_pretrained("scgpt-mini")
    options = {**TASKS["perturbation"].training, "max_epochs": variant.max_epochs, "dropout": variant.dropout}
    if variant.epochs_fixed:
        options["patience"] = None
    prepared = prepare_screen(
        TASKS["perturbation"],
        model,
        screen,
        TrainConfig(**options, seed=seed, accelerator="cpu"),
        prior=variant.prior,
        monitor=variant.monitor,
        held_out=variant.held_out,
        flag_unmeasured=variant.flag_unmeasured,
    )
    model.fit(prepared)
    sg.tl.predict_perturbation(adata, model=model, split_key="split", rng=seed)
    sg.tl.evaluate_perturbation(adata, metrics=list(METRICS) if de else METRICS_OF_MEANS, n_bootstrap=200)
    found = adata.uns["evaluate_perturbation"]
    stats = model.memory.stats
    return {
        "split": name,
        "seed": seed,
        "scores": found["scores"],
        "summary": found["summary"],
        "best_epoch": stats["best_epoch"],
        "seconds": stats["wall_clock_seconds"],
        "synthesis": _synthesis(adata, screen) if de and seed == 0 else None,
    }


def _synthesis(adata: AnnData, screen: Any) -> dict[str, dict[str, float]]:
    """What other ways to make cells of the same predicted means say of differential expression."""
    from scgalore.perturb.predictions.synthesis import synthesise
    from scgalore.perturb.scores.differential import de_scores, differential_expression

    means = adata.uns["predict_perturbation"]["means"]
    control = screen.expression.rows(np.flatnonzero(screen.conditions.codes == 0))
    dense = control.toarray()

    def shifted(mean: np.ndarray, n: int) -> sp.csr_matrix:
        moved = dense[np.random.default_rng(0).integers(len(dense), size=n)] + (mean - dense.mean(axis=0))
        return sp.csr_matrix(np.maximum(moved, 0).astype(np.float32))

    ways = {
        "zeros and spread as in real cells (ours)": lambda mean, n: synthesise(mean, control, n_cells=n, seed=0),
        "control cells shifted": shifted,
        "mean tiled": lambda mean, n: sp.csr_matrix(np.tile(mean.astype(np.float32), (n, 1))),
    }
    rows = {name: screen.conditions.rows(name) for name in means.columns}
    truth = [screen.expression.rows(of_row) for of_row in rows.values()]
    out = {}
    for way, make in ways.items():
        imagined = [make(means[name].to_numpy(np.float64), len(of_row)) for name, of_row in rows.items()]
        tables = []
        for parts in (truth, imagined):
            labels = ["control"] * control.shape[0] + [
                n for n, part in zip(rows, parts, strict=True) for _ in range(part.shape[0])
            ]
            stacked = sp.vstack([control, *parts], format="csr")
            tables.append(differential_expression(stacked, labels, screen.genes, control="control"))
        scores = de_scores(*tables)
        columns = ["pr_auc", "roc_auc", "de_nsig_counts_pred", "de_nsig_counts_real"]
        out[way] = {column: float(scores[column].mean()) for column in columns}
    return out


def table_of(report: Report, name: str, runs: Sequence[dict[str, Any]]) -> None:
    """Model, baselines and ceiling of one split; the model with the spread over its seeds."""
    summary = pd.concat([one["summary"].assign(seed=one["seed"]) for one in runs])
    summary = summary[(summary["group"] == "all") & summary["metric"].isin(METRICS)]
    rows = []
    for method in dict.fromkeys(summary["method"]):
        line: list[object] = [ROWS.get(method, method)]
        for metric in METRICS:
            values = summary.loc[(summary["method"] == method) & (summary["metric"] == metric), "mean"].to_numpy(float)
            line.append(cell_text(values, metric, spread=method == MODEL))
        rows.append(line)
    n_test = runs[0]["scores"]["perturbation"].nunique()
    epochs = ", ".join(str(one["best_epoch"]) for one in runs)
    report.table(
        f"{name}: {n_test} test perturbations; model: mean and standard deviation over {len(runs)} seeds (best epochs {epochs}; "
        "-1: no epoch did better than the prior alone)",
        ("", *METRICS.values()),
        rows,
    )
    report.measured[name] = {"n_test": int(n_test)}
    for metric in ("pearson_delta", "pearson_centroid", "mse", "discrimination_score_l1", "pr_auc", "roc_auc"):
        report.measured[name][metric] = against_best(runs, metric)


def cell_text(values: np.ndarray, metric: str, *, spread: bool) -> str:
    """Mean of some numbers in the form of a metric and, if asked for, their standard deviation."""
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return ""
    form = "{:.4f}" if metric == "mse" else "{:.1f}" if metric.startswith("de_nsig") else "{:.3f}"
    text = form.format(values.mean())
    return f"{text} ± {form.format(values.std(ddof=1))}" if spread and len(values) > 1 else text


def against_best(runs: Sequence[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The model compared with the best baseline by one metric: means, and the paired difference with its standard error."""
    scores = pd.concat([one["scores"].assign(seed=one["seed"]) for one in runs])
    scores = scores[scores["metric"] == metric]
    if metric.startswith("pearson"):
        scores = scores.assign(value=scores["value"].fillna(0))
    table = scores.pivot_table(index="perturbation", columns="method", values="value", aggfunc="mean", dropna=False)
    rules = [method for method in table.columns if method not in (MODEL, CEILING, PRIOR)]
    means = table.mean()
    lower = metric in ("mse", "wmse")
    best = (means[rules].idxmin if lower else means[rules].idxmax)()
    paired = (table[MODEL] - table[best]).dropna()
    return {
        "model": float(means[MODEL]),
        "best": str(best),
        "baseline": float(means[best]),
        "training_mean": float(means["training mean"]),
        "difference": float(paired.mean()),
        "standard_error": float(paired.std(ddof=1) / np.sqrt(len(paired))) if len(paired) > 1 else float("nan"),
        "n": len(paired),
    }


def claims(report: Report, names: Sequence[str]) -> None:
    """What was asked for, and whether it holds."""
    for name in names:
        found = report.measured[name]
        for metric in ("pearson_delta", "pearson_centroid", "mse", "discrimination_score_l1"):
            one = found[metric]
            sign = -1 if metric == "mse" else 1
            measured = (
                f"{one['model']:.4g}, {one['best']} {one['baseline']:.4g}; difference {one['difference']:+.4f} "
                f"± {one['standard_error']:.4f} (standard error, n = {one['n']})"
            )
            holds = bool(sign * one["difference"] >= -2 * one["standard_error"])
            report.claim(
                f"{name}, {METRICS[metric]}",
                "not below the best baseline by more than 2 standard errors",
                measured,
                holds=holds,
            )
        if "model" in found["roc_auc"]:
            roc, pr = found["roc_auc"], found["pr_auc"]
            report.claim(f"{name}, roc_auc", "above 0.7", f"{roc['model']:.3f}", holds=roc["model"] > 0.7)
            report.claim(
                f"{name}, pr_auc",
                "above the training mean's",
                f"{pr['model']:.3f}, training mean {pr['training_mean']:.3f}",
                holds=pr["model"] > pr["training_mean"],
            )


def fit_all(tasks: Sequence[Task], n_processes: int) -> list[dict[str, Any]]:
    """Run tasks, several at a time, and say what each took."""
    found = []
    with ProcessPoolExecutor(n_processes, mp_context=get_context("spawn")) as pool:
        for (_, name, seed, variant, _), one in zip(tasks, pool.map(run, tasks), strict=True):
            print(
                f"{name}, seed {seed}, {_told(variant)}: {one['seconds']:.0f} s, best epoch {one['best_epoch']}",
                flush=True,
            )
            found.append(one)
    return found


def _told(variant: Variant) -> str:
    changed = {key: value for key, value in vars(variant).items() if value != getattr(DEFAULT, key)}
    return ", ".join(f"{key}={value!r}" for key, value in changed.items()) or "default"


def options_of(doc: str | None, seeds: int, argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line of this script and of the ablation."""
    options = parser(doc)
    options.add_argument("--processes", type=int, default=1, help="models that are fitted at a time")
    options.add_argument("--seeds", type=int, default=seeds, help="training seeds")
    return options.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = options_of(__doc__, 3, argv)
    report = begin("perturbation", "Perturbation models", arguments)
    if not is_here(arguments.data):
        not_measured(report, arguments)
        return
    names = SPLITS[-1:] if arguments.quick else SPLITS
    n_seeds = 1 if arguments.quick else arguments.seeds
    variant = replace(DEFAULT, max_epochs=1) if arguments.quick else DEFAULT
    runs = fit_all(
        [(arguments.data, name, seed, variant, True) for name in names for seed in range(n_seeds)], arguments.processes
    )
    for name in names:
        table_of(report, name, [one for one in runs if one["split"] == name])
    synthesised(report, [one for one in runs if one["synthesis"] is not None])
    claims(report, names)
    report.finish(results_folder(arguments))


def synthesised(report: Report, runs: Sequence[dict[str, Any]]) -> None:
    """Three ways to make cells of the model's means."""
    if not runs:
        return
    rows = []
    for way in runs[0]["synthesis"]:
        for one in runs:
            of_way = one["synthesis"][way]
            rows.append((way, one["split"], *(f"{value:.3f}" for value in of_way.values())))
    columns = ("cells", "split", "pr_auc", "roc_auc", "DE genes predicted", "real")
    report.table("Predicted cells: how the model's means become cells decides the DE metrics", columns, rows)


if __name__ == "__main__":
    main()
