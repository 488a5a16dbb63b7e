"""Integration: scores of ``sg.tl.finetune(task="integration")`` next to principal components and Harmony, on real data.

Data are symphony's three assays, Kang's control and stimulated cells (the condition is the batch), and two CITE-seq files of blood
(CiteFuse and 10x), whose cells have labels by gates on their proteins and not by their RNA. Of each, some cells are drawn with each seed,
which is also that of the weights and of the training.

1. The defaults, from the bundled weights and from random ones, on all cells.
2. ``labels_key=`` with half of the labels hidden; scores are of the cells whose label was hidden.
3. An assay of symphony's that training has not seen: embedded as it is, and learned with ``adapter="lora"``.
4. The effect of the stimulus: how well the 15 nearest neighbours tell stimulated cells from others of their type, if the batch is the donor,
   if it is the condition, and if it is the condition and labels tell the conditions apart.
"""

from __future__ import annotations

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

SEEDS = (0, 1, 2)
N_CELLS = 600
TRAINING: dict[str, Any] = {"task": "integration", "max_epochs": 10, "max_length": 100, "accelerator": "cpu"}
PCA, HARMONY, BUNDLED, RANDOM = "PCA", "Harmony", "bundled weights", "random weights"
ALONE = "bundled weights, the network alone"
UNSEEN = "5p"
GATES = ("CD3", "CD4", "CD8", "CD14", "CD16", "CD56", "CD19")


# Data ----------------------------------------------------------------------------------------------------------------


def symphony(folder: Path) -> AnnData:
    """Three assays."""
    import anndata as ad

    adata = ad.read_h5ad(folder / "pbmc_3assays_symphony.h5ad")
    return named(adata, adata.obs["batch"], adata.obs["cell_type"])


def kang(folder: Path) -> AnnData:
    """Control and stimulated cells of two donors."""
    import anndata as ad

    adata = ad.read_h5ad(folder / "kang18_pbmc_ifnb_muscat.h5ad")
    return named(
        adata, adata.obs["group_id"], adata.obs["cluster_id"], donor=adata.obs["sample_id"].astype(str).str[-3:]
    )


def citeseq(folder: Path) -> AnnData:
    """Two CITE-seq files, with the cells that their proteins give one label, and the 2,000 genes that vary most."""
    import anndata as ad

    import scgalore as sg

    parts = []
    for name, file in (("CiteFuse", "citeseq_500cells_citefuse"), ("10x", "pbmc_10k_protein_v3_200cells")):
        adata = ad.read_h5ad(folder / f"{file}.h5ad")
        if "protein" in adata.obsm:
            proteins = adata.obsm["protein"][list(GATES)].to_numpy()
        else:
            columns = [str(one).split("_")[0].replace("CD8a", "CD8") for one in adata.uns["protein_names"]]
            proteins = np.asarray(adata.obsm["protein_expression"])[:, [columns.index(gate) for gate in GATES]]
        part = named(adata, np.full(adata.n_obs, name), gated(proteins))
        part.obs_names = name + part.obs_names
        parts.append(part[part.obs["type"] != "none"])
    joint = ad.concat(parts, join="inner")
    sg.tl.select_genes(joint, 2000, "hvg", batch_key="batch")
    return joint[:, joint.var["selected"].to_numpy(bool)].copy()


def named(adata: AnnData, batch: Any, types: Any, **more: Any) -> AnnData:
    """Cells with ``obs["batch"]`` and ``obs["type"]`` and no other columns."""
    from anndata import AnnData

    columns = {"batch": batch, "type": types, **more}
    obs = pd.DataFrame({name: np.asarray(column).astype(str) for name, column in columns.items()}, adata.obs_names)
    return AnnData(adata.X.astype(np.float32), obs=obs, var=pd.DataFrame(index=adata.var_names))


