"""A number for each cell, predicted by a fine-tuned model and by a ridge regression on the same genes and cells, several seeds.

The number is the interferon score of peripheral blood cells (Kang et al. 2018, half of them stimulated with interferon beta): the
mean log-normalised expression of the interferon-alpha hallmark genes. These genes are removed from the input of both sides, so
that the score has to be predicted from the other genes. Without the file: the same score of the cells that scanpy ships.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from benchmarks.harness import begin, parser, results_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

FILE = "kang18_pbmc_ifnb_muscat.h5ad"
GENE_SET = "hallmark_interferon_alpha_response"
SEEDS = (0, 1, 2)
METRICS = {"r2": "R2", "spearman": "Spearman", "mae": "mean absolute error"}
TRAINING = {"max_epochs": 20, "batch_size": 16, "lr": 2e-3, "accelerator": "cpu"}


def scored_cells(path: Path | None) -> tuple[AnnData, int]:
    """Log-normalised cells with ``obs["score"]``, without the genes of the score, and the number of these."""
    import scanpy as sc

    import scgalore as sg

    if path is None:
        adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    else:
        adata = sc.read_h5ad(path)
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
    genes = adata.var_names.isin(sg.genes.get_gene_set(GENE_SET).genes)
    adata.obs["score"] = np.asarray(adata[:, genes].X.mean(axis=1)).ravel()
    return adata[:, ~genes].copy(), int(genes.sum())


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    report = begin("regression", "A number for each cell, next to ridge regression", arguments)
    import scgalore as sg
    from scgalore.data.reading import AS_IT_IS
    from scgalore.tasks.baselines import expression_of, ridge
    from scgalore.tasks.value_scores import score_values

    path = None if arguments.data is None else arguments.data / FILE
    adata, n_genes = scored_cells(path if path is not None and path.exists() else None)
    truth = adata.obs["score"].to_numpy(np.float64)
    options = {**TRAINING, "max_epochs": 1} if arguments.quick else TRAINING
    seeds = SEEDS[:1] if arguments.quick else SEEDS
    rows, found = [], {}
    for seed in seeds:
        cells = adata.copy()
        model = sg.tl.finetune(cells, "scgpt-mini", values_key="score", test_size=0.2, rng=seed, **options)
        split = model.split
        predicted = {
            "scgpt-mini + galore": cells.obs["scgpt_value"].to_numpy(np.float64),
            "ridge regression": ridge(expression_of(cells, AS_IT_IS), truth, split),
        }
        for method, values in predicted.items():
            scores = score_values(values[split.test], truth[split.test])
            found.setdefault(method, []).append(scores)
            rows.append((str(seed), method, *(f"{scores[name]:.3f}" for name in METRICS), str(len(split.test))))
    for method, of_method in found.items():
        table = np.array([[scores[name] for name in METRICS] for scores in of_method])
        spread = table.std(axis=0, ddof=1) if len(table) > 1 else np.zeros(len(METRICS))
        mean = [f"{m:.3f} ± {s:.3f}" for m, s in zip(table.mean(axis=0), spread, strict=True)]
        rows.append((f"mean ± sd of {len(table)}", method, *mean, ""))
        report.measured[method] = dict(zip(METRICS, table.mean(axis=0).tolist(), strict=True))
    title = f"{adata.n_obs:,} cells, {adata.n_vars:,} genes without the {n_genes} of the score; 20 % test cells."
    report.table(title, ("seed", "method", *METRICS.values(), "test cells"), rows)
    ours, theirs = (report.measured[name] for name in found)
    report.claim(
        "R2 and Spearman of the fine-tuned model next to ridge regression",
        "reported",
        ", ".join(f"{title} {ours[name]:.3f} ({theirs[name]:.3f})" for name, title in METRICS.items() if name != "mae"),
        holds=all(np.isfinite([ours["r2"], ours["spearman"]])),
    )
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
