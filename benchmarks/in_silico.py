"""Genes changed in silico against real perturbations: sizes, directions, and time.

K562, activation: 104 genes that were activated by CRISPR in K562 cells (Norman et al. 2019), with the mean effect of each on 2,000 genes. 100 control
cells of the same study, of which 500 genes are known, are changed in silico: the token of the activated gene is set to expression 4 (55 times
the counts), and the predicted change of the 2,000 genes is compared with the measured one. The file of cells (PerturBench) holds
activations in K562 and knock-downs in glioma lines; it holds no knock-out, and one of its 31 targets is measured, so targets are tokens that are
added.

K562, held-out activations: the 18 genes of this file, five folds, with a model that is fine-tuned on the other activations (``task="perturbation"``).

Embryonic stem cells, knock-down: the targets of transcription factors that both bind and respond to a knock-down (Stone/Roy benchmark), in 385 cells;
whether the genes that change most when the factor is deleted are its targets, and whether factors with many targets move cells more.

A wanted state: control cells of Kang et al. 2018 to those stimulated with interferon; whether genes that move cells there are more than those which
differ between the two states.

Time: 1,000 genes in 200 cells (Kang et al. 2018; every fourth of the 4,000 genes that most cells express), knock-out, with its random genes.

Correlations are Spearman's, without the changed gene itself. "other gene" compares each prediction with the effect of another gene: what a prediction gets
for knowing what responds to anything.
"""

from __future__ import annotations

import time
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from benchmarks.harness import begin, parser
from benchmarks.mapping import Anonymous

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from benchmarks.harness import Report
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

CELLS, EFFECTS, KANG = "perturbench_devel.h5ad", "norman19_pseudobulk_logfc.h5ad", "kang18_pbmc_ifnb_9015genes.h5ad"
LEVEL = 4.0
MASKED: dict[str, Any] = {
    "task": "expression",
    "max_epochs": 5,
    "batch_size": 32,
    "lr": 1e-3,
    "max_length": 400,
    "accelerator": "cpu",
}
SCREEN: dict[str, Any] = {"task": "perturbation", "max_epochs": 2, "accelerator": "cpu"}
FOLDS = 5
GIVEN, TUNED, RANDOM = "as it is", "fine-tuned on masked expression", "random weights"


def spearman(x: Floats, y: Floats) -> float:
    """Rank correlation; 0 if one does not vary."""
    a, b = pd.Series(x).rank(), pd.Series(y).rank()
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0


def agreement(predicted: Floats, true: Floats, own: NDArray[np.bool_], *, seed: int = 0) -> dict[str, Any]:
    """Correlation of directions and of sizes, with that of another gene's effect, and its standard error over perturbations."""
    order = np.roll(np.random.default_rng(seed).permutation(len(true)), 1)
    other = np.empty_like(order)
    other[np.roll(order, -1)] = order  # no gene is its own partner
    direct = np.array([spearman(p[~o], t[~o]) for p, t, o in zip(predicted, true, own, strict=True)])
    crossed = np.array([spearman(p[~o], t[~o]) for p, t, o in zip(predicted[other], true, own, strict=True)])
    sizes = [np.sqrt((np.where(own, 0, x) ** 2).sum(axis=1)) for x in (predicted, true)]
    return {
        "direction": float(direct.mean()),
        "direction_se": float(direct.std(ddof=1) / np.sqrt(len(direct))),
        "other": float(crossed.mean()),
        "size": spearman(*sizes),
        "n": len(true),
    }


def effects_of(
    adata: AnnData, genes: list[str], model: Any, **options: Any
) -> tuple[Floats, pd.DataFrame, pd.DataFrame]:
    """Predicted change of every gene, by the network and by regression, genes by measured genes; and the table of shifts."""
    import scgalore as sg

    sg.tl.perturb_in_silico(
        adata,
        genes,
        model=model,
        n_effects=adata.n_vars,
        min_matched=0,
        **{"n_null": 0, "accelerator": "cpu", **options},
    )
    table = sg.get.in_silico_effects(adata)
    shifts = sg.get.in_silico_shifts(adata).set_index("gene").loc[genes]
    wide = {
        name: table.pivot(index="gene", columns="target", values=name).reindex(index=genes, columns=adata.var_names)
        for name in ("effect", "coexpression")
    }
    return wide["effect"].fillna(0).to_numpy(), wide["coexpression"].fillna(0), shifts