def gated(proteins: NDArray[Any]) -> NDArray[Any]:
    """Type of each cell by its proteins, ``"none"`` where the gates contradict each other; a gate is a mixture of two normals."""
    from sklearn.mixture import GaussianMixture

    x = np.log1p(proteins.astype(float))
    x -= x.mean(axis=1, keepdims=True)
    has = {}
    for column, gate in zip(x.T[:, :, None], GATES, strict=True):
        mixture = GaussianMixture(2, random_state=0).fit(column)
        has[gate] = mixture.predict(column) == mixture.means_[:, 0].argmax()
    types = np.full(len(x), "none", dtype=object)
    types[has["CD56"] & ~has["CD3"]] = "NK"
    types[has["CD14"]] = "monocyte"
    types[has["CD19"] & ~has["CD3"] & ~has["CD14"]] = "B"
    t_cell = has["CD3"] & ~has["CD19"] & ~has["CD14"]
    types[t_cell & has["CD4"] & ~has["CD8"]] = "CD4 T"
    types[t_cell & has["CD8"] & ~has["CD4"]] = "CD8 T"
    return types


DATA = {"symphony": symphony, "Kang": kang, "CITE-seq": citeseq}


def data_sets(folder: Path | None, *, quick: bool) -> dict[str, AnnData]:
    """All that there are; the cells that scanpy ships, in made batches, where there are none."""
    import scanpy as sc

    found = {}
    for name, read in DATA.items() if folder else ():
        try:
            found[name] = read(folder)
        except FileNotFoundError as error:
            say(f"{name} is skipped: {error}")
    if not found:
        reduced = sc.datasets.pbmc68k_reduced()
        found["pbmc68k"] = named(reduced.raw.to_adata(), reduced.obs["phase"], reduced.obs["bulk_labels"])
    return {name: drawn(adata, 0, 150) for name, adata in list(found.items())[:1]} if quick else found


def drawn(adata: AnnData, seed: int, n: int = N_CELLS) -> AnnData:
    """Some cells."""
    rows = np.random.default_rng(seed).permutation(adata.n_obs)[:n]
    return adata[np.sort(rows)].copy()


# Models --------------------------------------------------------------------------------------------------------------


def weights_of(name: str, seed: int) -> Any:
    """The bundled model, or one of its sizes with random weights."""
    import scgalore as sg

    bundled = sg.model.load("scgpt-mini")
    return sg.model.SCGPT.from_config(bundled.network.config, bundled.vocab, rng=seed) if name == RANDOM else bundled


def fitted(adata: AnnData, weights: str, seed: int, training: dict[str, Any], **options: Any) -> Any:
    """A fine-tuned model; its embeddings are in ``obsm``, under ``key_added``."""
    import scgalore as sg

    return sg.tl.finetune(
        adata, weights_of(weights, seed), **{"batch_key": "batch", **training, **options}, rng=seed, test_size=0
    )


def scored(adata: AnnData, embeddings: Sequence[str], seed: int, rows: NDArray[np.bool_] | None = None) -> pd.DataFrame:
    """Scores next to the baselines; of some cells, the baselines are computed on all of them first."""
    import scgalore as sg

    if rows is not None:
        adata = adata[rows].copy()
    sg.tl.evaluate_integration(adata, "batch", "type", embeddings=list(embeddings), rng=seed)
    return sg.get.integration_scores(adata)


