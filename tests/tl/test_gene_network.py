import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from mudata import MuData
from tests.toy_family import bag, bag_of  # noqa: F401 -- a fixture

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.genes import get_gene_set
from scgalore.tl._gene_network import METHODS


def edges(data, model, **options):
    sg.tl.gene_network(data, model, n_edges=None, min_cells=2, **options)
    adata = data["rna"] if isinstance(data, MuData) else data
    return sg.get.gene_network(adata)


def weights(table):
    return table.set_index(["group", "source", "target"])["weight"].sort_index()


@pytest.mark.parametrize("method", METHODS)
def test_batches_order_and_container_change_nothing(few, model, method, tmp_path):
    wanted = weights(edges(few, model, method=method, groupby="bulk_labels"))
    assert len(wanted)
    path = tmp_path / "cells.h5ad"
    few.write_h5ad(path)
    rng = np.random.default_rng(0)
    shuffled = few[rng.permutation(few.n_obs), rng.permutation(few.n_vars)]
    for data, options in [
        (few, {"batch_size": 3}),
        (sc.read_h5ad(path, backed="r"), {}),
        (shuffled, {}),
        (MuData({"rna": few.copy()}), {}),
    ]:
        found = weights(edges(data, model, method=method, groupby="bulk_labels", **options))
        pd.testing.assert_series_equal(found, wanted, check_exact=False, rtol=0, atol=2e-5, check_index_type=False)


@pytest.mark.parametrize("method", ["coexpression", "combined"])
def test_ranks_of_equal_weights_do_not_depend_on_the_order_of_genes(few, model, method):
    ranks = []
    for data in (few.copy(), few[:, ::-1].copy()):
        found = edges(data, model, method=method).set_index(["source", "target"])["rank"]
        ranks.append(found.sort_index())
    pd.testing.assert_series_equal(*ranks)


def test_regulators_are_transcription_factors_unless_they_are_named(few, model):
    found = edges(few, model, method="coexpression")
    assert set(found["source"]) <= set(get_gene_set("human_tf_lambert2018").genes)
    named = few.var_names[:3].tolist()
    found = edges(few, model, method="coexpression", tfs=named, targets=few.var_names[2:6])
    assert set(found["source"]) <= set(named)
    assert set(found["target"]) <= set(few.var_names[2:6])
    assert (found["source"] != found["target"]).all()


def test_correlations_are_those_of_the_data(few, model):
    found = edges(few, model, method="coexpression", tfs=few.var_names[:3])
    whole = few.to_df().corr()
    np.testing.assert_allclose(
        found["weight"], [whole.loc[s, t] for s, t in zip(found["source"], found["target"], strict=True)], atol=1e-5
    )
    assert found["weight"].abs().is_monotonic_decreasing
    assert found["rank"].tolist() == list(range(1, len(found) + 1))
    assert (found["weight"] < 0).any()


def test_cosines_are_those_of_the_embeddings(few, model):
    for kind in ("static", "contextual"):
        genes = sg.tl.gene_embeddings(few, model, kind=kind)
        found = edges(few, model, method="embedding", kind=kind, tfs=few.var_names[:3])
        x = pd.DataFrame(genes.X / np.linalg.norm(genes.X, axis=1, keepdims=True), index=genes.obs_names)
        wanted = [x.loc[s] @ x.loc[t] for s, t in zip(found["source"], found["target"], strict=True)]
        np.testing.assert_allclose(found["weight"], wanted, atol=1e-5)


def test_knock_outs_are_those_of_perturb_in_silico(few, model):
    tfs = few.to_df().gt(0).sum().nlargest(3).index
    found = edges(few, model, method="perturbation", groupby="bulk_labels", tfs=tfs)
    sg.tl.perturb_in_silico(few, list(tfs), model=model, groupby="bulk_labels", n_null=0, n_effects=few.n_vars)
    effects = sg.get.in_silico_effects(few).set_index(["group", "gene", "target"])["effect"]
    wanted = [
        -effects[group, s, t] for group, s, t in zip(found["group"], found["source"], found["target"], strict=True)
    ]
    np.testing.assert_allclose(found["weight"], wanted, rtol=1e-3, atol=1e-6)
    assert found["weight"].abs().max() > 0


def test_layers_and_scales_of_attention(few, model):
    both = weights(edges(few, model, method="attention"))
    first, last = (weights(edges(few, model, method="attention", layers=[layer])) for layer in (0, -1))
    np.testing.assert_allclose(both, (first + last) / 2, atol=1e-6)
    soft = edges(few, model, method="attention", scale="softmax")
    assert soft["weight"].between(0, 1).all()
    assert both.between(0, 1).all()
    assert (both.groupby("source").std() > 0).any()


