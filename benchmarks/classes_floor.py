"""Cell types of held-out cells, donors, conditions and assays: the model, its linear model alone, and the simple baselines.

A model must not be below the best simple baseline. Cases: a random fifth of the cells (pbmc68k of scanpy, CITE-seq with classes
from clustering its proteins), the other donor and the stimulated cells of Kang et al. 2018, each assay of symphony's PBMC, and
20 labelled cells per class. Baselines are scikit-learn's, fitted to training and validation cells together: logistic
regression on plain and on scaled genes, each with C by 5-fold cross-validation (in the span of the cells, which is exact), and
15 nearest neighbours in 50 principal components. The weights of the network are those of the bundled model, made again without the
data set (pbmc68k is not in it). Each seed draws another tenth of the training cells for validation. Each fit is kept
in ``benchmarks/.cache/classes_floor``, so a run that was interrupted goes on; delete the folder to measure anew.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from benchmarks import bundled_model
from benchmarks.harness import CACHE, begin, parser, results_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

FOLDER = CACHE / "classes_floor"
FEW = 20
MODEL, LINEAR = "the model", "its linear model alone"
PLAIN, SCALED, NEIGHBOURS = "logistic regression", "logistic regression, scaled genes", "15 neighbours, 50 PCs"


def data_sets(
    folder: Path | None,
) -> Iterator[tuple[str, tuple[str, ...], AnnData, dict[str, NDArray[np.bool_] | None]]]:
    """Name, files of the same study, log-normalised cells with ``obs["type"]``, and the test cells of each case.

    ``None`` draws a fifth of the cells.
    """
    import scanpy as sc

    pbmc = sc.datasets.pbmc68k_reduced().raw.to_adata()
    pbmc.obs["type"] = pbmc.obs["bulk_labels"].astype(str)
    yield "pbmc68k", (), pbmc, {"random cells": None}
    if folder is None:
        return
    kang = sc.read_h5ad(folder / "kang18_pbmc_ifnb_muscat.h5ad")
    sc.pp.normalize_total(kang, target_sum=1e4)
    sc.pp.log1p(kang)
    kang.obs["type"] = kang.obs["cluster_id"].astype(str)
    donor, stimulated = kang.obs["sample_id"].astype(str).str[-3:], (kang.obs["group_id"] == "stim").to_numpy()
    cases = {f"donor {name}": (donor == name).to_numpy() for name in sorted(donor.unique())}
    yield "Kang", bundled_model.KANG, kang, {**cases, "stimulated": stimulated, "random cells": None}
    symphony = sc.read_h5ad(folder / "pbmc_3assays_symphony.h5ad")
    symphony.obs["type"] = symphony.obs["cell_type"].astype(str)
    symphony = _of_frequent_types(symphony, 20)
    assays = {f"assay {name}": (symphony.obs["batch"] == name).to_numpy() for name in symphony.obs["batch"].unique()}
    yield "symphony", ("pbmc_3assays_symphony.h5ad",), symphony, {**assays, "random cells": None}
    cite_seq = "citeseq_500cells_citefuse.h5ad"
    yield "CITE-seq", (cite_seq,), _cite_seq(folder / cite_seq), {"random cells": None}


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


def weights_without(name: str, files: tuple[str, ...], folder: Path) -> str:
    """The bundled model, made without these files."""
    if not files:
        return "scgpt-mini"
    path = FOLDER / "weights" / name
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        bundled_model.script().make(folder, without=files)[0].save(path)
    return str(path)


def trained(
    weights: str, cells: AnnData, seed: int, training: dict[str, Any]
) -> tuple[Any, NDArray[np.float32], NDArray[np.bool_]]:
    """What a fine-tuned model keeps, its probabilities, and whether the correction and the training are used."""
    import scgalore as sg

    model: Any = sg.tl.finetune(cells, weights, labels_key="type", split_key="part", rng=seed, **training)
    used = [cells.uns["finetune"]["prior"]["correction"]["used"], model.result.best_epoch >= 0]
    return model.memory, cells.obsm["scgpt_probabilities"], np.array(used)


def started(weights: str, cells: AnnData, seed: int) -> tuple[Any, NDArray[np.float32], NDArray[np.bool_]]:
    """The same for the model that training starts from."""
    import scgalore as sg
    from scgalore.tasks.correction import last_inputs
    from scgalore.tasks.registry import resolve_call

    options = {"labels_key": "type", "accelerator": "cpu"}
    task, call = resolve_call(options, task=None, seed=seed, function=sg.tl.finetune, split_key="part")
    model = sg.model.load(weights)
    prepared: Any = task.prepare(task.read(cells, call), model, call)
    weight, bias = prepared.start["classes"]
    rows = np.arange(cells.n_obs)
    features = last_inputs(model, prepared.source, rows, "classes", len(bias), call.config)
    logits = prepared.memory.prior.predict(cells, call.reading) + features @ weight.T + bias
    return prepared.memory, logits, np.array([prepared.state["prior"][1].helps, False])


def one_case(
    weights: str,
    adata: AnnData,
    held: NDArray[np.bool_] | None,
    few: int | None,
    seed: int,
    training: dict[str, Any] | None,
) -> dict[str, NDArray[np.bool_]]:
    """Whether each method names each test cell rightly, and under ``used`` whether the correction and the training are used."""
    from scgalore.data.reading import AS_IT_IS

    types = adata.obs["type"].to_numpy(dtype=str)
    split = split_of(types, held, few, seed)
    kept = split != "none"
    cells, types, split = adata[kept].copy(), types[kept], split[kept]
    cells.obs["part"] = split
    test = split == "test"
    x = cells.X.toarray() if hasattr(cells.X, "toarray") else np.asarray(cells.X)
    predicted = baselines(x, types, split)
    memory, logits, used = (
        started(weights, cells, seed) if training is None else trained(weights, cells, seed, training)
    )
    predicted[MODEL] = np.array(memory.classes)[logits[test].argmax(axis=1)]
    predicted[LINEAR] = np.array(memory.classes)[memory.prior.predict(cells, AS_IT_IS)[test].argmax(axis=1)]
    return {**{name: found == types[test] for name, found in predicted.items()}, "used": used}


def kept(name: str, make: Callable[[], dict[str, NDArray[np.bool_]]], *, keep: bool) -> dict[str, NDArray[np.bool_]]:
    """What ``make`` gives, read from the cache if it is there."""
    path = FOLDER / f"{name}.npz"
    if keep and path.is_file():
        with np.load(path) as found:
            return dict(found)
    made: Any = make()
    if keep:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path.with_suffix(".part.npz"), **made)
        path.with_suffix(".part.npz").replace(path)
    return made


def difference(right: dict[str, NDArray[np.float64]], method: str, rival: str) -> tuple[float, float]:
    """Mean accuracy of a method minus that of a rival, from arrays ``(n_seeds, n_cells)``, and its standard error.

    The error is over seeds and, as these share test cells where a donor or an assay is held out, over cells.
    """
    paired = right[method] - right[rival]
    gain = paired.mean(axis=1)
    of_cells = paired.std(axis=1).mean() / np.sqrt(paired.shape[1])
    of_seeds = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else 0.0
    return float(gain.mean()), float(np.hypot(of_cells, of_seeds))


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--seeds", type=int, default=5, help="repetitions of each case")
    arguments_of.add_argument("--untrained", action="store_true", help="score the models that training starts from")
    arguments = arguments_of.parse_args(argv)
    name_of_results = "classes_floor_untrained" if arguments.untrained else "classes_floor"
    report = begin(name_of_results, "Cell types: never below the best simple baseline", arguments)
    training: dict[str, Any] | None = {"accelerator": "cpu", **({"max_epochs": 1} if arguments.quick else {})}
    training, folder = (None, "untrained") if arguments.untrained else (training, "trained")
    seeds = range(1 if arguments.quick else arguments.seeds)
    methods = (MODEL, LINEAR, PLAIN, SCALED, NEIGHBOURS)
    gains: dict[str, list[float]] = {MODEL: [], LINEAR: []}
    rows, below = [], []
    for name, files, adata, cases in data_sets(None if arguments.quick else arguments.data):
        weights = weights_without(name, files, arguments.data)
        for case, held in cases.items():
            for few in (None, FEW) if case == "random cells" else (None,):
                title = f"{name}, {case}" + (f", {few} labelled cells per class" if few else "")
                found = []
                for seed in seeds:
                    make = partial(one_case, weights, adata, held, few, seed, training)
                    found.append(kept(f"{folder}/{title}, seed {seed}", make, keep=not arguments.quick))
                right = {key: np.stack([one[key] for one in found]).astype(float) for key in (*methods, "used")}
                accuracy = {method: right[method].mean() for method in methods}
                rival = max((PLAIN, SCALED, NEIGHBOURS), key=accuracy.__getitem__)
                differences = {method: difference(right, method, rival) for method in gains}
                for method, (gain, _) in differences.items():
                    gains[method].append(gain)
                gain, error = differences[MODEL]
                if gain < -2 * error:
                    below.append(title)
                numbers = [f"{accuracy[method]:.3f}" for method in methods]
                shown = [f"{gain:+.3f} ± {error:.3f}" for gain, error in differences.values()]
                used = [f"{count:.0f}" for count in right["used"].sum(axis=0)]
                rows.append((title, str(right[MODEL].shape[1]), *numbers, *shown, *used))
                print(*rows[-1], sep=" | ", flush=True)
    header = (
        "case",
        "test cells",
        *methods,
        "the model minus the best baseline",
        "its linear model minus the best baseline",
        "correction used",
        "training used",
    )
    scored = "the models that training starts from" if arguments.untrained else "the trained models"
    report.table(f"Accuracy of {scored}, means over {len(seeds)} seeds.", header, rows)
    for method, differences_of in gains.items():
        report.measured[f"mean difference of {method}"] = float(np.mean(differences_of))
    report.claim(
        f"{MODEL}: below the best baseline by more than two standard errors in no case",
        "none",
        ", ".join(below) or "none",
        holds=not below,
    )
    mean, error = np.mean(gains[MODEL]), np.std(gains[MODEL], ddof=1) / np.sqrt(len(gains[MODEL]))
    report.claim("mean difference over the cases", "above 0", f"{mean:+.4f} ± {error:.4f}", holds=bool(mean > 0))
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
