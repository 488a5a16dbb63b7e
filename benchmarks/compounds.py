"""Compounds at doses: a made dose-response that is known, and interferon beta in cell types that were left out.

Made screens: 16 compounds with vectors of six numbers, Hill curves whose height is linear in the vector and whose half-maximal dose
is the compound's own, 60 genes, Poisson counts, 20 cells each. One in five compounds is held out, or one of four doses of all of them
(``sg.tl.finetune``, with the network). Then doses between the measured ones are predicted and compared with the mean of 500 further
cells. Kang et al. 2018: one of five cell types after the other is held out, and its response to interferon beta is predicted from
those of the others; of the file with more genes and no cell types, types come from a logistic regression on the other file's
cells. Noise of Kang is that of the cells: the standard deviation over bootstrap samples of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from benchmarks.harness import begin, parser, results_folder, say

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from benchmarks.harness import Report
    from numpy.typing import NDArray

    from scgalore.perturb import Profiles

    Values = NDArray[np.float64]

KANG, MORE_GENES = "kang18_pbmc_ifnb_muscat.h5ad", "kang18_pbmc_ifnb_9015genes.h5ad"
DOSES = (0.01, 0.1, 1.0, 10.0)
BETWEEN = (0.03, 0.3, 3.0)
RULES = ("dose mean", "dose interpolation", "vector ridge")
HELD_DOSE = 1.0
KEYS = {"pert_key": "drug", "pert_kind": "compound", "dose_key": "dose"}
METRICS = ("mse", "pearson_delta", "pds_cosine")
SEEDS, N_BOOTSTRAP = 5, 20
OF_TYPES = {"pert_key": "group_id", "pert_kind": "compound", "context_key": "cluster_id"}


@dataclass(frozen=True)
class Made:
    """Compounds with known effects.

    Attributes
    ----------
    base
        Mean counts of control, ``(n_genes,)``.
    vectors
        ``(n_compounds, 6)``.
    heights
        Logarithm of the ratio to control at high doses, ``(n_compounds, n_genes)``.
    half
        Doses of half the height, ``(n_compounds,)``.
    """

    base: Values = field(repr=False)
    vectors: Values = field(repr=False)
    heights: Values = field(repr=False)
    half: Values = field(repr=False)

    @classmethod
    def of(cls, seed: int, *, n_compounds: int = 16, n_genes: int = 60, k: int = 6) -> Made:
        """Draw them."""
        rng = np.random.default_rng(seed)
        loadings = rng.normal(0, 1.1 / np.sqrt(k), (k, n_genes)) * (rng.random((k, n_genes)) < 0.3)
        vectors = rng.normal(size=(n_compounds, k))
        half = 10 ** rng.uniform(-1, 0.5, n_compounds)
        return cls(rng.gamma(1.0, 2.0, n_genes), vectors, vectors @ loadings, half)

    def cells(self, compound: int | None, dose: float, n: int, rng: np.random.Generator) -> Values:
        """Log-normalised cells, ``(n, n_genes)``; ``None`` is control."""
        effect = 0.0 if compound is None else self.heights[compound] * dose / (dose + self.half[compound])
        counts = rng.poisson(self.base * np.exp(effect) * np.ones((n, 1)))
        return np.log1p(counts * (100 / np.maximum(counts.sum(axis=1, keepdims=True), 1)))

    def screen(self, genes: Sequence[str], seed: int, *, n_cells: int = 20, n_controls: int = 100) -> AnnData:
        """An AnnData of all compounds at all doses."""
        from anndata import AnnData

        rng = np.random.default_rng([seed, 1])
        rows = [(None, 0.0, n_controls), *((i, dose, n_cells) for i in range(len(self.half)) for dose in DOSES)]
        x = np.concatenate([self.cells(compound, dose, n, rng) for compound, dose, n in rows])
        labels = [["control" if compound is None else name_of(compound)] * n for compound, _, n in rows]
        obs = pd.DataFrame({"drug": sum(labels, []), "dose": sum(([dose] * n for _, dose, n in rows), [])})
        obs.index = [f"cell{i}" for i in range(len(obs))]
        adata = AnnData(x.astype(np.float32), obs=obs, var=pd.DataFrame(index=list(genes)))
        names = [name_of(i) for i in range(len(self.half))]
        columns = [f"v{i}" for i in range(self.vectors.shape[1])]
        adata.uns["vectors"] = pd.DataFrame(self.vectors, index=names, columns=columns)
        return adata


def name_of(compound: int) -> str:
    """Name of a made compound."""
    return f"drug{compound:02d}"


def split(adata: AnnData, kind: str, seed: int) -> None:
    """Hold out compounds, or one dose and a few perturbations to choose the epoch by."""
    import scgalore as sg

    if kind == "compound":
        sg.pp.split_perturbations(adata, "compound", **KEYS, test_size=0.2, rng=seed)
        return
    names = [f"{drug}@{dose:g}" for drug in adata.uns["vectors"].index for dose in DOSES]
    test = [name for name in names if name.endswith(f"@{HELD_DOSE:g}")]
    rest = sorted(set(names) - set(test))
    validation = np.random.default_rng(seed).choice(rest, len(rest) // 8, replace=False).tolist()
    sg.pp.split_perturbations(adata, "custom", **KEYS, parts={"test": test, "validation": validation})


def made(report: Report, n_seeds: int, options: dict[str, Any]) -> None:
    """Splits of made screens, and doses between those that were measured."""
    import scgalore as sg
    from scgalore.model import SCGPT

    found: list[pd.DataFrame] = []
    curves: list[dict[str, Any]] = []
    used = []
    vocab = [token for token in SCGPT.load("scgpt-mini").vocab.tokens if token.isalpha() and token.isupper()]
    for seed in range(n_seeds):
        truth = Made.of(seed)
        for kind in ("compound", "dose"):
            adata = truth.screen(vocab[: len(truth.base)], seed)
            split(adata, kind, seed)
            model = sg.tl.finetune(
                adata, "scgpt-mini", task="perturbation", **KEYS, vectors_key="vectors", rng=seed, **options
            )
            used.append(model.memory.stats["best_epoch"] >= 0)
            sg.tl.predict_perturbation(adata, model=model)
            sg.tl.evaluate_perturbation(adata, de=False, n_bootstrap=1)
            summary = sg.get.perturbation_scores(adata, summary=True)
            found.append(summary[summary["group"] == "all"].assign(kind=kind, seed=seed))
            test = {name.rpartition("@")[0] for name in adata.uns["split"]["test"]} if kind == "compound" else set()
            curves += [{**row, "kind": kind, "seed": seed} for row in between(adata, model, truth, test, seed)]
            say(f"made screen {seed}, {kind}: {used[-1]}")
    table = pd.concat(found)
    table = table[table["metric"].isin(METRICS)]
    spread = table.groupby(["kind", "method", "metric"], sort=False)["mean"].agg(["mean", "std"])
    for kind, what in (("compound", "Compounds held out"), ("dose", f"Dose {HELD_DOSE:g} of all compounds held out")):
        part = spread.loc[kind]
        rows = [
            (method, *(f"{part.loc[(method, m), 'mean']:.4f} ± {part.loc[(method, m), 'std']:.4f}" for m in METRICS))
            for method in part.index.get_level_values(0).unique()
        ]
        report.table(f"{what}, mean ± sd of {n_seeds} made screens.", ("method", *METRICS), rows)
    of_curves = (
        pd.DataFrame(curves).groupby(["kind", "compound", "method", "seed"], sort=False)[["error", "total"]].sum()
    )
    shares = (1 - of_curves["error"] / of_curves["total"]).groupby(level=[0, 1, 2], sort=False).agg(["mean", "std"])
    report.table(
        f"Doses {', '.join(f'{dose:g}' for dose in BETWEEN)}, which were never measured: predicted share of the sum of squares of "
        "the true effects.",
        ("split", "compounds", "method", "share, mean ± sd"),
        [(*names, f"{row['mean']:.3f} ± {row['std']:.3f}") for names, row in shares.iterrows()],
    )
    report.note(f"The network's correction was used in {sum(used)} of {len(used)} fits.")
    best = {kind: spread.loc[kind].xs("mse", level="metric")["mean"] for kind in ("compound", "dose")}
    told = []
    holds = True
    for kind, errors in best.items():
        rules = errors.drop(["model", "prior", "ceiling"])
        told.append(f"{kind} {errors['model']:.4f} (best baseline {rules.min():.4f}, {rules.idxmin()})")
        holds &= bool(errors["model"] <= rules.min() * 1.02)
    report.claim(
        "squared error of held-out compounds and doses next to the best baseline",
        "not above it by 2 %",
        "; ".join(told),
        holds=holds,
    )
    of_doses = shares["mean"].xs("model", level="method")
    rest = shares["mean"].drop("model", level="method").groupby(level=[0, 1]).max()
    told = "; ".join(f"{' split, '.join(names)} {of_doses[names]:.3f} ({rest[names]:.3f})" for names in of_doses.index)
    report.claim(
        "share of effects at doses never measured next to the best baseline",
        "not below it",
        told,
        holds=bool((of_doses >= rest.loc[of_doses.index]).all()),
    )


def between(adata: AnnData, model: Any, truth: Made, test: set[str], seed: int) -> list[dict[str, Any]]:
    """How much of the true effects between measured doses is predicted, for each compound."""
    import scgalore as sg

    rng = np.random.default_rng([seed, 2])
    control = truth.cells(None, 0.0, 2000, rng).mean(axis=0)
    names = [f"{drug}@{dose:g}" for drug in adata.uns["vectors"].index for dose in BETWEEN]
    sg.tl.predict_perturbation(adata, names, model=model, key_added="between")
    effects = sg.get.perturbation_effects(adata, key="between")
    screen = sg.perturb.Screen.from_adata(adata, **KEYS, vectors_key="vectors", split_key="split")
    train = screen.profiles("train", "validation")
    rules = {name: sg.perturb.fit_rule(name, train, embeddings=screen.vectors) for name in RULES}
    rows = []
    for i, drug in enumerate(adata.uns["vectors"].index):
        true = np.array([truth.cells(i, dose, 500, rng).mean(axis=0) - control for dose in BETWEEN])
        asked = [f"{drug}@{dose:g}" for dose in BETWEEN]
        said = {"model": effects.loc[asked].to_numpy()}
        said |= {name: np.array([rule.predict((agent,)) for agent in asked]) for name, rule in rules.items()}
        of = {"compound": "held out" if drug in test else "trained on", "total": float((true**2).sum())}
        rows += [{**of, "method": name, "error": float(((one - true) ** 2).sum())} for name, one in said.items()]
    return rows


# Interferon -----------------------------------------------------------------------------------------------------------


def typed(folder: Path) -> dict[str, AnnData]:
    """Both files with cell types, as far as they are here."""
    import scanpy as sc
    from sklearn.linear_model import LogisticRegression

    cells = {"1,267 genes": sc.read_h5ad(folder / KANG)}
    if (folder / MORE_GENES).exists():
        labelled, more = cells["1,267 genes"], sc.read_h5ad(folder / MORE_GENES)
        shared = [gene for gene in labelled.var_names if gene in set(more.var_names)]

        def scaled(adata: AnnData) -> Values:
            x = adata[:, shared].X.toarray().astype(np.float64)
            x = np.log1p(x * (1000 / np.maximum(x.sum(axis=1, keepdims=True), 1)))
            return np.asarray((x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6))

        regression = LogisticRegression(C=0.01, max_iter=500).fit(scaled(labelled), labelled.obs["cluster_id"])
        more.obs["cluster_id"] = regression.predict(scaled(more))
        more.obs["group_id"] = more.obs["condition"].astype(str)
        cells["9,015 genes"] = more
    return cells


def nearest(train: Profiles, test: Profiles) -> Values:
    """Effect in the cell type whose control expression is nearest."""
    return np.array(
        [train.effects[np.argmin(((train.controls - control) ** 2).sum(axis=1))] for control in test.controls]
    )


def leave_types_out(profiles: Profiles) -> pd.DataFrame:
    """Squared error and Pearson correlation of each rule for each type that is left out."""
    from scgalore.perturb import fit_rule

    rows = []
    for held in range(len(profiles.context_names)):
        train = profiles.take(np.flatnonzero(profiles.contexts != held))
        test = profiles.take(np.flatnonzero(profiles.contexts == held))
        predicted = {name: fit_rule(name, train).predict_rows(test) for name in ("training mean", "dose response")}
        predicted = {
            "control mean": np.zeros_like(test.effects),
            **predicted,
            "nearest cell type": nearest(train, test),
        }
        for method, effects in predicted.items():
            # No effect correlates with nothing.
            pearson = float(np.corrcoef(effects[0], test.effects[0])[0, 1]) if effects.any() else 0.0
            error = float(((effects - test.effects) ** 2).mean())
            rows.append({"type": profiles.context_names[held], "method": method, "mse": error, "pearson": pearson})
    return pd.DataFrame(rows)


def interferon(report: Report, folder: Path | None, n_bootstrap: int, options: dict[str, Any]) -> None:
    """Leave one cell type out."""
    import scgalore as sg

    if folder is None or not (folder / KANG).exists():
        report.claim(
            "interferon beta in cell types that were left out",
            "",
            f"not measured: {KANG} is not here, name its folder with --data",
            holds=None,
        )
        return
    differences = []
    for name, adata in typed(folder).items():
        screen = sg.perturb.Screen.from_adata(adata, **OF_TYPES)
        found = [leave_types_out(screen.profiles())]
        codes = adata.obs["cluster_id"].astype(str) + adata.obs["group_id"].astype(str)
        for draw in range(n_bootstrap):
            rng = np.random.default_rng(draw)
            rows = np.concatenate(
                [rng.choice(np.flatnonzero(codes == code), (codes == code).sum()) for code in sorted(set(codes))]
            )
            sample = adata[rows].copy()
            sample.obs_names_make_unique()
            found.append(leave_types_out(sg.perturb.Screen.from_adata(sample, **OF_TYPES).profiles()))
        noise = pd.concat(found[1:]).groupby(["type", "method"])[["mse", "pearson"]].std()
        rows = []
        for row in found[0].itertuples():
            sd = noise.loc[(row.type, row.method)]
            rows.append(
                (row.type, row.method, f"{row.mse:.4f} ± {sd['mse']:.4f}", f"{row.pearson:.3f} ± {sd['pearson']:.3f}")
            )
        over = (
            pd.concat(found[1:], keys=range(n_bootstrap))
            .groupby([pd.Grouper(level=0), "method"])[["mse", "pearson"]]
            .mean()
        )
        means = found[0].groupby("method", sort=False)[["mse", "pearson"]].mean()
        for method, mean in means.iterrows():
            sd = over.xs(method, level="method").std()
            rows.append(
                (
                    "all five",
                    method,
                    f"{mean['mse']:.4f} ± {sd['mse']:.4f}",
                    f"{mean['pearson']:.3f} ± {sd['pearson']:.3f}",
                )
            )
        title = f"Interferon beta, {name}, {adata.n_obs:,} cells: a cell type left out. ± is the sd over {n_bootstrap} bootstrap samples of the cells."
        report.table(title, ("left out", "method", "squared error", "Pearson delta"), rows)
        rules = means.drop("dose response")["mse"]
        differences.append((name, float(means.loc["dose response", "mse"]), float(rules.min()), str(rules.idxmin())))
    told = "; ".join(f"{name} {ours:.4f} (best baseline {best:.4f}, {rule})" for name, ours, best, rule in differences)
    report.claim(
        "squared error of interferon's effect in a cell type left out, mean of five types, next to the best baseline",
        "lower",
        told,
        holds=all(ours < best for _, ours, best, _ in differences),
    )
    with_network(report, typed(folder)["1,267 genes"], options)


def with_network(report: Report, adata: AnnData, options: dict[str, Any]) -> None:
    """The same with the network, two of the four other types choosing the epoch."""
    import scgalore as sg

    rows = []
    names = sorted(set(adata.obs["cluster_id"]))
    for number, name in enumerate(names[:1] if options["max_epochs"] == 1 else names):
        cells = adata.copy()
        others = [other for other in names if other != name]
        validation = np.random.default_rng(number).choice(others, 2, replace=False).tolist()
        how = {"test_contexts": [name], "validation_contexts": validation}
        sg.pp.split_perturbations(cells, "context", **OF_TYPES, **how)
        run = {"genes_per_step": 300, "rng": number, **options}
        for prior in ("chosen", "none"):
            model = sg.tl.finetune(
                cells, "scgpt-mini", task="perturbation", **OF_TYPES, split_key="split", prior=prior, **run
            )
            sg.tl.predict_perturbation(cells, model=model, split_key="split")
            sg.tl.evaluate_perturbation(cells, de=False, metrics=["mse", "pearson_delta"], n_bootstrap=1)
            summary = sg.get.perturbation_scores(cells, summary=True)
            means = summary[summary["group"] == "all"].pivot(index="method", columns="metric", values="mean")
            of_model = means.loc["model"]
            used = "" if prior == "none" else "used" if model.memory.stats["best_epoch"] >= 0 else "not used"
            rows.append((name, prior, f"{of_model['mse']:.4f}", f"{of_model['pearson_delta']:.3f}", used))
            say(f"{name}, prior {prior}: {rows[-1]}")
    title = f"The same with the network (scgpt-mini, {options['max_epochs']} epochs), with its prior and without one."
    report.table(title, ("left out", "prior", "squared error", "Pearson delta", "correction"), rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    report = begin("compounds", "Compounds at doses, next to baselines", arguments)
    quick = arguments.quick
    made(report, 1 if quick else SEEDS, {"max_epochs": 1 if quick else 10, "accelerator": "cpu"})
    interferon(
        report, arguments.data, 2 if quick else N_BOOTSTRAP, {"max_epochs": 1 if quick else 2, "accelerator": "cpu"}
    )
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
