"""What scanpy's own readers and plots make of ranked effects."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

from scgalore.perturb.predictions.ranking import ranked_genes

GENES = [f"G{i:02d}" for i in range(12)]
GROUPS = ["A", "A+B", "K562 | C"]


@pytest.fixture
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Effects and means; three effects are equal, and one mean is 0."""
    rng = np.random.default_rng(0)
    control = rng.uniform(0.2, 3, 12)
    effects = rng.uniform(-0.2, 2, (12, 3))
    effects[3:6, 0] = 0.5
    effects[7, 1] = -control[7]
    return tuple(pd.DataFrame(x, index=GENES, columns=GROUPS) for x in (effects, control[:, None] + effects))  # type: ignore[return-value]


@pytest.fixture
def ranked(tables: tuple[pd.DataFrame, pd.DataFrame]) -> ad.AnnData:
    obs = pd.DataFrame({"perturbation": pd.Categorical(["ctrl", "A", "A+B", "C"])}, index=[*"wxyz"])
    adata = ad.AnnData(np.ones((4, 12)), obs=obs, var=pd.DataFrame(index=GENES))
    adata.uns["ranks"] = ranked_genes(*tables, groupby="perturbation")
    return adata


@pytest.mark.parametrize("group", GROUPS)
def test_scanpy_reads_each_group(ranked: ad.AnnData, tables: tuple[pd.DataFrame, pd.DataFrame], group: str) -> None:
    effects, means = tables
    found = sc.get.rank_genes_groups_df(ranked, group, key="ranks")
    expected = effects[group].sort_values(ascending=False, kind="stable")
    assert found["names"].tolist() == expected.index.tolist()
    np.testing.assert_allclose(found["scores"], expected, rtol=1e-6)
    after = means[group][found["names"]].to_numpy()
    before = after - expected.to_numpy()
    change = np.log2((np.expm1(after) + 1e-9) / (np.expm1(np.maximum(before, 0)) + 1e-9))
    np.testing.assert_allclose(found["logfoldchanges"], change, rtol=1e-5)
    assert found[["pvals", "pvals_adj"]].isna().all(axis=None)


def test_equal_effects_keep_the_order_of_genes(ranked: ad.AnnData) -> None:
    names = sc.get.rank_genes_groups_df(ranked, "A", key="ranks")["names"].tolist()
    first = names.index("G03")
    assert names[first : first + 3] == ["G03", "G04", "G05"]


def test_fold_change_agrees_with_scanpy_on_cells() -> None:
    rng = np.random.default_rng(1)
    x = np.log1p(rng.poisson(3.0, (40, 12)))
    labels = np.repeat(["ctrl", "A"], 20)
    adata = ad.AnnData(x, obs=pd.DataFrame({"p": pd.Categorical(labels)}), var=pd.DataFrame(index=GENES))
    sc.tl.rank_genes_groups(adata, "p", reference="ctrl", method="t-test")
    theirs = sc.get.rank_genes_groups_df(adata, "A").set_index("names")["logfoldchanges"]
    mean, control = x[labels == "A"].mean(axis=0), x[labels == "ctrl"].mean(axis=0)
    frames = [pd.DataFrame({"A": values}, index=GENES) for values in (mean - control, mean)]
    adata.uns["ranks"] = ranked_genes(*frames, groupby="p")
    ours = sc.get.rank_genes_groups_df(adata, "A", key="ranks").set_index("names")["logfoldchanges"]
    np.testing.assert_allclose(ours[GENES], theirs[GENES], rtol=1e-4)


def test_scanpy_plots_it_and_a_file_keeps_it(ranked: ad.AnnData, tmp_path: Path) -> None:
    ranked.write_h5ad(tmp_path / "ranked.h5ad")
    again = ad.read_h5ad(tmp_path / "ranked.h5ad")
    for adata in (ranked, again):
        axes = sc.pl.rank_genes_groups(adata, key="ranks", n_genes=4, show=False)
        titles = [axis.get_title() for axis in axes]
        drawn = [text.get_text() for axis in axes for text in axis.texts]
        assert titles == [f"{group} vs. control" for group in GROUPS]
        best = [sc.get.rank_genes_groups_df(adata, group, key="ranks")["names"][:4].tolist() for group in GROUPS]
        assert drawn == [name for names in best for name in names]