def models_for(adata: AnnData, *, quick: bool, weights: str) -> dict[str, Any]:
    """Weights, the same after masked expression of these cells, and random ones."""
    import scgalore as sg
    from scgalore.model import SCGPT, load

    given = load(weights)
    training = {**MASKED, "max_epochs": 1} if quick else MASKED
    tuned = sg.tl.finetune(adata.copy(), weights, min_matched=0, **training)
    return {GIVEN: given, TUNED: tuned, RANDOM: SCGPT.from_config(given.network.config, given.vocab, rng=0)}


def token_vectors(model: Any, genes: Sequence[str]) -> Floats:
    """Static embeddings of genes with unit norm; zeros for genes without a token."""
    from scgalore.tasks.perturbation.networks import gene_vectors

    found = gene_vectors(model.network, model.vocab, genes).reindex(genes).fillna(0).to_numpy(dtype=np.float64)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def activation(folder: Path, *, quick: bool, weights: str) -> dict[str, dict[str, Any]]:
    """The 104 activations, by each way to predict them."""
    import anndata
    import scipy.sparse as sp

    from scgalore.data.match import tokens_of_each

    cells = anndata.read_h5ad(folder / CELLS)
    cells = cells[(cells.obs["dataset"] == "norman19") & (cells.obs["condition"] == "control")].copy()
    measured = anndata.read_h5ad(folder / EFFECTS)
    # Genes of the effects that the file of cells lacks become columns without a count: no tokens, and their change is predicted.
    lacking = measured.var_names.difference(cells.var_names)
    wide = anndata.AnnData(
        sp.hstack([sp.csr_matrix(cells.X), sp.csr_matrix((cells.n_obs, len(lacking)))]).tocsr().astype(np.float32),
        cells.obs,
        pd.DataFrame(index=[*cells.var_names, *lacking]),
        uns={"log1p": {}},
    )
    models = models_for(wide, quick=quick, weights=weights)
    known = np.array(tokens_of_each(measured.var_names, models[GIVEN].vocab)) >= 0
    genes = measured.var_names[known]
    names = measured.obs["perturbation"].astype(str).to_numpy()
    single = measured.obs["n_genes_perturbed"].to_numpy() == 1
    singles = names[single].tolist()[: 12 if quick else None]
    true_all = np.asarray(measured.X, dtype=np.float64)
    true = true_all[single][: len(singles)][:, known]
    own = np.array(singles)[:, None] == genes.to_numpy()[None, :]
    found = {}
    for name, model in models.items():
        predicted, _, _ = effects_of(wide, singles, model, mode="set", level=LEVEL, data_type="log1p")
        columns = [wide.var_names.get_loc(gene) for gene in genes]
        found[f"network, {name}"] = agreement(predicted[:, columns], true, own)
    vectors = token_vectors(models[GIVEN], singles), token_vectors(models[GIVEN], genes)
    found["cosine of gene embeddings"] = agreement(vectors[0] @ vectors[1].T, true, own)
    others = np.array([np.delete(true, i, axis=0).mean(axis=0) for i in range(len(true))])
    found["mean of the other activations (needs a screen)"] = agreement(others, true, own)
    # Regression needs the gene to be measured and to vary: over the profiles of all perturbations of other genes.
    where = [i for i, name in enumerate(singles) if name in measured.var_names]
    fitted, kept = [], []
    for i in where:
        gene = singles[i]
        rest = true_all[[gene not in name.split("+") for name in names]]
        x = rest[:, measured.var_names.get_loc(gene)]
        if x.std() > 0:
            centred = x - x.mean()
            fitted.append((centred @ (rest - rest.mean(axis=0)) / (centred @ centred))[known])
            kept.append(i)
    found["regression over profiles of other perturbations (needs a screen)"] = agreement(
        np.array(fitted), true[kept], own[kept]
    )
    return found


