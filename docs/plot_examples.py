"""Figures of plots that no tutorial shows, for the page of plots."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

import scgalore as sg


def in_silico_shifts() -> Any:
    """Shifts of blood cells."""
    adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    adata = adata[adata.obs["bulk_labels"] == "CD14+ Monocyte"].copy()
    genes = ["CD74", "LYZ", "S100A8", "HLA-DRA", "FTL", "CST3"]
    sg.tl.perturb_in_silico(adata, genes, model="scgpt-mini", n_cells=20, min_cells=5)
    return sg.pl.in_silico_shifts(adata, show=False)


def dose_response() -> Any:
    """Effects of made compounds: saturating functions of the dose."""
    rng = np.random.default_rng(0)
    genes = sc.datasets.pbmc68k_reduced().raw.var_names[:40]
    doses = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
    rows, drugs, given = [rng.poisson(4, (40, 40))], ["DMSO"] * 40, [0.0] * 40
    for drug in ("drug A", "drug B", "drug C"):
        effect = rng.normal(0, 1, 40)
        for dose in doses:
            mean = 4 * np.exp(effect * dose / (dose + 0.2))
            rows.append(rng.poisson(mean, (20, 40)))
            drugs += [drug] * 20
            given += [dose] * 20
    obs = pd.DataFrame({"drug": drugs, "dose": given}).set_index(
        pd.Index([f"cell{i}" for i in range(len(drugs))])
    )
    adata = AnnData(
        np.concatenate(rows).astype(np.float32), obs, pd.DataFrame(index=genes)
    )
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    columns: dict[str, Any] = {
        "pert_key": "drug",
        "pert_kind": "compound",
        "dose_key": "dose",
    }
    sg.pp.split_perturbations(adata, "dose", test_doses=[0.1], **columns)
    task: dict[str, Any] = {"task": "perturbation", "max_epochs": 1, **columns}
    model = sg.tl.finetune(adata, "scgpt-mini", **task)
    wanted = [f"{drug}@{dose}" for drug in ("drug A", "drug B") for dose in doses]
    sg.tl.predict_perturbation(adata, wanted, model=model)
    return sg.pl.dose_response(adata, list(genes[:2]), show=False)


EXAMPLES: dict[str, Callable[[], Any]] = {
    "dose_response": dose_response,
    "in_silico_shifts": in_silico_shifts,
}
"""What draws each of them; its figure is that of the axes it returns."""