def test_groups_are_looked_at_apart(few, model):
    whole = edges(few, model, method="attention", groupby="bulk_labels")
    for label in few.obs["bulk_labels"].cat.categories:
        alone = edges(few[few.obs["bulk_labels"] == label].copy(), model, method="attention")
        of_group = whole[whole["group"] == label].set_index(["source", "target"])["weight"].sort_index()
        np.testing.assert_allclose(of_group, alone.set_index(["source", "target"])["weight"].sort_index(), atol=1e-6)


def test_a_group_without_edges_is_named(few, caplog):
    few.obs["half"] = ["big"] * (few.n_obs - 3) + ["small"] * 3
    sg.tl.gene_network(few, groupby="half", min_cells=5)
    assert "no edges in 1 of 2 groups, 'small'" in caplog.text
    assert few.uns["gene_network"]["n_pairs"]["n_pairs"].gt(0).tolist() == [True, False]


def test_differences_between_groups(few, model):
    whole = edges(few, model, method="coexpression", groupby="bulk_labels")
    one, other = few.obs["bulk_labels"].cat.categories[:2]
    difference = sg.get.gene_network(few, group=one, versus=other)
    own, others = (whole[whole["group"] == name].set_index(["source", "target"])["weight"] for name in (one, other))
    wanted = (own - others).dropna()
    assert len(difference) == len(wanted)
    pairs = pd.MultiIndex.from_frame(difference[["source", "target"]])
    np.testing.assert_allclose(difference["weight"], wanted.loc[pairs], atol=1e-6)
    assert difference["weight"].abs().is_monotonic_decreasing


def test_what_is_kept_survives_a_file(few, model, tmp_path):
    sg.tl.gene_network(few, model, method="combined", groupby="bulk_labels", n_edges=5, min_cells=2, key_added="net")
    few.write_h5ad(tmp_path / "x.h5ad")
    again = sc.read_h5ad(tmp_path / "x.h5ad")
    pd.testing.assert_frame_equal(
        sg.get.gene_network(again, key="net"),
        sg.get.gene_network(few, key="net"),
        check_dtype=False,
        check_categorical=False,
    )
    record = few.uns["net"]
    assert record["params"]["method"] == "combined"
    assert record["weights"]["name"] == "random"
    assert (record["edges"].groupby("group", observed=True)["rank"].min() == 1).all()


def test_copy_leaves_the_object_alone(few, model):
    copied = sg.tl.gene_network(few, model, min_cells=2, copy=True)
    assert "gene_network" in copied.uns
    assert "gene_network" not in few.uns


@pytest.mark.usefixtures("bag")
def test_bad_input_is_named_before_anything_is_written(few, model):
    cases = [
        (OptionError, "method=", {"method": "regression"}),
        (OptionError, "min_cells=0", {"min_cells": 0}),
        (OptionError, "n_edges=", {"n_edges": 0}),
        (OptionError, "layers=", {"method": "attention", "layers": [7]}),
        (OptionError, "scale=", {"method": "attention", "scale": "raw"}),
        (OptionError, "scale='softmax' belongs to method='attention' and 'combined'", {"scale": "softmax"}),
        (OptionError, r"layers=\[0\] belongs to", {"method": "embedding", "layers": [0]}),
        (OptionError, "n_cells=5 belongs to method='perturbation', and", {"method": "combined", "n_cells": 5}),
        (OptionError, "kind='static' belongs to", {"method": "attention", "kind": "static"}),
        (OptionError, "tfs='CD3D'", {"tfs": "CD3D"}),
        (DataError, "None of the 1 genes of tfs", {"tfs": ["NOPE"]}),
        (DataError, "None of the 1 genes of targets", {"targets": ["NOPE"]}),
        (DataError, "min_cells=1000", {"min_cells": 1000}),
        (MissingKeyError, "groupby='type'", {"groupby": "type"}),
        (MissingKeyError, "layers has no 'x'", {"layer": "x"}),
    ]
    for error, message, options in cases:
        with pytest.raises(error, match=message):
            sg.tl.gene_network(few, model, **options)
    with pytest.raises(OptionError, match="no attention"):
        sg.tl.gene_network(few, bag_of(few.var_names), method="attention")
    with pytest.raises(OptionError, match="predicts no expression"):
        sg.tl.gene_network(few, bag_of(few.var_names), method="perturbation", min_cells=2)
    with pytest.raises(DataError, match="knows none"):
        sg.tl.gene_network(few, bag_of(few.var_names[5:]), method="embedding", tfs=few.var_names[:2])
    assert "gene_network" not in few.uns


def test_networks_that_read_more_than_genes(few, make_model):
    perturbed = make_model(few.var_names, perturbation=True)
    sg.tl.gene_network(few, perturbed, method="attention", min_cells=2)
    batches = make_model(few.var_names, n_batches=2, batch_norm="per-batch")
    for method in ("attention", "embedding"):
        with pytest.raises(OptionError, match="within each sequencing batch"):
            sg.tl.gene_network(few, batches, method=method, min_cells=2)
    sg.tl.gene_network(few, batches, method="embedding", kind="static", min_cells=2)