def held_out(folder: Path, *, quick: bool, weights: str) -> dict[str, dict[str, Any]]:
    """The 18 activations of the file of cells, each predicted by a model that was trained on others."""
    import anndata

    import scgalore as sg

    adata = anndata.read_h5ad(folder / CELLS)
    adata = adata[adata.obs["dataset"] == "norman19"].copy()
    adata = adata[:, np.asarray((adata.X > 0).sum(axis=0)).ravel() > 0].copy()
    labels = adata.obs["condition"].astype(str)
    singles = sorted(set(labels) - {"control"} - {name for name in set(labels) if "+" in name})
    x = np.asarray(adata.X.todense(), dtype=np.float64)
    counted = (x > 0).mean(axis=0) > 0.01
    control = x[labels == "control"].mean(axis=0)
    true = np.array([x[labels == name].mean(axis=0) - control for name in singles])[:, counted]
    genes = adata.var_names[counted]
    own = np.array(singles)[:, None] == genes.to_numpy()[None, :]
    cells = adata[labels == "control"].copy()
    models = models_for(cells, quick=quick, weights=weights)
    found = {}
    for name, model in models.items():
        predicted, _, _ = effects_of(cells, singles, model, mode="set", level=LEVEL, data_type="log1p")
        found[f"network, {name}"] = agreement(predicted[:, counted], true, own)
    trained = np.zeros((len(singles), adata.n_vars))
    training = {**SCREEN, "max_epochs": 1} if quick else SCREEN
    for fold in range(1 if quick else FOLDS):
        test = singles[fold::FOLDS]
        split = np.array(
            ["test" if any(g in test for g in name.split("+")) else "train" for name in labels], dtype=object
        )
        screen = adata.copy()
        screen.obs["fold"] = split
        model = sg.tl.finetune(
            screen,
            weights,
            pert_key="condition",
            split_key="fold",
            min_matched=0,
            **training,
        )
        sg.tl.predict_perturbation(screen, test, model=model, accelerator="cpu")
        of_test = sg.get.perturbation_effects(screen)
        for gene in test:
            trained[singles.index(gene)] = of_test.loc[gene].to_numpy(dtype=np.float64)
    found["model trained on the other activations"] = agreement(trained[:, counted], true, own)
    others = np.array([np.delete(true, i, axis=0).mean(axis=0) for i in range(len(true))])
    found["mean of the other activations"] = agreement(others, true, own)
    return found


def stem_cells(
    folder: Path, *, quick: bool, weights: str
) -> tuple[dict[str, tuple[float, float]], dict[str, float], int]:
    """Area under the ROC curve of targets, mean over factors; and rank correlation with the number of targets."""
    import anndata
    from sklearn.metrics import roc_auc_score

    adata = anndata.read_h5ad(folder / "hesc_chen_385cells.h5ad")
    truth = pd.read_csv(folder.parent / "resources" / "grn" / "hesc_chip_and_knockdown.tsv", sep="\t")
    counts = truth["tf"].value_counts()
    factors = [tf for tf in counts.index if tf in adata.var_names and counts[tf] >= 20][: 4 if quick else None]
    listed = adata.var_names.isin(truth["target"])
    areas: dict[str, list[float]] = {}
    sizes: dict[str, Floats] = {}
    x = np.asarray(adata.X.todense() if hasattr(adata.X, "todense") else adata.X, dtype=np.float64)
    for name, model in models_for(adata, quick=quick, weights=weights).items():
        predicted, linear, shifts = effects_of(adata, factors, model, n_cells=adata.n_obs, data_type="log1p")
        scores = {f"network, {name}": np.abs(predicted)}
        sizes[f"network, {name}"] = shifts["shift"].to_numpy(dtype=np.float64)
        if name == GIVEN:
            known = linear.to_numpy() != 0
            scores["regression over the cells"] = np.abs(linear.to_numpy())
            centred = x - x.mean(axis=0)
            spread = np.where(centred.std(axis=0) > 0, centred.std(axis=0), 1)
            at = [adata.var_names.get_loc(tf) for tf in factors]
            scores["correlation over the cells"] = np.abs(centred[:, at].T @ centred / spread[at, None] / spread)
            scores["mean expression of the target"] = np.tile(x.mean(axis=0), (len(factors), 1))
            sizes["regression over the cells"] = shifts["coexpression_size"].to_numpy(dtype=np.float64)
            sizes["expression of the factor"] = shifts["expression"].to_numpy(dtype=np.float64)
        for method, score in scores.items():
            for i, tf in enumerate(factors):
                scored = listed & (adata.var_names != tf) & (known.any(axis=0))
                is_target = adata.var_names.isin(truth.loc[truth["tf"] == tf, "target"])
                areas.setdefault(method, []).append(float(roc_auc_score(is_target[scored], score[i][scored])))
    n_targets = counts[factors].to_numpy(dtype=np.float64)
    return (
        {
            name: (float(np.mean(found)), float(np.std(found, ddof=1) / np.sqrt(len(found))))
            for name, found in areas.items()
        },
        {name: spearman(found, n_targets) for name, found in sizes.items()},
        len(factors),
    )


