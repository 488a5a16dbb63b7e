"""RNA and proteins: proteins of held-out cells from their RNA, next to ridge regression, and embeddings of both, next to totalVI.

Cells: CITE-seq of PBMC (Mimitou et al. 2019, 49 antibodies, 47 of them no isotype controls) and 200 cells of the 10k PBMC of 10x Genomics (14). A
fifth of the cells is for tests, a tenth of the others for validation; the seed draws both. The weights are those of the bundled model, made again
without the data set (as in ``classes_floor``), so they have seen neither its RNA nor its proteins.

Proteins: centred log-ratios; Pearson correlation of each protein over the test cells. Ridge regressions are scikit-learn's, one for each protein, with
its strength by leave-one-out, on plain and on scaled genes, fitted to training and validation cells; "its ridge regression alone" is what
the network corrects.

Embeddings: there are no labels that are independent of both modalities, so two sets are scored: Leiden clusters of the proteins alone (made as in
``classes_floor``; they favour what reads proteins) and Leiden clusters of the RNA alone (30 components of 1,000 variable genes; they favour what
reads RNA). Accuracy of 15 nearest neighbours of test cells among the others, normalised mutual information with k-means of as many clusters, and
silhouette, over cells of clusters of ten or more. Training cells have 150 tokens at most, drawn anew each epoch (all proteins, and
some of the genes), which is what a CPU does in minutes; all else is as it is by default. totalVI is trained on the same cells as it is by default (400 epochs,
early stopping), and for no longer than fine-tuning took. Each fit is kept in ``benchmarks/.cache/proteins``.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from benchmarks.classes_floor import weights_without
from benchmarks.harness import CACHE, begin, parser, results_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

    Array = NDArray[Any]

FOLDER = CACHE / "proteins"
FILES = {"CITE-seq": ("citeseq_500cells_citefuse.h5ad", "protein"), "10k PBMC": ("pbmc_10k_protein_v3_200cells.h5ad", "protein_expression")}  # fmt: skip
TRAINING = {"batch_size": 16, "max_length": 150, "accelerator": "cpu"}
MODEL, ALONE, PLAIN, SCALED = (
    "the model",
    "its ridge regression alone",
    "ridge regression",
    "ridge regression, scaled genes",
)
JOINT, RNA, ZERO_SHOT = "joint embedding", "RNA alone, same model", "RNA alone, weights as they are"
PCA_RNA, PCA_BOTH, TOTALVI = "PCA of RNA", "PCA of RNA and PCA of proteins", "totalVI"
LABELS = {"proteins": "clusters of proteins", "rna": "clusters of RNA"}
SCORES = ("accuracy", "NMI", "silhouette")


def data_sets(folder: Path | None) -> Iterator[tuple[str, tuple[str, ...], AnnData, str]]:
    """Name, files of the same study, cells, and key of the proteins."""
    import pandas as pd
    import scanpy as sc

    if folder is None:  # to see that all runs
        adata = sc.datasets.pbmc68k_reduced().raw.to_adata()[:150].copy()
        rate = np.exp(1 + adata[:, ["CD3D", "CD79A", "LYZ", "NKG7"]].X.toarray())
        counts = np.random.default_rng(0).poisson(rate)
        adata.obsm["protein"] = pd.DataFrame(counts, adata.obs_names, ["CD3", "CD79a", "CD14", "CD56"])
        yield "made proteins", (), adata, "protein"
        return
    for name, (file, key) in FILES.items():
        if (folder / file).exists():
            yield name, (file,), sc.read_h5ad(folder / file), key


def split_of(n: int, seed: int) -> Array:
    """``train``, ``validation`` or ``test`` for each cell."""
    order = np.random.default_rng(seed).permutation(n)
    split, n_test = np.full(n, "train", dtype=object), n // 5
    split[order[:n_test]], split[order[n_test : n_test + (n - n_test) // 10]] = "test", "validation"
    return split


def logged(adata: AnnData) -> AnnData:
    """The cells as logarithms."""
    import scanpy as sc

    found = adata.copy()
    if float(found.X.max()) > 30:
        sc.pp.normalize_total(found, target_sum=1e4)
        sc.pp.log1p(found)
    return found


def clusters(x: Array, n_components: int) -> Array:
    """Leiden clusters of some features, as text; components are those of scaled features."""
    import anndata as ad
    import scanpy as sc

    cells = ad.AnnData(np.asarray(x, dtype=np.float32))
    sc.pp.scale(cells, max_value=10)
    sc.pp.pca(cells, n_comps=min(n_components, x.shape[1] - 1))
    sc.pp.neighbors(cells, use_rep="X_pca")
    sc.tl.leiden(cells, resolution=0.8, flavor="igraph", n_iterations=-1, directed=False)
    return cells.obs["leiden"].to_numpy(dtype=str)


def variable_genes(adata: AnnData) -> Array:
    """Log-normalised expression of 1,000 variable genes, dense."""
    import scanpy as sc

    adata = logged(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=min(1000, adata.n_vars))
    x = adata[:, adata.var["highly_variable"]].X
    return np.asarray(x.toarray() if hasattr(x, "toarray") else x)


def components(x: Array, known: Array, n: int) -> Array:
    """Principal components of scaled features, fitted to some cells, of unit total variance."""
    from sklearn.decomposition import PCA

    std = x[known].std(axis=0)
    scaled = ((x - x[known].mean(axis=0)) / np.where(std > 1e-6, std, np.inf)).clip(-10, 10)
    found = PCA(min(n, scaled.shape[1], int(known.sum()) - 1), random_state=0).fit(scaled[known]).transform(scaled)
    return found / np.sqrt(found[known].var(axis=0).sum())


def total_vi(adata: AnnData, key: str, seed: int, most_seconds: float) -> dict[str, Array]:
    """Latent means of all cells by totalVI, trained on those that are not for tests, and how long that took."""
    import pandas as pd
    import scanpy as sc
    import scvi

    from scgalore.data.proteins import read_proteins

    measured = read_proteins(adata, key)
    cells = adata.copy()
    cells.obsm["counts"] = pd.DataFrame(measured.counts.toarray(), cells.obs_names, measured.names)
    if float(cells.X.max()) <= 30:
        cells.X = np.round(np.expm1(np.asarray(cells.X.todense() if hasattr(cells.X, "todense") else cells.X)))
    most = min(4000, cells.n_vars)
    top = sc.pp.highly_variable_genes(logged(cells), n_top_genes=most, inplace=False)["highly_variable"].to_numpy(bool)
    cells = cells[:, top].copy()
    scvi.settings.seed = seed
    known = cells[split_of(adata.n_obs, seed) != "test"].copy()
    scvi.model.TOTALVI.setup_anndata(known, protein_expression_obsm_key="counts")
    model = scvi.model.TOTALVI(known)
    limit, begun = {"seconds": max(1, int(most_seconds))}, time.perf_counter()
    model.train(accelerator="cpu", enable_progress_bar=False, max_time=limit)
    seconds = time.perf_counter() - begun
    return {"embedding": model.get_latent_representation(cells), "seconds": np.array(seconds)}


def ridges(adata: AnnData, truth: Array, known: Array) -> dict[str, Array]:
    """Proteins of all cells by scikit-learn's ridge regressions, with the strength of each protein by leave-one-out."""
    from sklearn.linear_model import RidgeCV

    x = logged(adata).X
    x = np.asarray(x.toarray() if hasattr(x, "toarray") else x, dtype=np.float64)
    found = {}
    for name in (PLAIN, SCALED):
        std = x[known].std(axis=0)
        scale = np.where(std > 1e-6, std if name == SCALED else 1.0, np.inf)
        rows = (x - x[known].mean(axis=0)) / scale
        regression = RidgeCV(alphas=np.logspace(-1, 6, 29), alpha_per_target=True)
        found[name] = regression.fit(rows[known], truth[known]).predict(rows)
    return found


