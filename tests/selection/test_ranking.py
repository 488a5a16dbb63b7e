"""Genes in one ranked list: what it depends on, and what it finds in real data."""

import tracemalloc
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

from scgalore.errors import DataError
from scgalore.genes.sets import get_gene_set
from scgalore.selection.ranking import Ranking, rank_adata, training_cells

LISTED = ["TP53", "STAT1", "POU5F1", "MKI67", "PCNA", "GAPDH", "HSPA1A", "COX4I1", "HIF1A", "CDK1"]
NAMES = [*LISTED, *(f"GENE{i}" for i in range(50))]


def counts(n: int = 150, seed: int = 0, n_vars: int = 60) -> AnnData:
    """A screen of three perturbations in two cell lines and batches; the last gene is expressed nowhere."""
    rng = np.random.default_rng(seed)
    x = rng.poisson(rng.gamma(0.6, 1.5, n_vars), (n, n_vars)).astype(np.float32)
    x[np.arange(n_vars) % n, np.arange(n_vars)] += 1
    x[:, -1] = 0
    labels = np.resize(["control", "TP53+ctrl", "GENE1+STAT1", "GENE2"], n)
    x[labels == "GENE2", 20:25] += 6
    obs = pd.DataFrame({"perturbation": labels, "line": np.resize(["a", "a", "a", "b", "b", "b", "b"], n)})
    obs["batch"] = rng.choice(["x", "y"], n)
    obs.index = [f"cell{i}" for i in range(n)]
    return AnnData(sp.csr_matrix(x), obs=obs, var=pd.DataFrame(index=NAMES[:n_vars]))


OPTIONS: dict[str, dict[str, Any]] = {
    "biological": {},
    "hvg": {"batch_key": "batch"},
    "perturbation": {"pert_key": "perturbation", "context_key": "line"},
    "expressed": {"gene_sets": {"mine": ["GENE5", "GENE6", "absent"]}, "must_include": ["GENE40", "GENE49"]},
}


def ranked(adata: AnnData, strategy: str, **options: Any) -> Ranking:
    return rank_adata(adata, strategy, **{**OPTIONS[strategy], **options})


def names_of(adata: AnnData, found: Ranking) -> list[str]:
    order = np.argsort(found.rank, kind="stable")
    return adata.var_names[order[: np.isfinite(found.rank).sum()]].tolist()


@pytest.mark.parametrize("strategy", OPTIONS)
@pytest.mark.parametrize("logged", [False, True])
class TestEveryStrategy:
    def made(self, logged: bool) -> AnnData:
        adata = counts()
        if logged:
            sc.pp.normalize_total(adata, target_sum=1e4)
            sc.pp.log1p(adata)
        return adata

    def test_ranks_each_expressed_gene_once_and_names_its_source(self, strategy: str, logged: bool) -> None:
        adata = self.made(logged)
        found = ranked(adata, strategy)
        is_ranked = np.isfinite(found.rank)
        assert sorted(found.rank[is_ranked]) == list(range(is_ranked.sum()))
        assert is_ranked.sum() == found.n_expressed + (
            strategy == "expressed"
        )  # which must include one of no expression
        assert {source is not None for source in found.source[is_ranked]} == {True}
        assert {source is None for source in found.source[~is_ranked]} <= {True}

    def test_does_not_depend_on_the_order_of_cells_or_genes(self, strategy: str, logged: bool) -> None:
        adata = self.made(logged)
        rng = np.random.default_rng(1)
        other = adata[rng.permutation(adata.n_obs), rng.permutation(adata.n_vars)].copy()
        one, two = ranked(adata, strategy), ranked(other, strategy)
        assert names_of(other, two) == names_of(adata, one)
        assert pd.Series(two.source, other.var_names)[adata.var_names].tolist() == one.source.tolist()

    def test_whatever_holds_the_matrix(self, strategy: str, logged: bool, tmp_path: Path) -> None:
        adata = self.made(logged)
        expected = ranked(adata, strategy).rank
        adata.write_h5ad(tmp_path / "x.h5ad")
        backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
        dense, columns = adata.copy(), adata.copy()
        dense.X, columns.X = adata.X.toarray(), sp.csc_matrix(adata.X)
        more = ad.concat([adata, adata], index_unique="-")
        more.uns = adata.uns
        for held in (backed, dense, columns, more[: adata.n_obs]):
            np.testing.assert_array_equal(ranked(held, strategy).rank, expected)
        backed.file.close()

    def test_cells_that_do_not_train_change_nothing(self, strategy: str, logged: bool) -> None:
        adata = self.made(logged)
        train = np.arange(adata.n_obs) < 100
        changed = adata.copy()
        x = adata.X.toarray()
        x[100:] = np.random.default_rng(5).permutation(x[100:].T).T
        changed.X = sp.csr_matrix(x)
        changed.obs["perturbation"] = np.where(train, adata.obs["perturbation"], "GENE9")
        np.testing.assert_array_equal(
            ranked(changed, strategy, train=train).rank, ranked(adata, strategy, train=train).rank
        )
        alone = ranked(adata[:100].copy(), strategy)
        np.testing.assert_array_equal(ranked(adata, strategy, train=train).rank, alone.rank)