def wanted_state(folder: Path, *, quick: bool, weights: str) -> dict[str, Any]:
    """Genes ranked by how far they move control cells to stimulated ones, next to the difference between the two."""
    import anndata

    import scgalore as sg
    from scgalore.data.match import tokens_of_each

    adata = anndata.read_h5ad(folder / KANG)
    adata.X = adata.X.astype(np.float32)
    depth = np.asarray(adata.X.sum(axis=1)).ravel()
    logged = adata.X.multiply(1e4 / depth[:, None]).log1p().tocsr()
    stimulated = (adata.obs["condition"].astype(str) != "ctrl").to_numpy()
    difference = pd.Series(
        np.asarray(logged[stimulated].mean(axis=0) - logged[~stimulated].mean(axis=0)).ravel(), index=adata.var_names
    )
    expressed = np.asarray((logged > 0).mean(axis=0)).ravel() > 0.05
    known = np.array(tokens_of_each(adata.var_names, sg.model.load(weights).vocab)) >= 0
    genes = adata.var_names[expressed & known].tolist()[:: 40 if quick else 4]
    label = str(adata.obs["condition"].astype(str)[stimulated].iloc[0])
    sg.tl.perturb_in_silico(
        adata, genes, mode="set", level=3.0, model=weights, target_key="condition", target=label,
        n_cells=10 if quick else 40, n_null=0, n_effects=0, accelerator="cpu", min_matched=0,
    )  # fmt: skip
    shifts = sg.get.in_silico_shifts(adata).set_index("gene")
    towards = shifts["towards"]
    upstream = [
        gene for gene in ("STAT1", "STAT2", "IRF9", "IRF7", "IRF1", "JAK1", "TYK2", "IFNAR1") if gene in towards.index
    ]
    return {
        "n_genes": len(towards),
        "difference": spearman(
            towards.to_numpy(dtype=np.float64), difference[towards.index].to_numpy(dtype=np.float64)
        ),
        "first": towards.index[:10].tolist(),
        "upstream": {gene: int(towards.rank(ascending=False)[gene]) for gene in upstream},
    }


def timed(folder: Path | None, *, quick: bool, weights: str) -> dict[str, Any]:
    """Seconds of one call."""
    import anndata
    import scanpy as sc
    import torch

    import scgalore as sg

    adata = sc.datasets.pbmc68k_reduced().raw.to_adata() if folder is None else anndata.read_h5ad(folder / KANG)
    n_genes, n_cells = (20, 20) if quick else (1000, 200)
    expressed = np.asarray((adata.X > 0).sum(axis=0)).ravel()
    tokens = set(sg.model.load(weights).vocab.tokens)
    ranked = [gene for gene in adata.var_names[np.argsort(-expressed, kind="stable")] if gene in tokens]
    genes = ranked[: 4 * n_genes : 4] if folder is not None else ranked[:n_genes]
    with Anonymous() as memory:
        begin_, cpu = time.perf_counter(), time.process_time()
        sg.tl.perturb_in_silico(adata, genes, model=weights, n_cells=n_cells, accelerator="cpu", min_matched=0)
        took, cpu = time.perf_counter() - begin_, time.process_time() - cpu
    shifts = sg.get.in_silico_shifts(adata)
    return {
        "genes": len(shifts),
        "cells": n_cells,
        "seconds": took,
        "cpu_seconds": cpu,
        "edited": int(shifts["n_cells"].sum()),
        "added_mb": memory.added / 1e6,
        "threads": torch.get_num_threads(),
    }


WAYS = ("predicted by", "perturbations", "direction", "of another gene", "size")


def report_ways(report: Report, heading: str, found: dict[str, dict[str, Any]]) -> None:
    """A table with one row for each way to predict effects."""
    rows = [
        (
            name,
            one["n"],
            f"{one['direction']:.3f} ± {one['direction_se']:.3f}",
            f"{one['other']:.3f}",
            f"{one['size']:.2f}",
        )
        for name, one in found.items()
    ]
    report.table(heading, WAYS, rows)


def claim_near_zero(report: Report, where: str, one: dict[str, Any], best: str, other: dict[str, Any]) -> None:
    """What is said of the network in the documentation."""
    report.claim(
        f"{where}: rank correlation of the network's effects with real ones",
        "reported as it is, next to the best baseline",
        f"{one['direction']:.3f} ± {one['direction_se']:.3f} ({best}: {other['direction']:.3f})",
        holds=None,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    options = parser(__doc__)
    options.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS), help="parts to run")
    options.add_argument("--model", default="scgpt-mini", help="weights: a name or a folder")
    arguments = options.parse_args(argv)
    report = begin("in_silico", "Genes changed in silico", arguments)
    folder = arguments.data
    for name in arguments.only:
        if folder is None and name != "time":
            report.note(f"{name}: not measured without --data.")
            continue
        PARTS[name](report, folder, quick=arguments.quick, weights=arguments.model)
    report.finish(arguments.out)


