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

Time: 1,000 genes in 200 cells (CITE-seq, of the genes that most cells express one after another), knock-out, with its random genes.

Correlations are Spearman's, without the changed gene itself. "other gene" compares each prediction with the effect of another gene: what a prediction gets
for knowing what responds to anything.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from benchmarks.harness import begin, parser, say

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

CELLS, EFFECTS = "perturbench_devel.h5ad", "norman19_pseudobulk_logfc.h5ad"
LEVEL = 4.0
MASKED = {"task": "expression", "max_epochs": 5, "batch_size": 32, "lr": 1e-3, "max_length": 400, "accelerator": "cpu"}
SCREEN = {"task": "perturbation", "max_epochs": 5, "accelerator": "cpu"}
FOLDS = 5
BUNDLED, TUNED, RANDOM = "bundled", "fine-tuned on masked expression", "random weights"


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


def models_for(adata: AnnData, *, quick: bool) -> dict[str, Any]:
    """The bundled weights, the same after masked expression of these cells, and random ones."""
    import scgalore as sg
    from scgalore.model import SCGPT, load

    bundled = load("scgpt-mini")
    training = {**MASKED, "max_epochs": 1} if quick else MASKED
    tuned = sg.tl.finetune(adata.copy(), "scgpt-mini", min_matched=0, **training)
    return {BUNDLED: bundled, TUNED: tuned, RANDOM: SCGPT.from_config(bundled.network.config, bundled.vocab, rng=0)}


def token_vectors(model: Any, genes: Sequence[str]) -> Floats:
    """Static embeddings of genes with unit norm; zeros for genes without a token."""
    from scgalore.tasks.perturbation.networks import gene_vectors

    found = gene_vectors(model.network, model.vocab, genes).reindex(genes).fillna(0).to_numpy(dtype=np.float64)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def activation(folder: Path, *, quick: bool) -> dict[str, dict[str, Any]]:
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
    models = models_for(wide, quick=quick)
    known = np.array(tokens_of_each(measured.var_names, models[BUNDLED].vocab)) >= 0
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
    vectors = token_vectors(models[BUNDLED], singles), token_vectors(models[BUNDLED], genes)
    found["cosine of gene embeddings, bundled"] = agreement(vectors[0] @ vectors[1].T, true, own)
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


def held_out(folder: Path, *, quick: bool) -> dict[str, dict[str, Any]]:
    """The 18 activations of the file of cells, each predicted by a model that was trained on others."""
    import anndata

    import scgalore as sg

    adata = anndata.read_h5ad(folder / CELLS)
    adata = adata[adata.obs["dataset"] == "norman19"].copy()
    labels = adata.obs["condition"].astype(str)
    singles = sorted(set(labels) - {"control"} - {name for name in set(labels) if "+" in name})
    x = np.asarray(adata.X.todense(), dtype=np.float64)
    counted = (x > 0).mean(axis=0) > 0.01
    control = x[labels == "control"].mean(axis=0)
    true = np.array([x[labels == name].mean(axis=0) - control for name in singles])[:, counted]
    genes = adata.var_names[counted]
    own = np.array(singles)[:, None] == genes.to_numpy()[None, :]
    cells = adata[labels == "control"].copy()
    models = models_for(cells, quick=quick)
    found = {}
    for name, model in models.items():
        predicted, _, _ = effects_of(cells, singles, model, mode="set", level=LEVEL, data_type="log1p")
        found[f"network, {name}"] = agreement(predicted[:, counted], true, own)
    trained = np.zeros((len(singles), adata.n_vars))
    for fold in range(1 if quick else FOLDS):
        test = singles[fold::FOLDS]
        split = np.array(
            ["test" if any(g in test for g in name.split("+")) else "train" for name in labels], dtype=object
        )
        screen = adata.copy()
        screen.obs["fold"] = split
        model = sg.tl.finetune(
            screen,
            "scgpt-mini",
            pert_key="condition",
            split_key="fold",
            min_matched=0,
            **(SCREEN | ({"max_epochs": 1} if quick else {})),
        )
        sg.tl.predict_perturbation(screen, test, model=model, accelerator="cpu")
        predicted = sg.get.perturbation_effects(screen)
        for gene in test:
            trained[singles.index(gene)] = predicted.loc[gene].to_numpy(dtype=np.float64)
    found["model trained on the other activations"] = agreement(trained[:, counted], true, own)
    others = np.array([np.delete(true, i, axis=0).mean(axis=0) for i in range(len(true))])
    found["mean of the other activations"] = agreement(others, true, own)
    return found


