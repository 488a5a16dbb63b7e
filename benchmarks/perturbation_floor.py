"""Is a perturbation model with its defaults ever below the best simple rule?

K562 cells (four splits) and glioma cells of three lines (each of nine perturbations held out once, in all lines) of PerturBench's
devel data, three training seeds each; and, without cells and hence without a network, log fold changes of 234 perturbations of Norman
et al.: three simulation splits, and all doubles from all singles. Each fit is kept in ``benchmarks/.cache/perturbation_floor``, so a run
that was interrupted goes on; delete the folder to measure anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from benchmarks import perturbation
from benchmarks.harness import CACHE, begin, parser, results_folder, say
from benchmarks.perturbation import CEILING, MODEL, PRIOR

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from anndata import AnnData
    from benchmarks.harness import Report

PSEUDOBULK = "norman19_pseudobulk_logfc.h5ad"
FOLDER = CACHE / "perturbation_floor"
SIGNS = {"pearson_delta": 1, "pearson_centroid": 1, "mse": -1, "discrimination_score_l1": 1}
"""What is claimed, and which way is better."""
MORE = {"pds_cosine": 1, "pearson_delta_without_target": 1, "mse_without_target": -1}
"""Metrics that are reported in addition."""
SEEDS = 3
LINES = ("a172", "t98g", "u87mg")
GROUPS = ("unseen_single", "combo_seen0", "combo_seen1", "combo_seen2")


def glioma(folder: Path | None, number: int) -> AnnData:
    """Cells of three lines with a third of the perturbations held out; two of the others choose the epoch."""
    import scanpy as sc

    import scgalore as sg

    if folder is None:
        adata = sg.datasets.perturbench_devel()
    else:
        adata = sg.datasets.to_canonical(sc.read_h5ad(folder / perturbation.FILE), source="perturbench")
    adata = adata[adata.obs["cell_type"].astype(str).str.lower().isin(LINES)].copy()
    sc.pp.filter_genes(adata, min_cells=1)
    names = np.random.default_rng(0).permutation(sorted(set(adata.obs["perturbation"].astype(str)) - {"control"}))
    test, rest = names[number::3].tolist(), np.setdiff1d(names, names[number::3])
    sg.pp.split_perturbations(
        adata, "custom", context_key="cell_type", parts={"test": test, "validation": rest[:2].tolist()}
    )
    return adata


def of_cells(folder: Path | None, data: str, seed: int, *, max_epochs: int) -> pd.DataFrame:
    """Scores of a model of cells, trained with the defaults of ``sg.tl.finetune``."""
    import torch

    import scgalore as sg

    torch.set_num_threads(1)
    sg.settings.progress = False
    kind, _, name = data.partition(": ")
    read = {"context_key": "cell_type"} if kind == "glioma" else {}
    if kind == "glioma":
        adata = glioma(folder, int(name))
    else:
        adata = perturbation.cells(folder)
        perturbation.split(adata, name)
    model = sg.tl.finetune(
        adata, "scgpt-mini", task="perturbation", split_key="split", max_epochs=max_epochs, rng=seed, **read
    )
    sg.tl.predict_perturbation(adata, model=model, split_key="split", rng=seed)
    sg.tl.evaluate_perturbation(adata, metrics=[*SIGNS, *MORE], de=False, n_bootstrap=1)
    stats = model.memory.stats
    scores = sg.get.perturbation_scores(adata).drop(columns="group")
    return scores.assign(epoch=stats["best_epoch"], seconds=stats["wall_clock_seconds"], group="")


def of_profiles(folder: Path | None, data: str) -> pd.DataFrame:
    """Scores of a prior of log fold changes, and of the baselines."""
    import scanpy as sc

    import scgalore as sg
    from scgalore.perturb.baselines.effects import BASELINES, fit_rule
    from scgalore.perturb.scores.metrics import METRICS, Means
    from scgalore.perturb.splits.split import split_conditions

    assert folder is not None
    read = {"pert_key": "perturbation", "data_type": "lfc"}
    adata = sc.read_h5ad(folder / PSEUDOBULK)
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    if data == "doubles":
        test = np.char.find(labels.astype(str), "+") >= 0
        group = dict.fromkeys(labels[test], "combo_seen2")
    else:
        conditions = sg.perturb.Conditions.from_labels(["control", *labels])
        split = split_conditions(conditions, "simulation", seed=int(data))
        canonical = np.array([conditions.names[code] for code in conditions.codes[1:]])
        test = np.isin(canonical, split.test)
        group = {name: key for key, names in split.groups.items() for name in names}
    train = sg.perturb.fit_effects(adata[~test].copy(), **read)
    real = sg.perturb.fit_effects(adata[test].copy(), **read, prior="additive").profiles
    predicted = {name: fit_rule(name, train.profiles).predict_rows(real) for name in BASELINES}
    predicted[MODEL] = train.effects.predict_rows(real)
    tables = []
    for method, effects in predicted.items():
        means = Means(
            genes=real.genes,
            perturbations=real.perturbations,
            perturbed=real.perturbed,
            contexts=real.contexts,
            predicted=effects,
            real=real.effects,
            predicted_control=real.controls,
            real_control=real.controls,
            centroid=np.broadcast_to(train.profiles.effects.mean(axis=0), effects.shape),
        )
        for metric in (*SIGNS, *MORE):
            compute = METRICS[metric].compute
            assert compute is not None
            tables.append(
                pd.DataFrame(
                    {"perturbation": real.perturbations, "method": method, "metric": metric, "value": compute(means)}
                )
            )
    found = pd.concat(tables, ignore_index=True)
    told = {name: group.get(name, group.get("+".join(reversed(name.split("+"))), "")) for name in real.perturbations}
    return found.assign(context="", epoch=-1, seconds=0.0, group=found["perturbation"].map(told))


def kept(name: str, make: Any, *, keep: bool) -> pd.DataFrame:
    """Make a table, or read it if it was made before."""
    path = FOLDER / f"{name.replace(': ', '-').replace(' ', '-')}.csv"
    if keep and path.exists():
        return pd.read_csv(path, keep_default_na=False, na_values=["nan"])
    found: pd.DataFrame = make()
    if keep:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        found.to_csv(unfinished, index=False, na_rep="nan")
        unfinished.rename(path)
    say(f"{name}: {found['seconds'].iloc[0]:.0f} s, best epoch {found['epoch'].iloc[0]}")
    return found


def compared(scores: pd.DataFrame, metric: str) -> dict[str, Any]:
    """The model and the best baseline by one metric: means, and the paired difference with its standard error.

    Scores are first averaged over training seeds, contexts and splits, so that each perturbation counts once.
    """
    undefined = 0.0 if metric.startswith("pearson") else 0.5 if metric == "pds_cosine" else np.nan
    part = scores[scores["metric"] == metric].assign(value=lambda table: table["value"].fillna(undefined))
    table = part.pivot_table(index="perturbation", columns="method", values="value", aggfunc="mean", dropna=False)
    rules = [method for method in table.columns if method not in (MODEL, PRIOR, CEILING)]
    means = table.mean()
    best = (means[rules].idxmin if metric.startswith("mse") else means[rules].idxmax)()
    paired = (table[MODEL] - table[best]).dropna()
    error = float(paired.std(ddof=1) / np.sqrt(len(paired))) if len(paired) > 1 else float("nan")
    return {
        "model": float(means[MODEL]),
        "prior": float(means.get(PRIOR, means[MODEL])),
        "best": str(best),
        "baseline": float(means[best]),
        "control_mean": float(means["control mean"]),
        "difference": float(paired.mean()),
        "standard_error": error,
        "n": len(paired),
    }


def table_of(report: Report, name: str, scores: pd.DataFrame) -> None:
    """One row a metric, and a claim for each that is claimed."""
    rows = []
    for metric, sign in (SIGNS | MORE).items():
        one = compared(scores, metric)
        report.measured[f"{name}, {metric}"] = one
        form = "{:.5f}" if metric.startswith("mse") and one["baseline"] < 0.1 else "{:.3f}"
        signed = form.replace(":", ":+")
        difference = f"{signed.format(one['difference'])} ± {form.format(one['standard_error'])}"
        columns = ("model", "prior", "baseline", "control_mean")
        values = [form.format(one[column]) for column in columns]
        rows.append((metric, *values[:2], f"{values[2]} ({one['best']})", values[3], difference, one["n"]))
        if metric in SIGNS:
            holds = bool(sign * one["difference"] >= -2 * one["standard_error"])
            report.claim(
                f"{name}, {metric}", "not below the best baseline by 2 standard errors", difference, holds=holds
            )
    epochs = ", ".join(str(epoch) for epoch in scores.groupby(["data", "seed"], sort=False)["epoch"].first())
    seconds = scores.groupby(["data", "seed"])["seconds"].first()
    took = (
        f" Best epochs {epochs} (-1: the prior); {seconds.min():.0f} to {seconds.max():.0f} s a fit."
        if seconds.any()
        else ""
    )
    columns = (
        "metric",
        "model",
        "prior alone",
        "best baseline",
        "control mean",
        "model - best baseline",
        "perturbations",
    )
    report.table(f"{name}.{took}", columns, rows)


def runs(arguments: argparse.Namespace) -> Iterable[tuple[str, pd.DataFrame]]:
    """All scores, by the name of the table that they belong to."""
    quick = arguments.quick
    for kind, names in (("K562", perturbation.SPLITS), ("glioma", ("0", "1", "2"))):
        found = []
        for name in names[-1:] if quick else names:
            for seed in range(1 if quick else arguments.seeds):
                data = f"{kind}: {name}"
                made = kept(
                    f"{data} {seed}",
                    lambda data=data, seed=seed: of_cells(arguments.data, data, seed, max_epochs=1 if quick else 10),
                    keep=not quick,
                )
                found.append(made.assign(data=data, seed=seed))
        if kind == "K562":
            for one in found:
                yield str(one["data"].iloc[0]), one
        else:
            yield "glioma, three lines", pd.concat(found)
    if arguments.data is None or not (arguments.data / PSEUDOBULK).exists():
        return
    splits = [
        kept(f"pseudobulk {seed}", lambda seed=seed: of_profiles(arguments.data, str(seed)), keep=not quick).assign(
            data=str(seed), seed=seed
        )
        for seed in ((1,) if quick else (1, 2, 3))
    ]
    together = pd.concat(splits)
    yield "pseudobulk, three splits", together
    for group in GROUPS:
        yield f"pseudobulk, {group}", together[together["group"] == group]
    if not quick:
        doubles = kept("pseudobulk doubles", lambda: of_profiles(arguments.data, "doubles"), keep=True)
        yield "pseudobulk, doubles from singles", doubles.assign(data="doubles", seed=0)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=SEEDS, help="training seeds")
    arguments = options.parse_args(argv)
    report = begin("perturbation_floor", "Perturbation models against the best baseline", arguments)
    if not perturbation.is_here(arguments.data):
        perturbation.not_measured(report, arguments)
        return
    tables: dict[str, list[pd.DataFrame]] = {}
    for name, scores in runs(arguments):
        tables.setdefault(name, []).append(scores)
    for name, parts in tables.items():
        table_of(report, name, pd.concat(parts))
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
