import json

import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch
from anndata import AnnData
from tests.parity_plugin import RTOL
from tests.scberts import FILE, GENES, full_size_file, original, original_folder, small_model, stored

import scgalore as sg
from scgalore.errors import DataError, OptionError, WeightsError
from scgalore.model import SCBERT
from scgalore.model.families import FAMILIES, known_keys
from scgalore.nn import SCBERTConfig
from scgalore.nn import scbert as network_module
from scgalore.objectives import Classification

OPTIONS = {"labels_key": "bulk_labels", "max_epochs": 2, "batch_size": 16, "accelerator": "cpu"}


@pytest.fixture(params=["favor", "exact"])
def small(request, few):
    return small_model([*few.var_names, "ABSENT"], attention=request.param)


def counts_of(n=5):
    adata = AnnData(sp.csr_matrix(original()["counts"][:n].astype(np.float32)))
    adata.var_names = GENES
    return adata


# Released files ---------------------------------------------------------------------------------------------------


def test_every_tensor_of_the_originals_file_is_loaded_or_named(tmp_path):
    model = sg.model.load(original_folder(tmp_path))
    assert type(model) is SCBERT
    report = model.load_report
    assert not report.random
    assert all(name.startswith("optimizer_state_dict.") for name in report.ignored)
    assert set(report.loaded) == {*stored(), "pos_emb.emb.digits"}
    for name, tensor in stored().items():
        own = model.network.state_dict()[name]
        rows = own[: len(tensor)] if name == "pos_emb.emb.weight" else own
        assert torch.equal(rows, tensor.to(own.dtype)), name


def test_embeddings_from_counts_are_the_originals(tmp_path):
    folder, z = original_folder(tmp_path), original()
    expected = {"mean": z["encodings"].mean(axis=1), "cls": z["encodings"][:, -1]}
    for pooling, cells in expected.items():
        adata = counts_of()
        sg.tl.embed(adata, SCBERT.from_pretrained(folder, pooling=pooling))
        unit = cells / np.linalg.norm(cells, axis=1, keepdims=True)
        np.testing.assert_allclose(adata.obsm["X_scBERT"], unit, rtol=0, atol=RTOL)
    adata = counts_of()
    sg.tl.embed(adata, str(folder / "panglao_pretrain.pth"))  # the file by itself, and the mean
    np.testing.assert_allclose(
        adata.obsm["X_scBERT"],
        expected["mean"] / np.linalg.norm(expected["mean"], axis=1, keepdims=True),
        rtol=0,
        atol=RTOL,
    )


def test_ours_and_theirs_hold_the_same_bits(tmp_path):
    model = sg.model.load(original_folder(tmp_path))
    model.save(tmp_path / "ours")
    again = sg.model.load(tmp_path / "ours")
    assert not again.load_report.random
    assert not again.load_report.ignored
    again.export_scbert(tmp_path / "theirs")
    exported = stored(tmp_path / "theirs" / "scbert.pth")
    assert exported.keys() == stored().keys()
    for name, tensor in stored().items():
        assert exported[name].dtype == tensor.dtype
        assert torch.equal(exported[name], tensor), name
    assert json.loads((tmp_path / "theirs" / "vocab.json").read_text()) == {g: row for row, g in enumerate(GENES)}
    assert sg.model.load(tmp_path / "theirs").vocab == model.vocab


@pytest.mark.slow
def test_a_file_of_the_full_size_holds_the_same_bits(tmp_path):
    full_size_file(tmp_path / "panglao_pretrain.pth")
    model = sg.model.load(tmp_path / "panglao_pretrain.pth")
    assert model.network.config == FAMILIES["scbert"].sizes["scbert"]
    assert sum(parameter.numel() for parameter in model.network.parameters() if parameter.requires_grad) == 5_007_207
    assert not model.load_report.random
    assert len(model.load_report.ignored) == 3 * 88
    model.save(tmp_path / "ours")
    sg.model.load(tmp_path / "ours").export_scbert(tmp_path / "theirs")
    exported, released = stored(tmp_path / "theirs" / "scbert.pth"), stored(tmp_path / "panglao_pretrain.pth")
    assert exported.keys() == released.keys()
    for name, tensor in released.items():
        assert exported[name].dtype == tensor.dtype
        assert torch.equal(exported[name], tensor), name
    genes = model.vocab.tokens[:3]
    adata = AnnData(sp.csr_matrix(np.array([[5, 0, 1], [1, 1, 1]], dtype=np.float32)))
    adata.var_names = genes
    sg.tl.embed(adata, model, min_matched=0)
    one = adata[1:].copy()
    sg.tl.embed(one, model, min_matched=0)
    np.testing.assert_array_equal(one.obsm["X_scBERT"], adata.obsm["X_scBERT"][1:])


