"""Small screens of compounds at doses: Hill curves whose heights are linear in the vectors of the compounds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from tests.tiny_plugin import tiny_model

from scgalore.model import SCGPT

GENES = tuple(f"G{i:02d}" for i in range(30))
DOSES = (0.1, 1.0, 10.0)
COMPOUNDS = ("(+)-JQ1", "IL6", "drug a/b", "7", "dex", "tsa")
"""Names that a parser of genes would take apart, one of a gene, and one that is a number."""

KEYS: dict[str, Any] = {"pert_key": "drug", "pert_kind": "compound", "dose_key": "dose"}
TRAINING: dict[str, Any] = {
    "task": "perturbation",
    **KEYS,
    "max_epochs": 2,
    "batch_size": 32,
    "lr": 3e-3,
    "accelerator": "cpu",
}


def dosed(
    *,
    compounds: Sequence[str] = COMPOUNDS,
    doses: Sequence[float] = DOSES,
    n_cells: int = 8,
    n_control: int = 30,
    contexts: Sequence[str] = ("",),
    seed: int = 0,
) -> AnnData:
    """Log-normalised cells with ``obs["drug"]``, ``obs["dose"]`` and ``uns["fingerprints"]``."""
    rng = np.random.default_rng(seed)
    base = rng.gamma(1.0, 3.0, len(GENES)) + 0.2
    vectors = rng.normal(size=(len(compounds), 3))
    heights = vectors @ (rng.normal(0, 0.9, (3, len(GENES))) * (rng.random((3, len(GENES))) < 0.5))
    rows, obs = [], []
    for k, context in enumerate(contexts):
        own = rng.normal(0, 0.4 * k, len(GENES))
        for i, (compound, dose) in enumerate([("DMSO", 0.0), *((c, d) for c in compounds for d in doses)]):
            n = n_control if dose == 0 else n_cells
            effect = 0 if dose == 0 else heights[(i - 1) // len(doses)] * dose / (dose + 1)
            rows.append(rng.poisson(base * np.exp(own + effect), (n, len(GENES))))
            obs += [(compound, dose, context)] * n
    counts = np.concatenate(rows).astype(np.float64)
    x = np.log1p(counts * (100 / np.maximum(counts.sum(axis=1, keepdims=True), 1)))
    table = pd.DataFrame(obs, columns=["drug", "dose", "cell_line"], index=[f"cell{i}" for i in range(len(obs))])
    adata = AnnData(sp.csr_matrix(x.astype(np.float32)), table, pd.DataFrame(index=list(GENES)))
    adata.uns["fingerprints"] = pd.DataFrame(vectors, index=list(compounds), columns=["a", "b", "c"])
    return adata


def untrained(**config: Any) -> SCGPT:
    """Random weights for the measured genes."""
    return tiny_model(GENES, **config)
