"""Which rule a perturbation model should start from, chosen on data that no table of :mod:`benchmarks.perturbation` uses.

Log fold changes of 234 perturbations in 2,000 genes (``norman19_pseudobulk_logfc.h5ad``, pseudobulk of Norman et al. 2019) and GEARS'
simulation splits; rules are fitted to everything but the test perturbations. ``"chosen"`` is the default prior.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from benchmarks.harness import begin, parser, results_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scgalore.perturb.labels.conditions import Conditions
    from scgalore.perturb.labels.profiles import Profiles

FILE = "norman19_pseudobulk_logfc.h5ad"
SEEDS = (1, 2, 3, 4)
SIGNS = {"pearson_delta": -1, "mse": 1, "pearson_centroid": -1}
GROUPS = ("combo_seen0", "combo_seen1", "combo_seen2", "unseen_single")


def screen(path: Path) -> tuple[Conditions, Profiles]:
    """Labels and effects of the file; a log fold change is an effect on a control of zero."""
    import scanpy as sc

    from scgalore.perturb.labels.conditions import Conditions
    from scgalore.perturb.labels.profiles import Profiles

    adata = sc.read_h5ad(path)
    conditions = Conditions.from_labels(["control", *adata.obs["perturbation"].astype(str)])
    effects = np.asarray(adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X, dtype=np.float64)
    n, nothing = len(effects), np.zeros((1, effects.shape[1]))
    return conditions, Profiles(
        genes=tuple(adata.var_names),
        perturbations=conditions.names[1:],
        perturbed=conditions.genes[1:],
        context_names=("",),
        contexts=np.zeros(n, dtype=np.int64),
        means=effects,
        variances=np.zeros_like(effects),
        n_cells=np.ones(n, dtype=np.int64),
        control_means=nothing,
        control_variances=nothing,
        n_controls=np.ones(1, dtype=np.int64),
    )


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation; 0 where one side is constant."""
    x, y = x - x.mean(), y - y.mean()
    length = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / length if length > 1e-9 else 0.0


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    report = begin("perturbation_priors", "Rules that a perturbation model may start from", arguments)
    path = None if arguments.data is None else arguments.data / FILE
    if path is None or not path.exists():
        report.claim(
            "the best rule", "chosen", f"not measured: {FILE} is not here, name its folder with --data", holds=None
        )
        report.finish(arguments.out)
        return
    from scgalore.perturb.baselines.choice import choose_prior
    from scgalore.perturb.baselines.effects import RECIPES, prior_of
    from scgalore.perturb.splits.split import split_conditions

    conditions, profiles = screen(path)
    place = {name: i for i, name in enumerate(profiles.perturbations)}
    own, chosen = "mixed + own gene", "chosen"
    found: dict[str, list[tuple[str, float, float, float]]] = {name: [] for name in (*RECIPES, own, chosen)}
    for seed in SEEDS[: 1 if arguments.quick else None]:
        split = split_conditions(conditions, "simulation", seed=seed)
        group = {name: key for key, names in split.groups.items() for name in names}
        train = profiles.take([place[name] for name in (*split.train, *split.validation)])
        centroid = train.effects.mean(axis=0)
        recipes = {**RECIPES, own: prior_of("mixed"), chosen: choose_prior(train).recipe}
        for rule, recipe in recipes.items():
            fitted = recipe.fit(train)
            for name in split.test:
                predicted, true = fitted.predict(profiles.perturbed[place[name]]), profiles.effects[place[name]]
                squared = float(((predicted - true) ** 2).mean())
                particular = correlation(predicted - centroid, true - centroid)
                found[rule].append((group[name], correlation(predicted, true), squared, particular))
    rows = []
    for rule, of_rule in found.items():
        table = np.array([score[1:] for score in of_rule])
        groups = np.array([score[0] for score in of_rule])
        of_groups = [f"{table[groups == one, 0].mean():.3f}" for one in GROUPS]
        rows.append((rule, *of_groups, *(f"{value:.3f}" for value in table.mean(axis=0))))
        report.measured[rule] = dict(zip(("pearson_delta", "mse", "pearson_centroid"), table.mean(axis=0), strict=True))
    n = len(next(iter(found.values())))
    columns = ("rule", *(f"Pearson delta, {one}" for one in GROUPS), "all", "mse", "centroid Pearson")
    report.table(f"Mean over {n} test perturbations of {len(SEEDS)} splits.", columns, rows)
    best = {
        metric: min(report.measured, key=lambda rule: sign * report.measured[rule][metric])
        for metric, sign in SIGNS.items()
    }
    holds = set(best.values()) <= {own, chosen}
    report.claim(
        "the best rule by each score",
        f"{chosen} or {own}",
        ", ".join(f"{m}: {rule}" for m, rule in best.items()),
        holds=holds,
    )
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