def one_case(weights: str, adata: AnnData, key: str, seed: int, training: dict[str, Any]) -> dict[str, Array]:
    """Predicted proteins and embeddings of all cells, by method."""
    import scgalore as sg

    cells, split = adata.copy(), split_of(adata.n_obs, seed)
    cells.obs["part"] = split
    begun = time.perf_counter()
    model = sg.tl.finetune(cells, weights, protein=key, split_key="part", rng=seed, **training)
    seconds = time.perf_counter() - begun
    truth, known = model.memory.measured_in(sg.data.proteins.read_proteins(adata, key)), split != "test"
    proteins = {MODEL: cells.obsm["scgpt_protein"], ALONE: model.memory.values(model.memory.prior.predict(adata, sg.data.reading.AS_IT_IS))}  # fmt: skip
    proteins |= ridges(adata, truth, known)
    embeddings = {JOINT: cells.obsm["X_scGPT_multi"]}
    for name, of in ((RNA, model), (ZERO_SHOT, weights)):
        sg.tl.embed(cells, of, accelerator="cpu", key_added="own")
        embeddings[name] = cells.obsm["own"]
    rna, prot = components(variable_genes(adata), known, 30), components(truth, known, 15)
    embeddings |= {PCA_RNA: rna, PCA_BOTH: np.hstack([rna, prot])}
    used = {
        "seconds": np.array(seconds),
        "corrected": np.array(model.memory.corrects),
        "truth": truth,
        "split": split.astype(str),
    }
    named = {f"protein/{name}": values for name, values in proteins.items()}
    return {**used, **named, **{f"embedding/{name}": values for name, values in embeddings.items()}}


