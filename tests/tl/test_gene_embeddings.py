import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch
from mudata import MuData
from tests.toy_family import bag, bag_of  # noqa: F401 -- a fixture

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError


def naive(model, adata, groups=None):
    """Mean last state of each gene, one cell at a time, by group and gene."""
    cells = model.cells(adata)
    states = {}
    for window in cells.windows(size=1):
        genes, values = torch.from_numpy(window.genes)[None], torch.from_numpy(window.values)[None]
        with torch.no_grad():
            hidden = model.network.encode(genes, values).hidden[0].numpy()
        group = None if groups is None else groups[int(window.cells[0])]
        for token, state in zip(window.genes, hidden, strict=True):
            states.setdefault((group, model.vocab.tokens[token]), []).append(state)
    return {key: np.mean(found, axis=0) for key, found in states.items() if key[1] != "<cls>"}


def test_static_are_those_of_the_network(few, model):
    genes = sg.tl.gene_embeddings(few, model)
    ids = torch.from_numpy(model.vocab.ids(few.var_names))
    np.testing.assert_array_equal(genes.X, model.network.gene_embeddings(ids).detach().numpy())
    assert genes.obs_names.tolist() == few.var_names.tolist()
    whole = sg.tl.gene_embeddings(None, model)
    assert whole.n_obs == len(model.vocab.gene_ids())
    np.testing.assert_array_equal(whole[few.var_names].X, genes.X)
    assert "X_scGPT" not in few.varm


def test_contextual_are_means_over_the_cells(few, model):
    genes = sg.tl.gene_embeddings(few, model, kind="contextual")
    wanted = naive(model, few)
    assert set(genes.obs["token"]) == {token for _, token in wanted}
    np.testing.assert_allclose(genes.X, [wanted[None, token] for token in genes.obs["token"]], atol=1e-5)
    cells = model.cells(few)
    counts = sum(np.bincount(w.genes, minlength=len(model.vocab)) for w in cells.windows())
    assert genes.obs["n_cells"].tolist() == counts[model.vocab.ids(genes.obs["token"])].tolist()


def test_of_each_group_and_without_unlabelled_cells(few, model):
    few.obs["bulk_labels"] = few.obs["bulk_labels"].astype(object)
    few.obs.iloc[:5, few.obs.columns.get_loc("bulk_labels")] = None
    genes = sg.tl.gene_embeddings(few, model, kind="contextual", groupby="bulk_labels", min_cells=3)
    labels = few.obs["bulk_labels"].tolist()
    wanted = naive(model, few, labels)
    assert genes.obs["n_cells"].min() >= 3
    assert set(genes.obs["group"]) == set(labels) - {None}
    keys = zip(genes.obs["group"], genes.obs["token"], strict=True)
    np.testing.assert_allclose(genes.X, [wanted[key] for key in keys], atol=1e-5)
    assert genes.obs_names.is_unique


def test_batches_order_and_container_change_nothing(few, model, tmp_path):
    wanted = sg.tl.gene_embeddings(few, model, kind="contextual")
    path = tmp_path / "cells.h5ad"
    few.write_h5ad(path)
    dense = few.copy()
    dense.X = few.X.toarray()
    shuffled = few[np.random.default_rng(0).permutation(few.n_obs), np.random.default_rng(1).permutation(few.n_vars)]
    others = {
        "one by one": (few, {"batch_size": 1}),
        "few tokens": (few, {"batch_tokens": 100}),
        "dense": (dense, {}),
        "backed": (sc.read_h5ad(path, backed="r"), {}),
        "shuffled view": (shuffled, {}),
        "MuData": (MuData({"rna": few.copy()}), {}),
    }
    for name, (data, options) in others.items():
        genes = sg.tl.gene_embeddings(data, model, kind="contextual", **options)
        np.testing.assert_allclose(genes[wanted.obs_names].X, wanted.X, atol=2e-6, err_msg=name)


def test_scanpy_takes_them(few, model, tmp_path):
    genes = sg.tl.gene_embeddings(few, model, kind="contextual", key_added="X_scGPT_gene")
    sc.pp.neighbors(genes, use_rep="X", metric="cosine", n_neighbors=5)
    sc.tl.leiden(genes, flavor="igraph", n_iterations=2)
    sc.tl.umap(genes, maxiter=5)
    assert genes.obsm["X_umap"].shape == (genes.n_obs, 2)
    genes.write_h5ad(tmp_path / "genes.h5ad")
    few.write_h5ad(tmp_path / "cells.h5ad")
    varm = sc.read_h5ad(tmp_path / "cells.h5ad").varm["X_scGPT_gene"]
    at = few.var_names.get_indexer(genes.obs_names)
    np.testing.assert_array_equal(varm[at], genes.X)
    assert np.isnan(np.delete(varm, at, axis=0)).all()


@pytest.mark.usefixtures("bag")
def test_any_family(few):
    genes = sg.tl.gene_embeddings(few, bag_of(few.var_names), kind="contextual")
    static = sg.tl.gene_embeddings(few, bag_of(few.var_names))
    np.testing.assert_allclose(genes.X, static[genes.obs_names].X, atol=1e-6)  # its states are its embeddings


def test_what_does_not_go_together_is_refused(few, model):
    before = few.copy()
    with pytest.raises(OptionError, match="mean over cells"):
        sg.tl.gene_embeddings(None, model, kind="contextual")
    with pytest.raises(OptionError, match="the same in all cells"):
        sg.tl.gene_embeddings(few, model, groupby="bulk_labels")
    with pytest.raises(OptionError, match="key_added="):
        sg.tl.gene_embeddings(few, model, kind="contextual", groupby="bulk_labels", key_added="x")
    with pytest.raises(OptionError, match="kind="):
        sg.tl.gene_embeddings(few, model, kind="mean")
    with pytest.raises(OptionError, match="min_cells=0"):
        sg.tl.gene_embeddings(few, model, kind="contextual", min_cells=0)
    with pytest.raises(DataError, match="min_cells=1000"):
        sg.tl.gene_embeddings(few, model, kind="contextual", min_cells=1000, key_added="x")
    with pytest.raises(MissingKeyError, match="groupby='type'"):
        sg.tl.gene_embeddings(few, model, kind="contextual", groupby="type")
    broken = few.copy()
    broken.X = sp.csr_matrix(broken.X.toarray() - 1)
    with pytest.raises(DataError, match="negative"):
        sg.tl.gene_embeddings(broken, model)
    assert list(few.varm) == list(before.varm)
    assert list(few.uns) == list(before.uns)


def test_weights_that_are_not_numbers_are_refused(few, model):
    with torch.no_grad():
        model.network.blocks[0].linear1.weight[0, 0] = torch.nan
    with pytest.raises(DataError, match="NaN or infinite"):
        sg.tl.gene_embeddings(few, model, kind="contextual", key_added="x")
    assert "x" not in few.varm
