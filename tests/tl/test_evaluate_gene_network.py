import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError

FACTORS = ["GATA1", "POU5F1", "PAX5", "TCF7"]


@pytest.fixture
def regulated():
    """Cells in which 20 targets follow each of four factors, 20 genes follow none, and the true edges."""
    rng = np.random.default_rng(0)
    activity = rng.gamma(2, size=(120, 4))
    genes = [f"GENE{i}" for i in range(100)]
    x = np.hstack([activity, np.repeat(activity, 20, axis=1), rng.gamma(2, size=(120, 20))])
    x = rng.poisson(3 * x).astype(np.float32)
    edges = [(factor, genes[20 * i + j]) for i, factor in enumerate(FACTORS) for j in range(20)]
    # Genes that none of these regulates, but one that is not measured does: looked at, and so negatives.
    edges += [("MYC", gene) for gene in genes[80:]]
    adata = AnnData(sp.csr_matrix(np.log1p(x)), var=pd.DataFrame(index=FACTORS + genes))
    return adata, pd.DataFrame(edges, columns=["source", "target"])


def scored(regulated, **options):
    adata, truth = regulated
    sg.tl.gene_network(adata, tfs=FACTORS, n_edges=None, min_cells=1)
    sg.tl.evaluate_gene_network(adata, truth, **{"n_shuffles": 20, "min_targets": 5, **options})
    return adata, sg.get.gene_network_scores(adata)


def test_true_edges_are_found_and_chance_is_not(regulated):
    adata, scores = scored(regulated)
    assert scores.index.tolist() == ["coexpression", "correlation", "boosting", "expression", "out_degree"]
    record = adata.uns["evaluate_gene_network"]
    assert (record["n_sources"], record["n_targets"], record["n_edges"]) == (4, 100, 80)
    density = 80 / 400
    for name in ("coexpression", "correlation", "boosting"):
        assert scores.loc[name, "auprc_ratio"] > 0.9 / density
        # Shuffled targets keep to genes that have a factor, which are known from the correlations: 1 / 4 over 1 / 5.
        assert scores.loc[name, "auprc_ratio_null"] == pytest.approx(1.25, abs=0.3)
        assert scores.loc[name, "auprc_ratio_p"] == pytest.approx(1 / 21)
    assert scores.loc["coexpression"].equals(scores.loc["correlation"])
    assert scores.loc["out_degree", "auprc_ratio"] == pytest.approx(1)
    assert scores.loc["expression", "mean_auprc_ratio"] < 2.5
    assert (scores["covered"] == 1).all()
    by_source = sg.get.gene_network_scores(adata, by_source=True)
    means = by_source.groupby("network", sort=False)["auprc_ratio"].mean()
    np.testing.assert_allclose(scores["mean_auprc_ratio"], means.loc[scores.index])
    assert set(by_source["n_targets"]) == {20}


def test_scores_do_not_depend_on_the_order_of_cells_genes_and_edges(regulated):
    adata, truth = regulated
    rng = np.random.default_rng(1)
    rows, columns, order = (rng.permutation(n) for n in (adata.n_obs, adata.n_vars, len(truth)))
    other = adata[rows, columns].copy(), truth.iloc[order]
    _, wanted = scored((adata, truth), n_shuffles=5)
    permuted, found = scored(other, n_shuffles=5)
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-6)
    by_source = [sg.get.gene_network_scores(one, by_source=True) for one in (adata, permuted)]
    pd.testing.assert_frame_equal(*by_source, rtol=1e-6)


def test_aliases_of_the_truth_are_read(regulated):
    adata, truth = regulated
    _, wanted = scored(regulated, baselines=())
    truth = truth.replace({"POU5F1": "OCT4"}).rename(columns={"source": "tf"})
    sg.tl.evaluate_gene_network(adata, truth, n_shuffles=20, min_targets=5, baselines=())
    pd.testing.assert_frame_equal(sg.get.gene_network_scores(adata), wanted)


def test_factors_with_few_targets_are_named(regulated, caplog):
    _, scores = scored(regulated, min_targets=21, baselines=(), n_shuffles=3)
    assert "no factor of truth has min_targets=21 targets" in caplog.text
    assert "the most that one has is 20" in caplog.text
    assert scores["mean_auprc_ratio"].isna().all()
    assert scores["auprc_ratio"].notna().all()