def test_a_head_of_the_original_is_left_out(tmp_path):
    folder = original_folder(tmp_path)
    content = torch.load(FILE, weights_only=True)
    state = {name: tensor for name, tensor in content["model_state_dict"].items() if not name.startswith("to_out.")}
    state |= {"to_out.conv1.weight": torch.ones(1, 1, 1, 40), "to_out.fc3.weight": torch.ones(3, 128)}
    (folder / "panglao_pretrain.pth").unlink()
    torch.save({**content, "model_state_dict": state}, folder / "finetuned.pth")
    model = sg.model.load(folder)
    assert set(model.load_report.random) == {"to_out.weight", "to_out.bias"}
    assert {"to_out.conv1.weight", "to_out.fc3.weight"} <= set(model.load_report.ignored)


def test_an_encoder_tensor_that_is_missing_is_an_error(tmp_path):
    folder = original_folder(tmp_path)
    content = torch.load(FILE, weights_only=True)
    del content["model_state_dict"]["performer.net.layers.1.0.fn.to_q.weight"]
    (folder / "panglao_pretrain.pth").unlink()
    torch.save(content, folder / "some.pth")
    with pytest.raises(WeightsError, match=r"layers\.1\.0\.fn\.to_q\.weight would stay random"):
        sg.model.load(folder)


def test_the_registry_names_file_hash_and_licence():
    entry = sg.weights.get_entry("scbert")
    assert entry.family == "scbert"
    assert entry.refusal is None
    (file,) = entry.files
    assert (file.size, len(file.sha256)) == (87_631_538, 64)
    assert "GPL-3.0" in entry.licence
    assert entry.revision in file.url


def test_keys_are_known_before_weights_are_loaded(tmp_path, small):
    assert known_keys("scbert", "embed").embedding == "X_scBERT"
    assert known_keys("scgpt", "embed").embedding == "X_scGPT"
    small.save(tmp_path / "model")
    assert known_keys(tmp_path / "model", "embed").embedding == "X_scBERT"
    assert known_keys(tmp_path / "nothing", "embed") is None


# What must not matter ---------------------------------------------------------------------------------------------


def test_batch_order_container_and_scale_do_not_matter(small, few, tmp_path):
    counts = few.copy()
    # Counts of which the log-normalised values of `few` could have been made, of unequal depth.
    counts.X = sp.csr_matrix(np.rint(np.expm1(few.X.toarray()) * np.linspace(0.5, 3, few.n_obs)[:, None]))
    expected = small.get_latent_representation(counts, batch_size=64)
    np.testing.assert_allclose(small.get_latent_representation(counts, batch_size=3), expected, rtol=0, atol=2e-6)
    order = np.random.default_rng(0).permutation(few.n_obs)
    moved = counts[order, np.random.default_rng(1).permutation(few.n_vars)]
    np.testing.assert_allclose(small.get_latent_representation(moved), expected[order], rtol=0, atol=2e-6)
    logged = counts.copy()
    sc.pp.normalize_total(logged, target_sum=1234)
    sc.pp.log1p(logged, base=2)
    np.testing.assert_allclose(small.get_latent_representation(logged), expected, rtol=0, atol=2e-6)
    for made in (sp.csc_matrix(counts.X), counts.X.toarray()):
        other = counts.copy()
        other.X = made
        np.testing.assert_allclose(small.get_latent_representation(other), expected, rtol=0, atol=2e-6)
    counts.write_h5ad(tmp_path / "cells.h5ad")
    backed = sc.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    np.testing.assert_allclose(small.get_latent_representation(backed), expected, rtol=0, atol=2e-6)
    files = [tmp_path / "cells.h5ad", logged]  # a file of counts, and an object of logarithms
    tokens = small.tokenizer_config()
    stream = sg.data.stream(files, small.vocab, config=tokens, shuffle=False, batch_size=16, buffer_size=32)
    np.testing.assert_allclose(small.get_latent_representation(stream), np.tile(expected, (2, 1)), rtol=0, atol=2e-6)


