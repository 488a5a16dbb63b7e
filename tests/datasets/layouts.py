"""Small files in the layouts of those who offer perturbation data."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

GENES = {
    "ENSG00000141510": "TP53",
    "ENSG00000105610": "KLF1",
    "ENSG00000175387": "SMAD2",
    "ENSG00000034152": "MAP2K3",
}


def cells(labels: Sequence[str | None], column: str, *, counts: bool = False) -> AnnData:
    """A cell for each label; symbols as names, CSR float32."""
    rng = np.random.default_rng(0)
    values = rng.poisson(1.0, (len(labels), len(GENES))).astype(np.float32)
    values[:, 0] += 1
    obs = pd.DataFrame({column: np.array(labels, dtype=object)}, index=[f"cell{i}" for i in range(len(labels))])
    var = pd.DataFrame(index=list(GENES.values()))
    return AnnData(sp.csr_matrix(values if counts else np.log1p(1.5 * values)), obs=obs, var=var)


def gears(
    labels: Sequence[str | None] = ("ctrl", "KLF1+ctrl", "ctrl+KLF1", "TP53+KLF1"), *, cell_type: str = "A549"
) -> AnnData:
    adata = cells(labels, "condition")
    adata.obs_names = [f"{'ACGT' * 3}{'ACGT'[i // 4]}{'ACGT'[i % 4]}-{1 + i % 2}" for i in range(adata.n_obs)]
    adata.obs["cell_type"] = cell_type
    adata.obs["condition_name"] = [f"{cell_type}_{label}_1" for label in labels]
    adata.var["gene_name"] = adata.var_names
    adata.var_names = list(GENES)
    adata.var_names.name = "gene_id"
    adata.layers["counts"] = np.expm1(adata.X.toarray()).round(3)
    adata.uns["log1p"] = {"base": None}
    for key in ("rank_genes_groups_cov_all", "top_non_dropout_de_20", "non_zeros_gene_idx"):
        adata.uns[key] = {"A549_KLF1+ctrl_1": np.array(list(GENES), dtype=object)}
    return adata


def scperturb(labels: Sequence[str | None] = ("control", "KLF1", "TP53_KLF1")) -> AnnData:
    adata = cells(labels, "perturbation", counts=True)
    adata.obs["celltype"] = "lymphoblasts"
    adata.obs["cell_line"] = "K562"
    adata.obs["gemgroup"] = np.arange(adata.n_obs) % 2
    adata.obs["ncounts"] = np.asarray(adata.X.sum(axis=1)).ravel()
    adata.var["ensemble_id"] = list(GENES)
    adata.var_names.name = "gene_symbol"
    return adata


def vcc(labels: Sequence[str | None] = ("non-targeting", "KLF1", "TP53")) -> AnnData:
    adata = cells(labels, "target_gene", counts=True)
    adata.obs["batch"] = [f"Flex_{i % 2}" for i in range(adata.n_obs)]
    adata.obs["guide_id"] = "guide"
    adata.var["gene_id"] = list(GENES)
    return adata


def h5ad(adata: AnnData, folder: Path) -> bytes:
    path = folder / "written.h5ad"
    adata.write_h5ad(path)
    return path.read_bytes()


def zipped(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()
