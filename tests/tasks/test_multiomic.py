"""RNA and proteins together: learned, predicted from RNA, saved, and refused where something is missing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from mudata import MuData

import scgalore as sg
from scgalore.data.proteins import centred_log_ratio
from scgalore.errors import DataError, MissingKeyError, OptionError, WeightsError
from scgalore.model import SCGPT
from scgalore.tasks.proteins import pearson

TRAINING: dict[str, Any] = {"max_epochs": 2, "batch_size": 16, "lr": 5e-3, "accelerator": "cpu"}
PROTEINS = ["CD4_TotalSeqB", "unheard-of", "CD45RA", "CD19", "IgG1"]


@pytest.fixture
def cite(few: AnnData) -> AnnData:
    """The cells with counts of five antibodies, four of which follow genes."""
    x = few.X.toarray()
    frequent = np.argsort(x.mean(axis=0))[-4:]
    rate = np.exp(1.5 + x[:, frequent])
    counts = np.random.default_rng(0).poisson(np.column_stack([rate, np.ones(len(x))]))
    few.obsm["protein_expression"] = pd.DataFrame(counts, index=few.obs_names, columns=PROTEINS)
    few.obs["part"] = np.where(np.arange(90) % 5 == 0, "test", np.where(np.arange(90) % 5 == 1, "validation", "train"))
    return few


@pytest.fixture
def known(cite: AnnData, make_model: Callable[..., SCGPT]) -> SCGPT:
    """Random weights whose vocabulary has genes of the proteins."""
    return make_model([*cite.var_names, *({"CD4", "PTPRC", "CD19"} - set(cite.var_names))])


@pytest.fixture
def fitted(cite: AnnData, known: SCGPT) -> Any:
    return sg.tl.finetune(cite, known, task="multiomic", split_key="part", **TRAINING)


def test_writes_joint_embeddings_proteins_and_scores_of_what_was_held_out(cite: AnnData, fitted: SCGPT) -> None:
    content = cite.uns["finetune"]
    assert content["params"]["task"] == "multiomic"
    assert content["params"]["protein"] == "protein_expression"
    assert list(content["isotype_controls"]) == ["IgG1"]
    proteins = content["proteins"]
    assert list(proteins.index) == PROTEINS[:4]
    assert list(proteins["gene"]) == ["CD4", "", "PTPRC", "CD19"]
    assert cite.obsm["X_scGPT_multi"].shape == (90, 16)
    np.testing.assert_allclose(np.linalg.norm(cite.obsm["X_scGPT_multi"], axis=1), 1, rtol=1e-5)
    assert cite.obsm["scgpt_protein"].shape == (90, 4)
    test = (cite.obs["part"] == "test").to_numpy()
    truth = centred_log_ratio(cite.obsm["protein_expression"].iloc[:, :4].to_numpy())
    expected = pearson(cite.obsm["scgpt_protein"][test], truth[test])
    np.testing.assert_allclose(proteins["pearson"], expected, atol=1e-5)
    assert content["metrics"].loc["test", "pearson"] == pytest.approx(expected.mean(), abs=1e-5)
    assert proteins["pearson_ridge"].mean() > 0.3
    same = ~proteins["corrected"].to_numpy()
    np.testing.assert_allclose(proteins["pearson"][same], proteins["pearson_ridge"][same], atol=1e-5)


def test_results_survive_a_file(cite: AnnData, fitted: SCGPT, tmp_path: Path) -> None:
    cite.write_h5ad(tmp_path / "cells.h5ad")
    read = anndata.read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(read.uns["finetune"]["proteins"], cite.uns["finetune"]["proteins"])
    np.testing.assert_array_equal(read.obsm["scgpt_protein"], cite.obsm["scgpt_protein"])


def test_other_cells_are_embedded_jointly(cite: AnnData, fitted: SCGPT) -> None:
    written = cite.obsm.pop("X_scGPT_multi")
    prot = AnnData(cite.obsm["protein_expression"].iloc[::-1].astype(float))
    sg.tl.embed(cite, fitted, protein="protein_expression")
    np.testing.assert_allclose(cite.obsm["X_scGPT_multi"], written, atol=1e-5)
    assert "X_scGPT" not in cite.obsm
    mdata = MuData({"rna": cite, "prot": prot})
    sg.tl.embed(mdata, fitted, mod=["rna", "prot"], key_added="joint")
    np.testing.assert_array_equal(mdata["rna"].obsm["joint"], cite.obsm["X_scGPT_multi"])
    prot.X[:, 0] = 100 * prot.X[::-1, 0]
    sg.tl.embed(cite, fitted, protein=prot, key_added="other")
    scaled = AnnData(prot.X / 7, obs=prot.obs, var=prot.var, layers={"counts": prot.X})
    sg.tl.embed(cite, fitted, protein=scaled, protein_layer="counts", key_added="layer")
    np.testing.assert_array_equal(cite.obsm["layer"], cite.obsm["other"])
    assert not np.allclose(cite.obsm["other"], written, atol=1e-4)
    cite.obsm["unknown"] = pd.DataFrame(3, index=cite.obs_names, columns=["CD56", "CD57"])
    with pytest.raises(DataError, match="no tokens for proteins such as 'CD56', 'CD57'"):
        sg.tl.embed(cite, fitted, protein="unknown")


def test_tokens_of_proteins_start_from_their_genes(cite: AnnData, known: SCGPT) -> None:
    before = known.network.gene_table.weight.detach().clone()
    n = len(known.vocab)
    model = sg.tl.finetune(cite, known, task="multiomic", split_key="part", **{**TRAINING, "embedding": "frozen"})
    assert model.vocab.tokens[n:] == ("p_CD4", "p_unheard-of", "p_CD45RA", "p_CD19")
    table = model.network.gene_table.weight
    assert torch.equal(table[:n], before)
    for token, gene in (("p_CD4", "CD4"), ("p_CD45RA", "PTPRC"), ("p_CD19", "CD19")):
        assert torch.equal(table[model.vocab[token]], before[model.vocab[gene]])
    assert (table[model.vocab["p_unheard-of"]] != before).any(dim=1).all()


def test_proteins_wherever_they_are_train_the_same(cite: AnnData, make_model: Callable[..., SCGPT]) -> None:
    prot = AnnData(cite.obsm["protein_expression"].iloc[::-1].astype(float))
    rna = cite.copy()
    del rna.obsm["protein_expression"]
    elsewhere = cite.copy()
    elsewhere.obsm["adt"] = elsewhere.obsm.pop("protein_expression")
    mdata = MuData({"rna": rna.copy(), "prot": prot})
    how = {"split_key": "part", **TRAINING, "max_epochs": 1}
    calls = (
        (cite, {"task": "multiomic"}),
        (elsewhere, {"protein": "adt"}),
        (rna, {"protein": prot}),
        (mdata, {"task": "multiomic", "mod": ["rna", "prot"]}),
    )
    found = []
    for data, named in calls:
        sg.tl.finetune(data, make_model(cite.var_names), **named, **how)
        found.append(data["rna"] if isinstance(data, MuData) else data)
    for other in found[1:]:
        for key in ("X_scGPT_multi", "scgpt_protein"):
            np.testing.assert_array_equal(other.obsm[key], found[0].obsm[key])
    assert "rna:scgpt_split" in mdata.obs
    assert found[2].uns["finetune"]["params"]["protein"] == "90 cells x 5 proteins"


def test_saved_and_loaded_it_predicts_the_same_and_is_compared_with_what_was_measured(
    cite: AnnData, fitted: SCGPT, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "model")
    loaded = sg.model.load(tmp_path / "model")
    assert loaded.memory == fitted.memory
    query = cite[::2].copy()
    del query.obsm["scgpt_protein"]
    sg.tl.predict_protein(query, loaded, protein="protein_expression", key_added="mine")
    np.testing.assert_allclose(query.obsm["mine_protein"], cite.obsm["scgpt_protein"][::2], atol=1e-5)
    truth = centred_log_ratio(query.obsm["protein_expression"].iloc[:, :4].to_numpy())
    table = query.uns["mine"]["proteins"]
    assert list(table.index) == PROTEINS[:4], "names of the columns"
    np.testing.assert_allclose(table["pearson"], pearson(query.obsm["mine_protein"], truth))
    np.testing.assert_allclose(loaded.predict(query)["CD45RA"], query.obsm["mine_protein"][:, 2], atol=1e-5)
    prot = AnnData(query.obsm["protein_expression"] / 7, layers={"counts": query.obsm["protein_expression"].to_numpy()})
    sg.tl.predict_protein(query, loaded, protein=prot, protein_layer="counts", key_added="layered")
    pd.testing.assert_frame_equal(query.uns["layered"]["proteins"], table)
    alone = sg.tl.predict_protein(query, loaded, copy=True)
    assert "pearson" not in alone.uns["predict_protein"]["proteins"]
    sg.tl.annotate(alone, loaded, key_added="again")
    np.testing.assert_array_equal(alone.obsm["again_protein"], alone.obsm["scgpt_protein"])


def test_in_the_layout_of_the_original_it_embeds_the_same(cite: AnnData, fitted: SCGPT, tmp_path: Path) -> None:
    fitted.export_scgpt(tmp_path / "original")
    read = SCGPT.from_pretrained(tmp_path / "original")
    sg.tl.embed(cite, read, protein="protein_expression", key_added="again")
    np.testing.assert_allclose(cite.obsm["again"], cite.obsm["X_scGPT_multi"], atol=1e-5)


def test_an_interrupted_run_and_an_adapter_train(
    cite: AnnData, make_model: Callable[..., SCGPT], tmp_path: Path
) -> None:
    how = {"task": "multiomic", "split_key": "part", "checkpoint_dir": tmp_path / "run", **TRAINING}
    longer = {**how, "max_epochs": 3, "lr_schedule": "constant", "warmup": 0}
    sg.tl.finetune(cite, make_model(cite.var_names), **{**longer, "max_epochs": 1})
    resumed, whole = cite.copy(), cite.copy()
    sg.tl.finetune(resumed, make_model(cite.var_names), resume=True, **longer)
    sg.tl.finetune(whole, make_model(cite.var_names), **{**longer, "checkpoint_dir": None})
    np.testing.assert_array_equal(resumed.obsm["X_scGPT_multi"], whole.obsm["X_scGPT_multi"])
    before = make_model(cite.var_names)
    kept = before.network.get_parameter("transformer_encoder.layers.0.linear1.weight").detach().clone()
    after = sg.tl.finetune(cite, before, adapter="lora", **{**how, "checkpoint_dir": None})
    assert not torch.equal(after.network.get_parameter("transformer_encoder.layers.0.linear1.weight"), kept)


def test_fewer_proteins_are_compared_with_by_name(cite: AnnData, fitted: SCGPT) -> None:
    cite.obsm["some"] = cite.obsm["protein_expression"][["CD19", "CD45RA", "IgG1"]].rename(
        columns={"CD19": "CD19_clone"}
    )
    sg.tl.predict_protein(cite, fitted, protein="some")
    table = cite.uns["predict_protein"]["proteins"]
    assert table["pearson"].isna().tolist() == [True, True, False, False]
    truth = centred_log_ratio(cite.obsm["some"][["CD45RA", "CD19_clone"]].to_numpy())
    predicted = cite.obsm["scgpt_protein"][:, 2:]
    expected = pearson(predicted - predicted.mean(axis=1, keepdims=True), truth)
    np.testing.assert_allclose(table["pearson"][2:], expected, atol=1e-6)


def test_a_second_run_goes_on_with_the_same_tokens(cite: AnnData, fitted: SCGPT) -> None:
    tokens, table = fitted.vocab.tokens, fitted.network.gene_table.weight.detach().clone()
    again = sg.tl.finetune(cite, fitted, task="multiomic", split_key="part", **{**TRAINING, "embedding": "frozen"})
    assert again.vocab.tokens == tokens
    assert torch.equal(again.network.gene_table.weight, table)


def test_where_validation_cells_do_not_gain_the_prediction_is_ridge_regression(cite: AnnData, known: SCGPT) -> None:
    counts = cite.obsm["protein_expression"]
    noise = np.random.default_rng(1).poisson(50, counts.shape)  # what no RNA tells
    cite.obsm["protein_expression"] = pd.DataFrame(noise, index=counts.index, columns=counts.columns)
    model = sg.tl.finetune(cite, known, task="multiomic", split_key="part", **{**TRAINING, "lr": 0.05})
    assert not any(model.memory.corrects)
    predicted = model.memory.values(model.memory.prior.predict(cite, sg.data.reading.AS_IT_IS))
    np.testing.assert_allclose(cite.obsm["scgpt_protein"], predicted, atol=1e-5)


def test_test_cells_change_nothing(cite: AnnData, make_model: Callable[..., SCGPT]) -> None:
    other = cite.copy()
    test = (other.obs["part"] == "test").to_numpy()
    other.obsm["protein_expression"].loc[test] += 100
    for adata in (cite, other):
        sg.tl.finetune(adata, make_model(cite.var_names), task="multiomic", split_key="part", **TRAINING)
    np.testing.assert_array_equal(cite.obsm["scgpt_protein"], other.obsm["scgpt_protein"])


# Refused before anything is trained -----------------------------------------------------------------------------------


def refused(data: Any, model: Any, error: type[Exception], message: str, **named: Any) -> None:
    with pytest.raises(error, match=message):
        sg.tl.finetune(data, model, **{"task": "multiomic", **TRAINING, **named})


def test_bad_input_is_named(cite: AnnData, model: SCGPT) -> None:
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    lost = cite.obsm["protein_expression"].astype(float)
    lost.iloc[3, 1] = np.nan
    cite.obsm["lost"] = lost
    refused(cite, model, DataError, "contains 1 NaN or infinite values", protein="lost")
    refused(
        cite,
        model,
        MissingKeyError,
        r"no 'adt' .*Pass the key of the antibody counts",
        protein="adt",
    )
    prot = AnnData(cite.obsm["protein_expression"].iloc[:50].astype(float))
    refused(cite, model, DataError, "40 of 90 cells with RNA have no proteins", protein=prot)
    mdata = MuData({"rna": cite.copy(), "prot": prot})
    refused(mdata, model, DataError, "40 of 90 cells with RNA have no proteins", mod=["rna", "prot"])
    refused(mdata, model, MissingKeyError, "no modality 'adt'; it has 'rna', 'prot'", mod=["rna", "adt"])
    refused(mdata, model, OptionError, "expected the name of one modality, or of two", mod=["rna", "prot", "atac"])
    refused(
        mdata,
        model,
        OptionError,
        "protein=.* is an argument of task='multiomic'",
        mod=["rna", "prot"],
        task="expression",
    )
    refused(cite, model, OptionError, "requires a MuData, found an AnnData", mod=["rna", "prot"])
    refused(cite, model, OptionError, "protein=3: it must be a key", protein=3)
    refused(cite, model, OptionError, "so there is no loss", masked_weight=0, joint_weight=0, protein_weight=0)
    refused(cite, model, OptionError, "not available for proteins", curriculum=[50, 100])
    refused(
        cite, model, OptionError, "is read by this call", protein="protein_expression", key_added="protein_expression"
    )
    refused(cite, model, OptionError, "max_length=5 leaves no tokens for genes, since all 4 proteins", max_length=5)
    other = cite.copy()
    other.var_names = [f"x{i}" for i in range(other.n_vars)]
    refused(other, model, DataError, "None of the 150 gene names is in the vocabulary")
    constant = cite.copy()
    constant.obsm["protein_expression"] = pd.DataFrame(5, index=cite.obs_names, columns=["CD3", "CD4"])
    refused(constant, model, DataError, "constant over the training cells")
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not {"X_scGPT_multi", "scgpt_protein"} & set(cite.obsm)


def test_what_a_model_was_not_trained_for_is_named(cite: AnnData, model: SCGPT, fitted: SCGPT) -> None:
    with pytest.raises(OptionError, match="was not trained to predict proteins.*task='multiomic'"):
        sg.tl.predict_protein(cite, model)
    cite.obsm["others"] = pd.DataFrame(3, index=cite.obs_names, columns=["CD56", "CD57"])
    with pytest.raises(DataError, match="'CD56', 'CD57', but the model was trained on others, such as 'CD4_TotalSeqB'"):
        sg.tl.predict_protein(cite, fitted, protein="others")
    with pytest.raises(OptionError, match="protein=3"):
        sg.tl.predict_protein(cite, fitted, protein=3)
    for call in (sg.tl.predict_protein, sg.tl.embed):
        with pytest.raises(OptionError, match="protein_layer='counts' needs proteins"):
            call(cite, fitted, protein_layer="counts")
    without: dict[str, dict[str, Any]] = {"expression": {}, "integration": {"batch_key": "part"}}
    for task, options in without.items():  # whose cells come without modalities
        with pytest.raises(OptionError, match="decoders that receive the modality of each token.*task='multiomic'"):
            sg.tl.finetune(cite, fitted, task=task, **options)


def test_genes_that_were_added_after_the_proteins_are_not_taken_for_proteins(
    cite: AnnData, make_model: Callable[..., SCGPT]
) -> None:
    model = make_model(["p_CD19", *cite.var_names])
    with pytest.raises(WeightsError, match="genes after its proteins"):
        sg.tl.embed(cite, model, protein="protein_expression")
    with pytest.raises(WeightsError, match="genes after its proteins"):
        sg.tl.finetune(cite, model, task="multiomic", **TRAINING)


# From a file to a report ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_array", [False, True])
def test_pipeline_runs_and_reports(cite: AnnData, known: SCGPT, tmp_path: Path, as_array: bool) -> None:
    if as_array:
        cite.uns["protein_names"] = np.array(PROTEINS)
        cite.obsm["protein_expression"] = cite.obsm["protein_expression"].to_numpy()
    cite.write_h5ad(tmp_path / "cells.h5ad")
    known.save(tmp_path / "weights")
    named: dict[str, Any] = {"task": "multiomic"} if as_array else {"protein": "protein_expression"}
    config = sg.pipeline.RunConfig(
        tmp_path / "cells.h5ad",
        tmp_path / "run",
        **named,
        model=tmp_path / "weights",
        n_genes=80,
        **TRAINING,
    )
    folder = sg.pipeline.run(config)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["task"] == "multiomic"
    assert metrics["baselines"]["ridge regression"]["pearson"] > 0.3
    assert "Proteins of held-out cells from their RNA" in (folder / "report.md").read_text()
    results = anndata.read_h5ad(folder / "results.h5ad")
    assert {"X_scGPT_multi", "scgpt_protein", "protein_expression"} <= set(results.obsm)


def test_memory_is_estimated(model: SCGPT) -> None:
    estimate = sg.estimate_memory(model, genes_per_cell=60, batch_size=8, task="multiomic", accelerator="cpu")
    assert estimate.gradients > 0