def add_tables(report: Report, name: str, title: str, tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Mean and standard deviation over the seeds of the three means, and of every score in the record."""
    mean, deviation = (pd.concat(tables).groupby(level=0, sort=False).agg(how) for how in ("mean", "std"))
    shown = ["bio", "batch", "total", "nmi", "ari", "asw_label", "clisi", "bras", "ilisi", "kbet", "graph_connectivity"]
    shown += ["isolated_labels", "pcr_comparison"]
    rows = [
        (
            row,
            *(
                f"{mean.loc[row, key]:.3f}" + (f" ± {deviation.loc[row, key]:.3f}" if key in shown[:3] else "")
                for key in shown
            ),
        )
        for row in mean.index
    ]
    report.table(f"{title} {len(tables)} seeds.", ("embedding", *shown), rows)
    report.measured[name] = {"mean": mean.to_dict("index"), "sd": deviation.to_dict("index")}
    return mean


# Parts ---------------------------------------------------------------------------------------------------------------


def defaults(report: Report, name: str, adata: AnnData, seeds: Sequence[int], training: dict[str, Any]) -> None:
    """The defaults, and the network alone."""
    tables = []
    for seed in seeds:
        cells = drawn(adata, seed)
        for weights in (BUNDLED, RANDOM):
            model = fitted(cells, weights, seed, training, key_added=weights)
            if weights == BUNDLED:
                cells.obsm[ALONE] = model.run(
                    model.cells(cells, rng=seed).with_conditions(batches=np.zeros(cells.n_obs, dtype=np.int64)),
                    accelerator="cpu",
                ).embedding
        tables.append(scored(cells, (BUNDLED, RANDOM, ALONE), seed))
        say(f"{name}, seed {seed}: {tables[-1][['bio', 'batch']].round(3).to_dict('index')}")
    title = f"**{name}**: {min(N_CELLS, adata.n_obs)} cells, {adata.obs['batch'].nunique()} batches."
    mean = add_tables(report, name, title, tables)
    for weights in (BUNDLED, RANDOM):
        row, pca, harmony = (mean.loc[key] for key in (weights, PCA, HARMONY))
        report.claim(
            f"{name}, {weights}: mean of the label scores",
            "no lower than PCA's",
            f"{row['bio']:.3f} ({pca['bio']:.3f}; Harmony {harmony['bio']:.3f})",
            holds=bool(row["bio"] >= pca["bio"]),
        )
        report.claim(
            f"{name}, {weights}: mean of the batch scores",
            "above PCA's and no more than 0.02 below Harmony's",
            f"{row['batch']:.3f} ({pca['batch']:.3f}; Harmony {harmony['batch']:.3f})",
            holds=bool(row["batch"] > pca["batch"] and row["batch"] >= harmony["batch"] - 0.02),
        )


def with_labels(report: Report, name: str, adata: AnnData, seeds: Sequence[int], training: dict[str, Any]) -> None:
    """Half of the labels hidden."""
    tables = []
    for seed in seeds:
        cells = drawn(adata, seed)
        hidden = np.random.default_rng(seed).random(cells.n_obs) < 0.5
        cells.obs["known"] = cells.obs["type"].where(~hidden)
        fitted(cells, BUNDLED, seed, training, key_added="without labels")
        fitted(cells, BUNDLED, seed, training, key_added="with labels", labels_key="known")
        tables.append(scored(cells, ("without labels", "with labels"), seed, hidden))
        say(f"{name}, labels, seed {seed}: {tables[-1][['bio', 'batch']].round(3).to_dict('index')}")
    title = f"**{name}**, the half of the cells whose label was hidden from training."
    mean = add_tables(report, f"{name}, labels", title, tables)
    report.claim(
        f"{name}: mean of the label scores with half of the labels",
        "above that without labels",
        f"{mean.loc['with labels', 'bio']:.3f} ({mean.loc['without labels', 'bio']:.3f})",
        holds=bool(mean.loc["with labels", "bio"] > mean.loc["without labels", "bio"]),
    )


def unseen(report: Report, adata: AnnData, seeds: Sequence[int], training: dict[str, Any]) -> None:
    """An assay that training has not seen."""
    import scgalore as sg

    tables = []
    for seed in seeds:
        cells = drawn(adata, seed)
        is_query = (cells.obs["batch"] == UNSEEN).to_numpy()
        reference, query = cells[~is_query].copy(), cells[is_query].copy()
        fitted(cells, BUNDLED, seed, training, key_added="trained on all")
        model = fitted(reference, BUNDLED, seed, training)
        sg.tl.embed(cells, model, batch_key="batch", key_added="embedded", accelerator="cpu")
        lora = {**training, "adapter": "lora", "batch_key": "batch"}
        model = sg.tl.finetune(query, model, **lora, rng=seed, test_size=0)
        sg.tl.embed(cells, model, batch_key="batch", key_added="learned with LoRA", accelerator="cpu")
        moved = np.abs(cells.obsm["learned with LoRA"] - cells.obsm["embedded"])[~is_query].max()
        tables.append(scored(cells, ("trained on all", "embedded", "learned with LoRA"), seed))
        say(f"unseen, seed {seed}: moved {moved:.2g}; {tables[-1][['bio', 'batch']].round(3).to_dict('index')}")
    title = f"**symphony**, of which training has not seen the assay {UNSEEN}; PCA and Harmony know all cells."
    add_tables(report, "unseen", title, tables)
    report.claim(
        "reference cells after a query was learned",
        "embedded as before",
        f"moved by {moved:.1g}",
        holds=bool(moved < 1e-4),
    )


def told_apart(x: NDArray[Any], condition: NDArray[Any], types: NDArray[Any]) -> float:
    """Balanced accuracy of the vote of the 15 nearest cells of the type, the cell left out, mean over types."""
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.neighbors import NearestNeighbors

    found = []
    for name in np.unique(types):
        rows, own = np.flatnonzero(types == name), condition[types == name] == condition[0]
        near = NearestNeighbors(n_neighbors=min(16, len(rows))).fit(x[rows]).kneighbors(x[rows])[1][:, 1:]
        found.append(balanced_accuracy_score(own, own[near].mean(axis=1) > 0.5))
    return float(np.mean(found))


def effect(report: Report, adata: AnnData, seeds: Sequence[int], training: dict[str, Any]) -> None:
    """What is left of the effect of the stimulus."""
    import scgalore as sg

    rows: dict[str, list[float]] = {}
    for seed in seeds:
        cells = drawn(adata, seed)
        condition, types = cells.obs["batch"].to_numpy(str), cells.obs["type"].to_numpy(str)
        cells.obs["type and condition"] = cells.obs["type"] + " " + cells.obs["batch"]
        fitted(cells, BUNDLED, seed, training, key_added="donor", batch_key="donor")
        fitted(cells, BUNDLED, seed, training, key_added="condition")
        labelled = {"labels_key": "type and condition", "key_added": "labelled"}
        fitted(cells, BUNDLED, seed, training, **labelled)
        sg.tl.embed(cells, "scgpt-mini", key_added="zero-shot", accelerator="cpu")
        names = {
            "zero-shot": "bundled weights, not fine-tuned",
            "donor": "batch: donor",
            "condition": "batch: condition",
            "labelled": "batch: condition, labels: type and condition",
        }
        for key, name in names.items():
            rows.setdefault(name, []).append(told_apart(np.asarray(cells.obsm[key]), condition, types))
    report.table(
        "**Kang**: balanced accuracy with which the 15 nearest cells of its type tell whether a cell was stimulated; 0.5 is no effect. "
        f"{len(seeds)} seeds.",
        ("embedding", "accuracy"),
        [
            (name, f"{np.mean(found):.3f} ± {np.std(found, ddof=1) if len(found) > 1 else 0:.3f}")
            for name, found in rows.items()
        ],
    )
    report.measured["effect"] = rows
    kept, taken = np.mean(rows["batch: condition, labels: type and condition"]), np.mean(rows["batch: condition"])
    report.claim(
        "effect of the stimulus where labels tell it apart",
        "kept, and taken out where it is the batch",
        f"{kept:.3f} and {taken:.3f}",
        holds=bool(kept > 0.9 and taken < 0.7),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    report = begin("integration", "Integration of batches", arguments)
    quick = arguments.quick
    seeds, training = (SEEDS[:1], {**TRAINING, "max_epochs": 1, "max_length": 30}) if quick else (SEEDS, TRAINING)
    found = data_sets(arguments.data, quick=quick)
    for name, adata in found.items():
        defaults(report, name, adata, seeds, training)
    for name, adata in found.items():
        with_labels(report, name, adata, seeds, training)
    if "symphony" in found:
        unseen(report, found["symphony"], seeds, training)
    if "Kang" in found:
        effect(report, found["Kang"], seeds, training)
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