def report_activation(report: Report, folder: Path, *, quick: bool, weights: str) -> None:
    """K562, activation."""
    found = activation(folder, quick=quick, weights=weights)
    report_ways(
        report,
        'K562, activation by CRISPR against `mode="set"` in 100 control cells: Spearman\'s correlation over genes, mean over perturbations ± its standard error; the '
        "same with the effect of another gene; and the correlation of the sizes of predicted and real effects over perturbations.",
        found,
    )
    report.measured["k562"] = found
    best = max((name for name in found if not name.startswith("network")), key=lambda name: found[name]["direction"])
    claim_near_zero(report, "K562, 2,000 genes", found[f"network, {GIVEN}"], best, found[best])


def report_held_out(report: Report, folder: Path, *, quick: bool, weights: str) -> None:
    """K562, held-out activations."""
    found = held_out(folder, quick=quick, weights=weights)
    report_ways(
        report,
        f"The 18 single activations of PerturBench's file, genes that more than 1 % of the cells express. Models of a screen are trained on the others, {FOLDS} folds.",
        found,
    )
    report.measured["screen"] = found
    others = "mean of the other activations"
    claim_near_zero(report, "PerturBench's file", found[f"network, {GIVEN}"], others, found[others])


def report_stem_cells(report: Report, folder: Path, *, quick: bool, weights: str) -> None:
    """Embryonic stem cells."""
    areas, sizes, n = stem_cells(folder, quick=quick, weights=weights)
    report.table(
        f"Embryonic stem cells, {n} transcription factors with at least 20 targets: area under the ROC curve of the size of a gene's change for being a target, mean "
        f"over factors ± its standard error; and Spearman's correlation of the size of the whole effect with the number of targets (standard error {1 / np.sqrt(n - 1):.2f} if there is none).",
        ("predicted by", "targets", "number of targets"),
        [
            (
                name,
                f"{areas[name][0]:.3f} ± {areas[name][1]:.3f}" if name in areas else "",
                f"{sizes[name]:.2f}" if name in sizes else "",
            )
            for name in dict.fromkeys([*areas, *sizes])
        ],
    )
    report.measured["hesc"] = {"areas": areas, "sizes": sizes, "n": n}
    area = areas[f"network, {GIVEN}"]
    report.claim(
        "area under the ROC curve for the targets of transcription factors",
        "reported as it is",
        f"{area[0]:.3f} ± {area[1]:.3f} (chance: 0.5)",
        holds=None,
    )


def report_wanted_state(report: Report, folder: Path, *, quick: bool, weights: str) -> None:
    """Control to stimulated."""
    found = wanted_state(folder, quick=quick, weights=weights)
    ranks = ", ".join(f"{gene} {rank}" for gene, rank in found["upstream"].items())
    report.note(
        f"Control cells of Kang et al. towards those stimulated with interferon, {found['n_genes']:,} genes set to expression 3: Spearman's correlation of the share of the way "
        f"with the difference of mean expression between the two states {found['difference']:.2f}. First: {', '.join(found['first'])}. Ranks of genes of the pathway: {ranks}."
    )
    report.measured["state"] = found
    report.claim(
        "rank correlation of the share of the way to a state with the difference of expression between the states",
        "reported",
        f"{found['difference']:.2f}",
        holds=None,
    )


def report_time(report: Report, folder: Path | None, *, quick: bool, weights: str) -> None:
    """Time of one call."""
    import torch

    # In a process of its own, whose memory is not what other parts have left.
    with get_context("spawn").Pool(1, torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        found = pool.apply(timed, (folder,), {"quick": quick, "weights": weights})
    report.measured["time"] = found
    report.claim(
        f"seconds to knock out {found['genes']:,} genes in {found['cells']} cells",
        "minutes, at most 30",
        f"{found['seconds']:.0f} s, {found['cpu_seconds']:.0f} s of CPU time with {found['threads']} threads, {found['edited']:,} changed cells and those of random "
        f"genes, {found['added_mb']:.0f} MB of memory in addition",
        holds=found["seconds"] < 1800,
    )


PARTS: dict[str, Any] = {
    "k562": report_activation,
    "hesc": report_stem_cells,
    "state": report_wanted_state,
    "time": report_time,
    "screen": report_held_out,
}


if __name__ == "__main__":
    main()