def test_tables_of_others_and_groups(regulated):
    adata, truth = regulated
    truth_as_edges = truth.assign(weight=1.0)
    reverse = truth.assign(rank=np.arange(len(truth)))
    sg.tl.evaluate_gene_network(
        adata, truth, edges={"known": truth_as_edges, "ranked": reverse}, baselines=(), n_shuffles=0
    )
    scores = sg.get.gene_network_scores(adata)
    assert scores["auprc_ratio"].tolist() == pytest.approx([5, 5])
    assert scores["covered"].tolist() == pytest.approx([0.2, 0.2])
    assert [name for name in scores if name.endswith("_null")] == []
    adata.obs["half"] = np.repeat(["a", "b"], 60)
    sg.tl.gene_network(adata, groupby="half", tfs=FACTORS, n_edges=None, min_cells=1)
    sg.tl.evaluate_gene_network(adata, truth, baselines=(), n_shuffles=3)
    assert sg.get.gene_network_scores(adata).index.tolist() == ["a", "b"]


def test_scores_survive_a_file(regulated, tmp_path):
    adata, truth = regulated
    sg.tl.gene_network(adata, tfs=FACTORS, n_edges=None, min_cells=1, key_added="net")
    copied = sg.tl.evaluate_gene_network(
        adata, truth, key="net", baselines=(), n_shuffles=3, key_added="mine", copy=True
    )
    assert "mine" not in adata.uns
    scores = sg.get.gene_network_scores(copied, key="mine")
    copied.write_h5ad(tmp_path / "x.h5ad")
    pd.testing.assert_frame_equal(sg.get.gene_network_scores(sc.read_h5ad(tmp_path / "x.h5ad"), key="mine"), scores)


def test_bad_input_is_named_before_anything_is_written(regulated):
    adata, truth = regulated
    with pytest.raises(MissingKeyError, match="There is no network"):
        sg.tl.evaluate_gene_network(adata, truth)
    sg.tl.gene_network(adata, tfs=FACTORS, n_edges=None, min_cells=1)
    twice = pd.concat([truth, truth]).assign(weight=1)
    cases = [
        (OptionError, "'lasso' is none of", {"baselines": ["lasso"]}),
        (OptionError, "top=1", {"top": 1}),
        (OptionError, "n_shuffles=-1", {"n_shuffles": -1}),
        (OptionError, "name of a network and of a baseline", {"edges": {"boosting": truth.assign(weight=1)}}),
        (OptionError, "read by this call", {"key_added": "gene_network"}),
        (DataError, "neither a column rank nor weight", {"edges": truth}),
        (DataError, "more than once", {"edges": twice}),
        (DataError, "expected a table", {"edges": {"a": [1]}}),
    ]
    for error, message, options in cases:
        with pytest.raises(error, match=message):
            sg.tl.evaluate_gene_network(adata, truth, **options)
    for wrong, message in [
        (truth.rename(columns={"source": "x"}), "no column 'source'"),
        (truth.iloc[:0], "has no edge"),
        (truth.assign(source="NOPE"), "None of the 100 edges"),
        (truth.assign(target=truth["source"]), "None of the 100 edges"),
        (truth[truth["source"] == "PAX5"], "All 20 pairs of the 1 factors and 20 targets"),
    ]:
        with pytest.raises(DataError, match=message):
            sg.tl.evaluate_gene_network(adata, wrong)
    assert "evaluate_gene_network" not in adata.uns


def test_truth_of_stem_cells(shared_data):
    adata = sc.read_h5ad(shared_data / "hesc_chen_385cells.h5ad")
    truth = pd.read_csv(shared_data.parent / "resources/grn/hesc_chip_and_knockdown.tsv", sep="\t")
    sg.tl.gene_network(adata, tfs=truth["tf"].unique(), n_edges=None, min_cells=1)
    sg.tl.evaluate_gene_network(adata, truth, baselines=("out_degree",), n_shuffles=5)
    record = adata.uns["evaluate_gene_network"]
    assert (record["n_sources"], record["n_targets"], record["n_edges"]) == (19, 2894, 2989)
    assert sg.get.gene_network_scores(adata).loc["out_degree", "auprc_ratio"] > 4