def stem_cells(folder: Path, *, quick: bool) -> tuple[dict[str, float], dict[str, float], int]:
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
    for name, model in models_for(adata, quick=quick).items():
        predicted, linear, shifts = effects_of(adata, factors, model, n_cells=adata.n_obs)
        scores = {f"network, {name}": np.abs(predicted)}
        sizes[f"network, {name}"] = shifts["shift"].to_numpy(dtype=np.float64)
        if name == BUNDLED:
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


def wanted_state(folder: Path, *, quick: bool) -> dict[str, Any]:
    """Genes ranked by how far they move control cells to stimulated ones, next to the difference between the two."""
    import anndata

    import scgalore as sg

    adata = anndata.read_h5ad(folder / "kang18_pbmc_ifnb_9015genes.h5ad")
    adata.X = adata.X.astype(np.float32)
    depth = np.asarray(adata.X.sum(axis=1)).ravel()
    logged = adata.X.multiply(1e4 / depth[:, None]).log1p().tocsr()
    stimulated = (adata.obs["condition"].astype(str) != "ctrl").to_numpy()
    difference = pd.Series(
        np.asarray(logged[stimulated].mean(axis=0) - logged[~stimulated].mean(axis=0)).ravel(), index=adata.var_names
    )
    expressed = np.asarray((logged > 0).mean(axis=0)).ravel() > 0.05
    genes = adata.var_names[expressed].tolist()[:: 40 if quick else 4]
    label = str(adata.obs["condition"].astype(str)[stimulated].iloc[0])
    sg.tl.perturb_in_silico(
        adata, genes, mode="set", level=3.0, model="scgpt-mini", target_key="condition", target=label,
        n_cells=10 if quick else 40, n_null=0, n_effects=0, accelerator="cpu", min_matched=0,
    )  # fmt: skip
    shifts = sg.get.in_silico_shifts(adata).set_index("gene")
    towards = shifts["towards"]
    upstream = [
        gene for gene in ("STAT1", "STAT2", "IRF9", "IRF7", "IRF1", "JAK1", "TYK2", "IFNAR1") if gene in towards.index
    ]
    return {
        "n_genes": len(towards),
        "difference": spearman(towards.to_numpy(), difference[towards.index].to_numpy()),
        "first": towards.index[:10].tolist(),
        "upstream": {gene: int(towards.rank(ascending=False)[gene]) for gene in upstream},
    }


def timed(folder: Path | None, *, quick: bool) -> dict[str, Any]:
    """Seconds of one call."""
    import anndata
    import scanpy as sc
    import torch

    import scgalore as sg

    if folder is None:
        adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    else:
        adata = anndata.read_h5ad(folder / "citeseq_500cells_citefuse.h5ad")
    n_genes, n_cells = (20, 20) if quick else (1000, 200)
    expressed = np.asarray((adata.X > 0).sum(axis=0)).ravel()
    tokens = set(sg.model.load("scgpt-mini").vocab.tokens)
    ranked = [gene for gene in adata.var_names[np.argsort(-expressed, kind="stable")] if gene in tokens]
    genes = ranked[: 4 * n_genes : 4] if folder is not None else ranked[:n_genes]
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin_, cpu = time.perf_counter(), time.process_time()
    sg.tl.perturb_in_silico(adata, genes, model="scgpt-mini", n_cells=n_cells, accelerator="cpu", min_matched=0)
    took, cpu = time.perf_counter() - begin_, time.process_time() - cpu
    shifts = sg.get.in_silico_shifts(adata)
    return {
        "genes": len(shifts),
        "cells": n_cells,
        "seconds": took,
        "cpu_seconds": cpu,
        "edited": int(shifts["n_cells"].sum()),
        "peak_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3,
        "threads": torch.get_num_threads(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    options = parser(__doc__)
    options.add_argument("--only", nargs="*", default=["k562", "screen", "hesc", "state", "time"], help="parts to run")
    arguments = options.parse_args(argv)
    report = begin("in_silico", "Genes changed in silico", arguments)
    quick, folder = arguments.quick, arguments.data
    print(report, folder, quick, say)


if __name__ == "__main__":
    main()