def test_genes_that_the_data_lack_are_genes_without_expression(few):
    model = small_model(few.var_names)
    unexpressed = few.copy()
    unexpressed.X = sp.csr_matrix(few.X.toarray() * (np.arange(few.n_vars) < 100))
    expected = model.get_latent_representation(unexpressed)
    found = model.get_latent_representation(few[:, :100].copy())
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_a_cell_without_a_known_gene_is_refused_although_all_genes_are_tokens(small, few):
    few.X[3] = 0
    few.X[3, 149] = 2
    model = small_model(few.var_names[:149])
    with pytest.raises(DataError, match="express no gene of the model's vocabulary"):
        model.get_latent_representation(few[[3, 4, 5]].copy())


# Training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [None, "lora", pytest.param("lte", marks=pytest.mark.slow)])
def test_finetune_annotate_and_save(small, few, tmp_path, adapter):
    few = few[::2].copy()
    frozen = small.network.gene_table.weight.clone()
    how = {} if adapter is None else {"adapter": adapter, "adapter_options": {"rank": 2}}
    model = sg.tl.finetune(few, small, save_dir=tmp_path / "model", embedding="frozen", prior="none", **how, **OPTIONS)
    assert type(model) is SCBERT
    assert few.obsm["X_scBERT"].shape == (45, 32)
    assert few.obs["scbert_label"].notna().all()
    assert torch.equal(model.network.gene_table.weight, frozen)
    loaded = sg.model.load(tmp_path / "model")
    query = few[::2].copy()
    sg.tl.annotate(query, loaded)
    assert (query.obs["scbert_label"].astype(str) == few.obs["scbert_label"][::2].astype(str)).all()
    np.testing.assert_allclose(query.obsm["X_scBERT"], few.obsm["X_scBERT"][::2], rtol=0, atol=1e-5)


def test_adapters_take_every_layer_of_the_blocks(small):
    from scgalore.adapters import attach_adapter

    adapter = attach_adapter("lora", small.network, rank=2, targets="all")
    try:
        trained = {name.partition(".lora")[0] for name, p in small.network.named_parameters() if p.requires_grad}
        for number in range(2):
            for part in ("0.fn.to_q", "0.fn.to_k", "0.fn.to_v", "0.fn.to_out", "1.fn.fn.w1", "1.fn.fn.w2"):
                assert f"performer.net.layers.{number}.{part}" in trained
    finally:
        adapter.detach()