def kept(name: str, make: Callable[[], dict[str, Array]], *, keep: bool) -> dict[str, Array]:
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


def scores_of(x: Array, labels: Array, split: Array) -> tuple[float, float, float]:
    """Accuracy of the neighbours of test cells, NMI with k-means, silhouette."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score, silhouette_score
    from sklearn.neighbors import KNeighborsClassifier

    names, sizes = np.unique(labels, return_counts=True)
    some = np.isin(labels, names[sizes >= 10])
    x, labels, test = x[some], labels[some], split[some] == "test"
    accuracy = KNeighborsClassifier(15).fit(x[~test], labels[~test]).score(x[test], labels[test])
    found = KMeans(len(np.unique(labels)), n_init=10, random_state=0).fit_predict(x)
    return float(accuracy), float(normalized_mutual_info_score(labels, found)), float(silhouette_score(x, labels))


def mean_and_error(values: Array) -> tuple[float, float]:
    """Mean over seeds, and its standard error."""
    values = np.asarray(values, dtype=float)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    from scgalore.data.proteins import read_proteins
    from scgalore.tasks.proteins import pearson

    arguments_of = parser(__doc__)
    arguments_of.add_argument("--seeds", type=int, default=3, help="splits of each data set")
    arguments = arguments_of.parse_args(argv)
    report = begin("proteins", "RNA and proteins: next to ridge regression, PCA and totalVI", arguments)
    training = {**TRAINING, "max_epochs": 1} if arguments.quick else TRAINING
    seeds = range(1 if arguments.quick else arguments.seeds)
    folder = None if arguments.quick else arguments.data
    gains, below, of_joint = [], [], []
    for name, files, adata, key in data_sets(folder):
        weights = weights_without(name, files, arguments.data) if files else "scgpt-mini"
        found = []
        for seed in seeds:
            make = partial(one_case, weights, adata, key, seed, training)
            one = kept(f"{name}, seed {seed}", make, keep=not arguments.quick)
            make = partial(total_vi, adata, key, seed, float(one["seconds"]))
            other = kept(f"{name}, seed {seed}, totalVI", make, keep=not arguments.quick)
            found.append({**one, f"embedding/{TOTALVI}": other["embedding"], "totalVI": other["seconds"]})
        correlations = {
            method: np.stack(
                [
                    pearson(one[f"protein/{method}"][test], one["truth"][test])
                    for one in found
                    for test in [one["split"] == "test"]
                ]
            )
            for method in (MODEL, ALONE, PLAIN, SCALED)
        }
        rows = []
        for method, values in correlations.items():
            mean, error = mean_and_error(np.nanmean(values, axis=1))
            paired = np.nanmean(values - correlations[ALONE], axis=1)
            gain, gain_error = mean_and_error(paired)
            rows.append(
                (method, f"{mean:.3f} ± {error:.3f}", "" if method == ALONE else f"{gain:+.4f} ± {gain_error:.4f}")
            )
            report.measured[f"{name}, {method}"] = mean
            if method == MODEL:
                gains += paired.tolist()
                of_protein = np.nanmean(values - correlations[ALONE], axis=0)
                below += [f"{name}: {of_protein.min():+.3f}"] if of_protein.min() < 0 else []
        corrected = ", ".join(f"{int(one['corrected'].sum())} of {len(one['corrected'])}" for one in found)
        n_test = int((found[0]["split"] == "test").sum())
        title = f"{name}: Pearson of proteins from RNA, mean over proteins, {n_test} test cells, {len(found)} seeds (± standard error over seeds). The network corrects {corrected} proteins."
        report.table(title, ("method", "Pearson", "minus its ridge regression alone"), rows)
        names = read_proteins(adata, key).names
        rows = []
        for place in np.argsort(-np.nanmean(correlations[PLAIN], axis=0)):
            mine, plain = (correlations[method][:, place] for method in (MODEL, PLAIN))
            of_both, gain = (mean_and_error(values) for values in (mine, mine - plain))
            n_corrected = sum(bool(one["corrected"][place]) for one in found)
            shown = (f"{of_both[0]:.3f}", f"{plain.mean():.3f}", f"{gain[0]:+.3f} ± {gain[1]:.3f}", f"{n_corrected}")
            rows.append((names[place], *shown))
        header = ("protein", MODEL, PLAIN, "difference", "corrected, of the seeds")
        report.table(f"{name}: Pearson of each protein, mean over {len(found)} seeds", header, rows)
        proteins, genes = found[0]["truth"], variable_genes(adata)
        labels = {"proteins": clusters(proteins, 15), "rna": clusters(genes, 30)}
        rows, means = [], {}
        for method in (JOINT, RNA, ZERO_SHOT, PCA_RNA, PCA_BOTH, TOTALVI):
            shown = []
            for kind, of_cells in labels.items():
                scores = np.array([scores_of(one[f"embedding/{method}"], of_cells, one["split"]) for one in found])
                means[method, kind] = scores.mean(axis=0)
                shown += [f"{mean_and_error(column)[0]:.3f} ± {mean_and_error(column)[1]:.3f}" for column in scores.T]
            rows.append((method, *shown))
            report.measured[f"{name}, {method}"] = {
                kind: dict(zip(SCORES, means[method, kind].tolist(), strict=True)) for kind in labels
            }
        of_joint.append(
            f"{name} {means[JOINT, 'proteins'][0]:.3f} ({means[RNA, 'proteins'][0]:.3f}, {means[TOTALVI, 'proteins'][0]:.3f})"
        )
        took = [np.mean([one[of] for one in found]) for of in ("seconds", "totalVI")]
        header = ("embedding", *(f"{what}: {score}" for what in LABELS.values() for score in SCORES))
        report.table(
            f"{name}: embeddings. Fine-tuning took {took[0]:.0f} s, totalVI {took[1]:.0f} s, on a core that others used, too.",
            header,
            rows,
        )
    mean, error = mean_and_error(np.array(gains))
    report.claim(
        "Pearson of held-out cells, mean over proteins, minus its ridge regression alone",
        "not below 0",
        f"{mean:+.4f} ± {error:.4f}",
        holds=mean >= 0,
    )
    report.claim(
        "lowest difference of a protein, mean over seeds", "reported", ", ".join(below) or "none below 0", holds=None
    )
    report.claim(
        "accuracy on clusters of proteins, joint embedding (RNA alone, totalVI)",
        "reported",
        ", ".join(of_joint),
        holds=None,
    )
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
