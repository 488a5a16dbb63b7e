"""Cell types of held-out cells, donors, conditions and assays: the model, its linear model alone, and the simple baselines.

A model must not be below the best simple baseline. Cases: a random fifth of the cells (pbmc68k of scanpy, CITE-seq with classes
from clustering its proteins), the other donor and the stimulated cells of Kang et al. 2018, each assay of symphony's PBMC, and
20 labelled cells per class. Baselines are scikit-learn's, fitted to training and validation cells together: logistic
regression on plain and on scaled genes, each with C by 5-fold cross-validation (in the span of the cells, which is exact), and
15 nearest neighbours in 50 principal components. Each seed draws another tenth of the training cells for validation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from benchmarks.harness import begin, parser, results_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

TRAINING: dict[str, Any] = {"max_epochs": 10, "batch_size": 16, "lr": 1e-3, "accelerator": "cpu"}
FEW = 20
MODEL, LINEAR = "the model", "its linear model alone"
PLAIN, SCALED, NEIGHBOURS = "logistic regression", "logistic regression, scaled genes", "15 neighbours, 50 PCs"


def data_sets(folder: Path | None) -> Iterator[tuple[str, AnnData, dict[str, NDArray[np.bool_] | None]]]:
    """Name, log-normalised cells with ``obs["type"]``, and the test cells of each case; ``None`` draws a fifth of them."""
    import scanpy as sc

    pbmc = sc.datasets.pbmc68k_reduced().raw.to_adata()
    pbmc.obs["type"] = pbmc.obs["bulk_labels"].astype(str)
    yield "pbmc68k", pbmc, {"random cells": None}
    if folder is None:
        return
    kang = sc.read_h5ad(folder / "kang18_pbmc_ifnb_muscat.h5ad")
    sc.pp.normalize_total(kang, target_sum=1e4)
    sc.pp.log1p(kang)
    kang.obs["type"] = kang.obs["cluster_id"].astype(str)
    donor, stimulated = kang.obs["sample_id"].astype(str).str[-3:], (kang.obs["group_id"] == "stim").to_numpy()
    cases = {f"donor {name}": (donor == name).to_numpy() for name in sorted(donor.unique())}
    yield "Kang", kang, {**cases, "stimulated": stimulated, "random cells": None}
    symphony = sc.read_h5ad(folder / "pbmc_3assays_symphony.h5ad")
    symphony.obs["type"] = symphony.obs["cell_type"].astype(str)
    symphony = _of_frequent_types(symphony, 20)
    assays = {f"assay {name}": (symphony.obs["batch"] == name).to_numpy() for name in symphony.obs["batch"].unique()}
    yield "symphony", symphony, {**assays, "random cells": None}
    yield "CITE-seq", _cite_seq(folder / "citeseq_500cells_citefuse.h5ad"), {"random cells": None}


def _of_frequent_types(adata: AnnData, n: int) -> AnnData:
    return adata[adata.obs["type"].map(adata.obs["type"].value_counts()) >= n].copy()


def _cite_seq(path: Path) -> AnnData:
    """Classes are clusters of the proteins alone."""
    import anndata as ad
    import scanpy as sc

    adata = sc.read_h5ad(path)
    proteins = adata.obsm["protein"]
    x = np.log1p(np.asarray(getattr(proteins, "values", proteins), dtype=np.float64))
    protein = ad.AnnData(x - x.mean(axis=1, keepdims=True))
    sc.pp.scale(protein)
    sc.pp.pca(protein, n_comps=15)
    sc.pp.neighbors(protein)
    sc.tl.leiden(protein, resolution=0.8, flavor="igraph", n_iterations=-1, directed=False)
    adata.obs["type"] = protein.obs["leiden"].astype(str).to_numpy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return _of_frequent_types(adata, 10)


def split_of(types: NDArray[Any], held: NDArray[np.bool_] | None, few: int | None, seed: int) -> NDArray[Any]:
    """``train``, ``validation``, ``test`` or ``none`` for each cell."""
    rng, split = np.random.default_rng(seed), np.full(len(types), "none", dtype=object)
    for name in np.unique(types):
        cells = rng.permutation(np.flatnonzero(types == name))
        test = cells[: max(1, len(cells) // 5)] if held is None else cells[held[cells]]
        known = cells[~np.isin(cells, test)][:few]
        n_validation = max(1, len(known) // 10) if len(known) > 2 else 0
        split[test], split[known[:n_validation]], split[known[n_validation:]] = "test", "validation", "train"
    return split


def baselines(x: NDArray[np.float32], types: NDArray[Any], split: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Predicted types of the test cells."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.neighbors import KNeighborsClassifier

    known, test = np.isin(split, ["train", "validation"]), split == "test"
    y, found = types[known], {}
    folds = min(5, int(np.unique(y, return_counts=True)[1].min()))
    for name, strengths in ((PLAIN, np.logspace(-2, 1.5, 8)), (SCALED, np.logspace(-3.5, 0, 8))):
        mean, std = x[known].mean(axis=0), x[known].std(axis=0)
        scale = np.where(std > 1e-6, std, np.inf) if name == SCALED else np.where(std > 1e-6, 1, np.inf)
        inside, outside = ((x[cells] - mean) / scale for cells in (known, test))
        _, sizes, basis = np.linalg.svd(inside, full_matrices=False)
        basis = basis[sizes > 1e-4 * sizes[0]].T
        how = {
            "scoring": "neg_log_loss",
            "max_iter": 500,
            "tol": 1e-3,
            "l1_ratios": (0,),
            "use_legacy_attributes": False,
        }
        classifier = LogisticRegressionCV(Cs=strengths, cv=max(folds, 2), **how)
        found[name] = classifier.fit(inside @ basis, y).predict(outside @ basis)
    components = PCA(min(50, int(known.sum()) - 1), random_state=0).fit(x[known])
    neighbours = KNeighborsClassifier(15).fit(components.transform(x[known]), y)
    return {**found, NEIGHBOURS: neighbours.predict(components.transform(x[test]))}


def one_case(
    adata: AnnData, held: NDArray[np.bool_] | None, few: int | None, seed: int, training: dict[str, Any] | None
) -> tuple[dict[str, NDArray[np.bool_]], bool]:
    """Whether each method names each test cell rightly, and whether the network is used."""
    import scgalore as sg
    from scgalore.data.reading import AS_IT_IS
    from scgalore.data.split import split_from_labels
    from scgalore.tasks.linear import fit_classes

    types = adata.obs["type"].to_numpy(dtype=str)
    split = split_of(types, held, few, seed)
    kept = split != "none"
    cells, types, split = adata[kept].copy(), types[kept], split[kept]
    cells.obs["part"] = split
    test, used = split == "test", False
    x = cells.X.toarray() if hasattr(cells.X, "toarray") else np.asarray(cells.X)
    predicted = baselines(x, types, split)
    classes, codes = np.unique(types, return_inverse=True)
    if training is None:
        fit = fit_classes(cells, AS_IT_IS, codes, split_from_labels(split), n_classes=len(classes), seed=seed)
        predicted[LINEAR] = classes[fit.model.predict(cells, AS_IT_IS)[test].argmax(axis=1)]
    else:
        model = sg.tl.finetune(cells, "scgpt-mini", labels_key="type", split_key="part", rng=seed, **training)
        used = model.result.best_epoch >= 0
        predicted[MODEL] = cells.obs["scgpt_label"].to_numpy(dtype=str)[test]
        names = np.array(model.classes)
        predicted[LINEAR] = names[model.memory.prior.predict(cells, AS_IT_IS)[test].argmax(axis=1)]
    return {name: found == types[test] for name, found in predicted.items()}, used


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--seeds", type=int, default=5, help="repetitions of each case")
    arguments_of.add_argument("--linear-only", action="store_true", help="without networks")
    arguments = arguments_of.parse_args(argv)
    report = begin("classes_floor", "Cell types: never below the best simple baseline", arguments)
    training = None if arguments.linear_only else {**TRAINING, "max_epochs": 1} if arguments.quick else TRAINING
    ours = LINEAR if training is None else MODEL
    seeds = range(1 if arguments.quick else arguments.seeds)
    rows, differences, below = [], [], []
    for name, adata, cases in data_sets(None if arguments.quick else arguments.data):
        for case, held in cases.items():
            for few in (None, FEW) if case == "random cells" else (None,):
                title = f"{name}, {case}" + (f", {few} labelled cells per class" if few else "")
                found = [one_case(adata, held, few, seed, training) for seed in seeds]
                right = {method: np.stack([one[method] for one, _ in found]).astype(float) for method in found[0][0]}
                table = {method: values.mean(axis=1) for method, values in right.items()}
                rival = max((PLAIN, SCALED, NEIGHBOURS), key=lambda method: table[method].mean())
                gain, n = table[ours] - table[rival], right[ours].shape[1]
                # Over seeds and, as these share test cells where a donor or an assay is held out, over cells.
                of_cells = (right[ours] - right[rival]).std(axis=1).mean() / np.sqrt(n)
                of_seeds = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else 0.0
                error = float(np.hypot(of_cells, of_seeds))
                differences.append(gain.mean())
                if gain.mean() < -2 * error:
                    below.append(title)
                methods = [method for method in (MODEL, LINEAR, PLAIN, SCALED, NEIGHBOURS) if method in table]
                used = f"{sum(used for _, used in found)} of {len(found)}"
                numbers = [f"{table[method].mean():.3f}" for method in methods]
                rows.append((title, str(n), *numbers, f"{gain.mean():+.3f} ± {error:.3f}", used))
                print(*rows[-1], sep=" | ", flush=True)
    header = ("case", "test cells", *methods, "minus the best baseline", "network used")
    report.table(f"Accuracy, means over {len(seeds)} seeds.", header, rows)
    report.measured["mean difference"] = float(np.mean(differences))
    report.claim(
        f"{ours}: below the best baseline by more than two standard errors in no case",
        "none",
        ", ".join(below) or "none",
        holds=not below,
    )
    report.claim(
        "mean difference over the cases",
        "above 0",
        f"{np.mean(differences):+.4f}",
        holds=bool(np.mean(differences) > 0),
    )
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
