"""An AnnData with what ``sg.tl.perturb_in_silico`` writes, in its form and made up."""

import numpy as np
import pandas as pd
from anndata import AnnData


def changed(*, target: bool = False, seed: int = 0) -> AnnData:
    """Forty genes in each of two groups; ``G0`` stands out."""
    rng = np.random.default_rng(seed)
    tables = []
    for group in ("0", "1"):
        table = pd.DataFrame({"gene": [f"G{i}" for i in range(40)], "group": group, "shift": rng.random(40) + 0.1})
        table["log2_ratio"], table["p_value"] = rng.normal(size=40), rng.uniform(0.05, 1, 40)
        table.loc[0, ["log2_ratio", "p_value"]] = 4.0, 0.0001
        table["p_adjusted"] = np.minimum(table["p_value"] * 40, 1)
        if target:
            table["towards"] = -table["log2_ratio"]
            table["towards_p_value"], table["towards_p_adjusted"] = table["p_value"], table["p_adjusted"]
        tables.append(table)
    effects = pd.DataFrame(
        {
            "gene": ["G1", "G1", "G2", "G2"],
            "group": ["0", "1", "0", "1"],
            "target": ["G2", "G3", "G4", "G5"],
            "effect": [0.1, 0.2, 0.3, 0.4],
            "coexpression": [0.0, 0.1, 0.2, 0.3],
        }
    )
    params = {"mode": "knockout", "target": "healthy" if target else None}
    adata = AnnData(np.zeros((2, 1), dtype=np.float32))
    adata.uns["perturb_in_silico"] = {
        "shifts": pd.concat(tables, ignore_index=True),
        "effects": effects,
        "params": params,
    }
    return adata