def test_counts_and_a_layer_of_them_give_the_same() -> None:
    adata = counts()
    adata.layers["counts"] = adata.X.copy()
    expected = ranked(adata, "biological").rank
    adata.X = None
    np.testing.assert_array_equal(ranked(adata, "biological", layer="counts").rank, expected)


@settings(max_examples=25)
@given(
    st.integers(0, 2**16),
    st.lists(st.sampled_from([*NAMES, "OCT4", "no gene"]), max_size=8),
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=20),
)
def test_what_must_be_included_comes_first(seed: int, wanted: list[str], mine: list[str]) -> None:
    adata = counts(60, seed)
    wanted = ["GENE3", *wanted]
    found = ranked(adata, "biological", must_include=wanted, gene_sets={"mine": mine})
    first = list(dict.fromkeys("POU5F1" if name == "OCT4" else name for name in wanted if name != "no gene"))
    assert names_of(adata, found)[: len(first)] == first
    assert found.n_must_include == len(first)
    placed = {name for name, source in zip(adata.var_names, found.source, strict=True) if source == "mine"}
    assert placed <= set(mine)


def test_listed_genes_come_by_expression_and_not_if_few_cells_express_them() -> None:
    adata = counts(300)
    x = adata.X.toarray()
    x[:, :4] = np.array([1, 5, 3, 0])
    x[:3, 3] = 50  # one per cent of the cells, and no more
    adata.X = sp.csr_matrix(x)
    found = ranked(adata, "hvg", batch_key=None, gene_sets={"mine": NAMES[:4]})
    mine = [name for name in names_of(adata, found) if found.source[NAMES.index(name)] == "mine"]
    assert "MKI67" not in mine
    assert mine == [name for name in ["STAT1", "POU5F1", "TP53"] if name in mine]
    assert mine
    assert list(found.sources.loc["mine"]) == [4, 4, 3]


def test_a_mouse_is_ranked_by_orthologs() -> None:
    adata = counts()
    human = ranked(adata, "biological")
    adata.var_names = [name.capitalize() if name != "TP53" else "Trp53" for name in NAMES]
    found = ranked(adata, "biological", species="mouse")
    assert found.sources["n_matched"].tolist() == human.sources["n_matched"].tolist()


def test_a_logarithm_of_another_base_changes_nothing() -> None:
    adata = counts()
    sc.pp.normalize_total(adata, target_sum=1e4)
    other = adata.copy()
    sc.pp.log1p(adata)
    sc.pp.log1p(other, base=2)
    one, two = ranked(adata, "hvg"), ranked(other, "hvg")
    assert (one.rank[np.isfinite(one.rank)] == two.rank[np.isfinite(one.rank)]).mean() > 0.95


