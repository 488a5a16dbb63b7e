"""Zero-shot embeddings of ``scgpt-mini`` next to PCA: cells whose data set the weights have not seen.

For each data set, the weights are made again without it (and without other files of the same study), and embed its cells.
Scored is the accuracy of 15 nearest neighbours, five folds, five seeds, and the silhouette of the labels. PCA is computed
on the cells that are scored, 50 components of log-normalised expression, with and without unit norm; the embedding of the
model has unit norm. Labels with fewer than five cells are left out. pbmc68k is in no training set at all, so the weights
that ship are scored on it as they are. ``--before FOLDER`` adds other weights, such as those of an earlier version.

FOLDER of ``--data`` holds the files that ``scripts/pretrain_scgpt_mini.py`` lists; without it, only pbmc68k is scored.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from benchmarks.harness import begin, parser, results_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from anndata import AnnData
    from numpy.typing import NDArray

SCRIPT = Path(__file__).parents[1] / "scripts/pretrain_scgpt_mini.py"
NEIGHBOURS, FOLDS, SEEDS, SMALLEST = 15, 5, range(5), 5


@dataclass(frozen=True)
class Scored:
    """A data set with labels: files that training leaves out (the first holds the cells), and where its labels are."""

    title: str
    files: tuple[str, ...]
    label: str
    protein: str = ""
    species: str = "human"
    symbols: str | None = None
    control: tuple[str, str] | None = None


KANG = ("kang18_pbmc_ifnb_muscat.h5ad", "kang18_pbmc_ifnb_9015genes.h5ad")
SETS = (
    Scored("pbmc68k, 10 types", (), "bulk_labels"),
    Scored("PBMC in three assays, 9 types", ("pbmc_3assays_symphony.h5ad",), "cell_type"),
    Scored("Kang, 5 types", KANG, "cluster_id"),
    Scored("Kang, interferon", KANG, "group_id"),
    Scored("CITE-seq, clusters of proteins", ("citeseq_500cells_citefuse.h5ad",), "protein_cluster", "protein"),
    Scored(
        "10k PBMC, clusters of proteins",
        ("pbmc_10k_protein_v3_200cells.h5ad",),
        "protein_cluster",
        "protein_expression",
    ),
    Scored(
        "mouse brain, cell types",
        ("mouse_brain_1000cells.h5ad",),
        "cell_type",
        species="mouse",
        symbols="gene_name",
    ),
    Scored("four cell lines", ("perturbench_devel.h5ad",), "cell_type", control=("condition", "control")),
)


def labelled(scored: Scored, folder: Path) -> AnnData:
    """Log-normalised cells with labels of at least ``SMALLEST`` cells each."""
    import scanpy as sc

    if scored.files:
        adata = sc.read_h5ad(folder / scored.files[0])
    else:
        adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
        adata.obs = sc.datasets.pbmc68k_reduced().obs
    if scored.control:
        adata = adata[adata.obs[scored.control[0]] == scored.control[1]].copy()
    if scored.protein:
        adata.obs[scored.label] = protein_clusters(np.asarray(adata.obsm[scored.protein], dtype=np.float64))
    if not np.any(np.asarray(adata.X[:50].sum(axis=1)).ravel() % 1):
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
    adata.obs[scored.label] = adata.obs[scored.label].astype(str)
    counts = adata.obs[scored.label].value_counts()
    return adata[adata.obs[scored.label].isin(counts.index[counts >= SMALLEST])].copy()


def protein_clusters(counts: NDArray[np.float64]) -> NDArray[np.str_]:
    """Leiden clusters of cells by their surface proteins alone, centred log-ratios."""
    import anndata as ad
    import scanpy as sc

    logs = np.log1p(counts)
    proteins = ad.AnnData((logs - logs.mean(axis=1, keepdims=True)).astype(np.float32))
    sc.pp.scale(proteins, max_value=5)
    sc.pp.pca(proteins, n_comps=min(15, proteins.n_vars - 1))
    sc.pp.neighbors(proteins, use_rep="X_pca")
    sc.tl.leiden(proteins, resolution=0.5, flavor="igraph", n_iterations=-1, directed=False, random_state=0)
    return proteins.obs["leiden"].astype(str).to_numpy()


def score(embedding: NDArray[np.floating], labels: NDArray[np.str_]) -> tuple[float, float]:
    """Accuracy of nearest neighbours, and silhouette."""
    from sklearn.metrics import silhouette_score
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    accuracy = np.mean(
        [
            cross_val_score(
                KNeighborsClassifier(NEIGHBOURS),
                embedding,
                labels,
                cv=StratifiedKFold(FOLDS, shuffle=True, random_state=seed),
            ).mean()
            for seed in SEEDS
        ]
    )
    return float(accuracy), float(silhouette_score(embedding, labels))


def pca(adata: AnnData) -> NDArray[np.floating]:
    """Compute 50 components of all genes."""
    from sklearn.decomposition import PCA

    values = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
    return PCA(50, random_state=0).fit_transform(values)


def embedded(adata: AnnData, model: str | Path, scored: Scored) -> NDArray[np.floating]:
    """Embed the cells; many genes of an older vocabulary may be missing."""
    import scgalore as sg

    cells = adata.copy()
    sg.tl.embed(cells, str(model), species=scored.species, gene_symbols=scored.symbols, min_matched=0.0)
    return cells.obsm["X_scGPT"]


def script() -> ModuleType:
    """Load the script that makes the weights."""
    spec = importlib.util.spec_from_file_location("pretrain_scgpt_mini", SCRIPT)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules[spec.name] = module  # type: ignore[union-attr]  # where its dataclasses look for their types
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    own = parser(__doc__)
    own.add_argument("--before", type=Path, help="folder of other weights to score")
    arguments = own.parse_args(argv)
    report = begin("bundled_model", "Zero-shot embeddings of the bundled model, next to PCA", arguments)
    make = script().make
    rows: list[tuple[str, ...]] = []
    found: dict[str, list[tuple[float, float]]] = {}
    for scored in SETS[:1] if arguments.quick or arguments.data is None else SETS:
        adata = labelled(scored, arguments.data)
        labels = adata.obs[scored.label].to_numpy()
        with tempfile.TemporaryDirectory() as folder:
            model: str | Path = "scgpt-mini"
            if scored.files:
                model = Path(folder) / "model"
                make(arguments.data, without=scored.files)[0].save(model)
            methods = {"scgpt-mini, not trained on these cells": embedded(adata, model, scored)}
        if arguments.before is not None:
            methods["other weights"] = embedded(adata, arguments.before, scored)
        components = pca(adata)
        methods["PCA of these cells"] = components
        methods["PCA of these cells, unit norm"] = components / np.linalg.norm(components, axis=1, keepdims=True)
        for method, embedding in methods.items():
            accuracy, silhouette = score(embedding, labels)
            found.setdefault(method, []).append((accuracy, silhouette))
            rows.append((scored.title, method, f"{accuracy:.3f}", f"{silhouette:.2f}", str(len(labels))))
    means = {method: np.mean(scores, axis=0) for method, scores in found.items()}
    for method, (accuracy, silhouette) in means.items():
        rows.append(("mean", method, f"{accuracy:.3f}", f"{silhouette:.2f}", ""))
        report.measured[method] = {"accuracy": float(accuracy), "silhouette": float(silhouette)}
    report.table("Zero-shot, held out", ("cells", "embedding", "accuracy", "silhouette", "n"), rows)
    ours, theirs = means["scgpt-mini, not trained on these cells"], means["PCA of these cells"]
    report.claim(
        "accuracy and silhouette of the bundled model next to PCA, mean over data sets",
        "reported",
        f"accuracy {ours[0]:.3f} ({theirs[0]:.3f}), silhouette {ours[1]:.2f} ({theirs[1]:.2f})",
        holds=bool(np.isfinite([ours, theirs]).all()),
    )
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
