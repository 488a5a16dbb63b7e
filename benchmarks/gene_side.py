"""Side processes of ``select_genes.py``: data, and ways to choose genes of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from benchmarks.side import serve

if TYPE_CHECKING:
    from anndata import AnnData

STATE: dict[str, Any] = {}


def synthetic(n_cells: int, n_genes: int, n_perturbations: int, share: float = 0.05) -> AnnData:
    """Counts of a screen as float32 CSR, ``share`` of them not zero; gene names are those of lists that ship with scgalore."""
    from anndata import AnnData

    from scgalore.genes import get_gene_set, list_gene_sets

    rng = np.random.default_rng(0)
    per_cell = int(share * n_genes)
    step = n_genes // per_cell
    starts = step * np.arange(per_cell, dtype=np.int32)
    indices = np.empty((n_cells, per_cell), dtype=np.int32)
    data = np.empty((n_cells, per_cell), dtype=np.float32)
    for row in range(0, n_cells, 1000):
        here = slice(row, min(row + 1000, n_cells))
        shape = data[here].shape
        indices[here] = starts + rng.integers(0, step, shape, dtype=np.int32)
        data[here] = 1 + rng.poisson(0.8, shape)
    x = sp.csr_matrix((data.ravel(), indices.ravel(), per_cell * np.arange(n_cells + 1)), shape=(n_cells, n_genes))
    known = {gene for name in list_gene_sets() for gene in get_gene_set(name).genes}
    names = [*sorted(known), *(f"GENE{i}" for i in range(n_genes))][:n_genes]
    labels = np.array(["control", *names[:n_perturbations]])[rng.integers(0, n_perturbations + 1, n_cells)]
    obs = pd.DataFrame({"perturbation": pd.Categorical(labels)}, index=np.arange(n_cells).astype(str))
    return AnnData(x, obs=obs, var=pd.DataFrame(index=names))


def load(path: str | None, n_cells: int, n_genes: int, n_perturbations: int) -> dict[str, Any]:
    """Make or read the data, and let everything run once, so that no compilation is measured."""
    import anndata

    if path is None:
        adata, control = synthetic(n_cells, n_genes, n_perturbations), "control"
    else:
        adata, control = anndata.read_h5ad(Path(path)), "ctrl"
        adata.obs["perturbation"] = adata.obs["condition"]
        adata.X = sp.csr_matrix(adata.X, dtype=np.float32)
    STATE.update(adata=adata, control="control")
    few = synthetic(1_000, 400, 10)
    for do in (scanpy, biological, perturbation):
        do(few)
    STATE.update(control=control)
    return {"n_cells": adata.n_obs, "n_genes": adata.n_vars, "nnz": int(adata.X.nnz)}


def scanpy(adata: AnnData | None = None) -> int:
    """Highly variable genes alone, as scanpy finds them."""
    import scanpy as sc

    found = sc.pp.highly_variable_genes(
        STATE["adata"] if adata is None else adata,
        flavor="seurat_v3",
        n_top_genes=min(3000, (STATE["adata"] if adata is None else adata).n_vars),
        inplace=False,
    )
    return int(found["highly_variable"].sum())


def biological(adata: AnnData | None = None) -> int:
    """All sources of biology."""
    return _select(adata, gene_strategy="biological")


def perturbation(adata: AnnData | None = None) -> int:
    """Response to perturbations and the rest."""
    return _select(adata, gene_strategy="perturbation", pert_key="perturbation", control=STATE["control"])


def _select(adata: AnnData | None, **options: Any) -> int:
    import scgalore as sg

    adata = STATE["adata"] if adata is None else adata
    sg.tl.select_genes(adata, min(3000, adata.n_vars // 2), **options)
    return int(adata.var["selected"].sum())


def per_gene(n: int) -> int:
    """Statistics of ``n`` genes, one column after the other, as scripts often do."""
    adata = STATE["adata"]
    labels = adata.obs["perturbation"].to_numpy()
    rows = []
    for column in np.linspace(0, adata.n_vars - 1, n).astype(int):
        values = adata.X[:, column].toarray().ravel()
        means = [values[labels == label].mean() for label in np.unique(labels)]
        rows.append((values.mean(), values.var(), (values > 0).mean(), np.var(means)))
    return len(rows)


if __name__ == "__main__":
    serve(
        {
            "load": load,
            "scanpy": scanpy,
            "biological": biological,
            "perturbation": perturbation,
            "per_gene": per_gene,
        }
    )