@pytest.mark.parametrize("strategy", ["hvg", "perturbation"])
def test_a_file_that_is_open_does_not_come_into_memory(strategy: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n, n_vars = 8000, 1500
    x = sp.random(n, n_vars, 0.15, format="csr", dtype=np.float32, random_state=rng)
    x.data = 1 + rng.poisson(1.0, x.nnz).astype(np.float32)
    obs = pd.DataFrame({"perturbation": np.resize(["control", "A", "B"], n)}, index=np.arange(n).astype(str))
    AnnData(x, obs=obs).write_h5ad(tmp_path / "x.h5ad")
    size = x.data.nbytes + x.indices.nbytes
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    ranked(
        backed, strategy, batch_key=None, context_key=None, pert_key="perturbation"
    )  # tables of gene names load once
    tracemalloc.start()
    ranked(backed, strategy, batch_key=None, context_key=None, pert_key="perturbation")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    backed.file.close()
    assert peak < 0.4 * size


def test_nothing_to_compare_is_said() -> None:
    adata = counts()
    train = adata.obs["perturbation"].to_numpy() == "control"
    with pytest.raises(DataError, match="No perturbations can be compared: fewer than two"):
        ranked(adata, "perturbation", train=train)


def test_a_single_cell_is_refused() -> None:
    adata = counts()
    adata.obs["batch"] = adata.obs_names
    for options in ({"train": np.arange(adata.n_obs) == 3, "batch_key": None}, {}):
        with pytest.raises(DataError, match="no batch has two"):
            ranked(adata, "hvg", **options)


def test_training_cells_are_those_of_the_part() -> None:
    adata = counts()
    adata.obs["split"] = pd.Categorical(np.resize(["train", "test", None], adata.n_obs))
    found = training_cells(adata, "split")
    assert found is not None
    assert found.tolist() == (np.arange(adata.n_obs) % 3 == 0).tolist()
    assert training_cells(adata, None) is None
    adata.obs["split"] = "test"
    with pytest.raises(DataError, match="no cell with 'train'"):
        training_cells(adata, "split")


# Known biology -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kang(request: pytest.FixtureRequest) -> AnnData:
    folder = Path(__file__).parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the data sets in {folder}")
    return sc.read_h5ad(folder / "kang18_pbmc_ifnb_9015genes.h5ad")


def chance(top: list[str], genes: set[str], universe: list[str]) -> float:
    """Probability of as many genes of a set among as many drawn at random."""
    present = genes & set(universe)
    return float(hypergeom.sf(len(present & set(top)) - 1, len(universe), len(present), len(top)))


def test_interferon_genes_respond_to_interferon(kang: AnnData) -> None:
    found = rank_adata(kang, "perturbation", pert_key="condition", control="ctrl")
    order = names_of(kang, found)
    interferon = set(get_gene_set("hallmark_interferon_alpha_response").genes)
    assert chance(order[:100], interferon, order) < 1e-20
    responsive = [name for name in order if found.source[kang.var_names.get_loc(name)] == "responsive"]
    assert len(interferon & set(responsive[:40])) > 20
    # The same lists without the response find few of them.
    other = names_of(kang, rank_adata(kang, "biological"))
    assert len(interferon & set(order[:100])) > 1.5 * len(interferon & set(other[:100]))


def test_permuted_labels_find_no_interferon(kang: AnnData) -> None:
    adata = kang.copy()
    adata.obs["condition"] = np.random.default_rng(0).permutation(adata.obs["condition"].to_numpy())
    found = rank_adata(adata, "perturbation", pert_key="condition", control="ctrl")
    order = names_of(adata, found)
    responsive = [name for name in order if found.source[adata.var_names.get_loc(name)] == "responsive"]
    assert len(set(get_gene_set("hallmark_interferon_alpha_response").genes) & set(responsive[:40])) < 8


def test_blood_has_its_variable_genes_and_no_stem_cells(pbmc: AnnData) -> None:
    found = rank_adata(pbmc, "biological")
    best = set(names_of(pbmc, found)[:200])
    assert {"NKG7", "GNLY", "FCER1A", "CST3", "S100A8", "MS4A1", "CD79A"} <= best
    by_source = pd.Series(found.source, pbmc.var_names)
    assert not {"POU5F1", "NANOG"} & set(by_source[by_source == "pluripotency"].index)


def test_raised_stem_cell_genes_are_found(kang: AnnData) -> None:
    """No data of embryos is here: in real blood cells, counts of other genes are given the names of the stem cell core."""
    core = ["POU5F1", "NANOG", "SOX2", "LIN28A"]
    x = kang.X.toarray()
    kept = ~kang.var_names.isin(core)
    middle = np.argsort(-x[:, kept].mean(axis=0))[300:304]
    adata = AnnData(
        sp.csr_matrix(np.hstack((x[:, kept], x[:, kept][:, middle])), dtype=np.float32),
        var=pd.DataFrame(index=[*kang.var_names[kept], *core]),
    )
    found = rank_adata(adata, "biological")
    assert set(core) & set(get_gene_set("pluripotency").genes) <= set(names_of(adata, found)[:500])
    assert set(core[:3]) <= set(names_of(adata, found)[:500])