def test_interrupted_training_is_resumed_to_the_bit_with_features_that_were_redrawn(few, tmp_path, monkeypatch):
    monkeypatch.setattr(network_module, "REDRAW_AFTER", 3)
    options = {**OPTIONS, "prior": "none", "max_epochs": 3}
    whole, parts = (small_model(few.var_names[:40]) for _ in range(2))
    start = {name: tensor.clone() for name, tensor in whole.network.state_dict().items()}
    whole.train(few, **options)
    loss, seen = Classification.__call__, []

    def stopping(self, network, batch):
        seen.append(1)
        if len(seen) > 8:  # in the second epoch
            raise KeyboardInterrupt
        return loss(self, network, batch)

    monkeypatch.setattr(Classification, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        parts.train(few, checkpoint_dir=tmp_path, **options)
    monkeypatch.setattr(Classification, "__call__", loss)
    parts.train(few, checkpoint_dir=tmp_path, resume=True, **options)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(parts.network.state_dict()[name], tensor), name
    redrawn = "performer.net.layers.0.0.fn.fast_attention.projection_matrix"
    assert not torch.equal(whole.network.state_dict()[redrawn], start[redrawn])


def test_memory_is_estimated_for_all_genes_where_all_are_tokens():
    how = {"batch_size": 1, "n_classes": 5, "accelerator": "cpu"}
    whole = sg.estimate_memory("scbert", genes_per_cell=500, **how)
    head, logits = 5 * 200 + 5, 7 * 200 + 7  # classes of expression are not trained here
    assert whole.gradients == 4 * (5_007_207 - logits + head)
    # Per token: inputs of two norms and what they give, q, k, v and results, two maps of 800; in each of 6 blocks.
    kept = 4 * 16907 * 6 * (4 * 200 + 4 * 640 + 2 * 800)
    assert 0.9 * kept < whole.activations < 1.2 * kept
    config = FAMILIES["scbert"].sizes["scbert"].replace(attention="exact")
    few, more = (sg.estimate_memory(config, genes_per_cell=n, **how).activations for n in (500, 1000))
    assert 1.8 * few < more < whole.activations / 10


def test_pretraining_goes_on_with_masked_classes(small, few, tmp_path):
    model = sg.tl.finetune(few, small, max_epochs=2, batch_size=16, lr=1e-2, save_dir=tmp_path / "model")
    assert few.uns["finetune"]["params"]["task"] == "expression"
    assert {"train_accuracy", "validation_loss"} <= set(model.history)
    assert model.history["train_loss"].iloc[-1] < model.history["train_loss"].iloc[0]
    assert not torch.equal(model.network.to_out.weight, small_model([*few.var_names, "ABSENT"]).network.to_out.weight)
    again = sg.model.load(tmp_path / "model")
    assert not again.load_report.random
    with pytest.raises(OptionError, match="can be pre-trained for 'classes'"):
        sg.tl.finetune(few, small, objective="masked")


def test_tasks_that_need_something_else_are_refused(small, few):
    few.obs["perturbation"] = np.where(np.arange(few.n_obs) % 2 == 0, "control", few.var_names[0])
    few.obs["split"] = "train"
    with pytest.raises(OptionError, match="task='perturbation' needs a network with flags"):
        sg.tl.finetune(few, small, pert_key="perturbation", split_key="split")


def test_the_pipeline_compares_with_rules(few, tmp_path):
    few.write_h5ad(tmp_path / "cells.h5ad")
    small_model(few.var_names, attention="exact").save(tmp_path / "weights")
    options = {"max_epochs": 1, "batch_size": 16, "accelerator": "cpu"}
    config = sg.pipeline.RunConfig(
        tmp_path / "cells.h5ad", tmp_path / "run", task="expression", model=tmp_path / "weights", n_genes=100, **options
    )
    folder = sg.pipeline.run(config)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0 < metrics["test"]["mse"] < 25
    assert "15% of the expressed genes" in (folder / "report.md").read_text()


# Other forms ------------------------------------------------------------------------------------------------------


def test_exact_attention_keeps_the_weights_and_leaves_features_out(few):
    model = small_model(few.var_names)
    exact = model.with_parts(attention="exact")
    assert exact.network.config.attention == "exact"
    own = exact.network.state_dict()
    left = {name for name in model.network.state_dict() if name not in own}
    assert all("projection_matrix" in name or "calls_since" in name for name in left)
    for name, tensor in own.items():
        assert torch.equal(model.network.state_dict()[name], tensor)
    assert exact.cells(few).lengths.max() < model.cells(few).lengths.min() == 151
    with pytest.raises(OptionError, match="no random features"):
        exact.with_parts(attention="favor")
    with pytest.raises(OptionError, match="no random features"):
        exact.export_scbert("nowhere")


def test_the_originals_kind_of_head_reads_all_tokens(small, few, tmp_path):
    model = small.with_parts(head="tokens")
    np.testing.assert_array_equal(model.get_latent_representation(few), small.get_latent_representation(few))
    model = sg.tl.finetune(few, model, save_dir=tmp_path / "model", prior="none", **{**OPTIONS, "max_epochs": 1})
    assert [tuple(p.shape) for p in model.network.cell_heads["classes"].parameters()][::2] == [
        (512, 153),
        (128, 512),
        (3, 128),
    ]
    assert model.network.to_scalars.weight.shape == (1, 32)
    assert model.network.to_scalars.weight.ne(small.with_parts(head="tokens").network.to_scalars.weight).any()
    loaded = sg.model.load(tmp_path / "model")
    query = few[::3].copy()
    sg.tl.annotate(query, loaded)
    assert (query.obs["scbert_label"].astype(str) == few.obs["scbert_label"][::3].astype(str)).all()
    np.testing.assert_allclose(query.obsm["X_scBERT"], few.obsm["X_scBERT"][::3], rtol=0, atol=1e-5)
    back = loaded.with_parts(head="linear")
    assert back.memory is None
    assert not back.network.config.heads


def test_wrong_arguments_are_named(tmp_path, few):
    with pytest.raises(OptionError, match=r"pooling='max': .*mean"):
        SCBERT.from_pretrained(original_folder(tmp_path), pooling="max")
    vocab = small_model(few.var_names).vocab
    with pytest.raises(WeightsError, match="heads are added by training"):
        SCBERT.from_config(SCBERTConfig(n_tokens=len(vocab), pad_id=vocab.pad_id, heads={"classes": 2}), vocab)


def test_heads_are_left_behind_with_a_warning(few, tmp_path, caplog):
    model = small_model(few.var_names)
    model.put_heads({"classes": 3}, seed=0)
    model.export_scbert(tmp_path / "out")
    assert "are not exported" in caplog.text
    assert not [name for name in stored(tmp_path / "out" / "scbert.pth") if name.startswith("heads")]
