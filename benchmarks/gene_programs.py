"""Programs of genes in blood: enrichment in four groups of genes, by embeddings of a model and by co-expression alone.

``--data`` names a folder with ``citeseq_500cells_citefuse.h5ad`` (500 cells, 14,919 genes); without, cells that come with scanpy are taken. The genes that ten cells express are clustered
by the bundled model's static and contextual embeddings, by contextual embeddings of random weights, and by the principal axes of these cells'
log-normalised expression, each gene scaled, with the same neighbours and Leiden. The bundled model's gene embeddings were made from
co-expression, of these cells too, and from annotation, scgalore's gene sets among it: what it groups, it was told in part.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from benchmarks.harness import begin, parser, results_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from anndata import AnnData
    from benchmarks.harness import Report

CELLS = "citeseq_500cells_citefuse.h5ad"
RESOLUTIONS = (1.0, 5.0, 20.0)
MIN_CELLS, N_AXES, N_NEIGHBORS, MIN_GENES = 10, 30, 10, 5
CYTOTOXIC = "NKG7 GNLY PRF1 GZMA GZMB GZMH GZMK GZMM CST7 CTSW KLRD1 KLRB1 KLRF1 KLRC1 FGFBP2 SPON2 HOPX"


def groups_of_genes(names: Sequence[str]) -> dict[str, list[str]]:
    """Genes of four programs that blood has."""
    import scgalore as sg

    return {
        "ribosomal": [name for name in names if re.fullmatch(r"RP[LS]\d+[AXYL]?\d*", name)],
        "MHC-II": [name for name in names if name.startswith("HLA-D") or name == "CD74"],
        "cytotoxic": CYTOTOXIC.split(),
        "cell cycle": list(sg.genes.get_gene_set("cell_cycle").genes),
    }


def embeddings(adata: AnnData) -> Iterator[tuple[str, AnnData]]:
    """Genes by dimensions, by name."""
    import anndata as ad
    import scanpy as sc

    import scgalore as sg

    bundled = sg.model.load("scgpt-mini")
    yield "static, bundled", sg.tl.gene_embeddings(adata, bundled)
    yield "contextual, bundled", sg.tl.gene_embeddings(adata, bundled, kind="contextual")
    untrained = sg.model.SCGPT.from_config(bundled.network.config, bundled.vocab, rng=0)
    yield "contextual, random weights", sg.tl.gene_embeddings(adata, untrained, kind="contextual")
    logged = adata.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    x = logged.X.toarray().T
    x = (x - x.mean(axis=1, keepdims=True)) / np.maximum(x.std(axis=1, keepdims=True), 1e-6)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    yield "principal axes of these cells", ad.AnnData((u * s)[:, :N_AXES].astype(np.float32), obs=adata.var[[]].copy())


def best_programs(genes: AnnData, sets: dict[str, list[str]], resolution: float) -> pd.DataFrame:
    """The program that each group of genes is most enriched in."""
    from scgalore.networks.programs import enrichment
    from scgalore.tl._gene_programs import _clusters

    clusters = _clusters(np.asarray(genes.X), resolution, N_NEIGHBORS, MIN_GENES, 0)
    members = {name: np.flatnonzero(genes.obs_names.isin(wanted)) for name, wanted in sets.items()}
    found = enrichment(clusters, int(clusters.max()) + 1, members)
    return found.drop_duplicates("gene_set").set_index("gene_set")


def report_programs(report: Report, adata: AnnData) -> None:
    """One row for each embedding and resolution."""
    expressed = np.asarray((adata.X > 0).sum(axis=0)).ravel() >= MIN_CELLS
    adata = adata[:, expressed].copy()
    sets = groups_of_genes(adata.var_names)
    every = dict(embeddings(adata))
    shared = adata.var_names
    for genes in every.values():
        shared = shared.intersection(genes.obs_names, sort=False)
    counts = {name: len(shared.intersection(genes)) for name, genes in sets.items()}
    report.note(f"{len(shared):,} genes; of the groups: {', '.join(f'{n} {name}' for name, n in counts.items())}.")
    rows, below = [], {}
    for name, genes in every.items():
        for resolution in RESOLUTIONS:
            best = best_programs(genes[shared].copy(), sets, resolution)
            fdr = {group: float(best["fdr"].get(group, 1.0)) for group in sets}
            below[name, resolution] = all(value < 1e-5 for value in fdr.values())
            report.measured[f"{name}, {resolution:g}"] = fdr
            shown = [
                f"{fdr[group]:.0e} ({best.loc[group, 'n_overlap']} of {best.loc[group, 'n_program']})"
                if group in best.index
                else "none"
                for group in sets
            ]
            rows.append([name, f"{resolution:g}", *shown])
    report.table(
        "False discovery rate of the best program (its genes of the group)", ["embedding", "resolution", *sets], rows
    )
    report.claim(
        "the four groups are enriched below 1e-5, static embeddings of the bundled model, resolution 5",
        "all four",
        "all four" if below["static, bundled", 5.0] else "not all",
        holds=below["static, bundled", 5.0],
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    report = begin("gene_programs", "Programs of genes", arguments)
    import scanpy as sc

    adata = (
        sc.datasets.pbmc68k_reduced().raw.to_adata() if arguments.data is None else sc.read_h5ad(arguments.data / CELLS)
    )
    report_programs(report, adata[:100].copy() if arguments.quick else adata)
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
