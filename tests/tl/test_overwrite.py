"""What is written never overwrites what is read: every function refuses it before any work."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData
from tests.trained_screens import TRAINING, counts, log_normalised, untrained

import scgalore as sg
from scgalore.errors import OptionError
from scgalore.model import SCGPT, CellModel

RUN: dict[str, Any] = {"max_epochs": 1, "batch_size": 32, "lr": 2e-3}
NOT_LOADED = "scgpt"  # registered and not here: a call that came to loading would say so


@pytest.fixture(scope="module")
def screen_once() -> tuple[AnnData, CellModel]:
    adata = log_normalised(counts())
    model = sg.tl.finetune(
        adata, untrained(), task="perturbation", split_key="split", **{**TRAINING, "max_epochs": 1}, patience=None
    )
    sg.tl.predict_perturbation(adata, model=model, key_added="p")
    return adata, model


def refused(function: Callable[..., Any], adata: AnnData, *args: Any, **options: Any) -> str:
    """The message of a call that is refused and changes nothing."""
    before = adata.copy()
    with pytest.raises(OptionError, match="is read by this call") as caught:
        function(adata, *args, **options)
    for slot in ("obs", "var"):
        pd.testing.assert_frame_equal(getattr(adata, slot), getattr(before, slot))
    assert list(adata.uns) == list(before.uns)
    assert list(adata.obsm) == list(before.obsm)
    return str(caught.value)


@pytest.mark.parametrize(
    ("column", "options"),
    [
        ("scgpt_label", {"labels_key": "scgpt_label"}),
        ("scgpt_split", {"labels_key": "scgpt_split"}),
        ("mine_label", {"labels_key": "mine_label", "key_added": "mine"}),
        ("scgpt_label_score", {"values_key": "scgpt_label_score"}),
        ("scgpt_value", {"values_key": "scgpt_value"}),
        ("m_value", {"values_key": "m_value", "key_added": "m"}),
        ("scgpt_label", {"labels_key": "bulk_labels", "split_key": "scgpt_label"}),
        ("scgpt_value", {"labels_key": "bulk_labels", "depth_key": "scgpt_value"}),
        ("own", {"labels_key": "own", "key_added": "own_colors"}),
        ("own", {"labels_key": "own", "key_added": "log1p"}),
        ("perturbation", {"pert_key": "perturbation", "key_added": "split"}),
    ],
)
def test_finetune(few: AnnData, column: str, options: dict[str, Any]) -> None:
    few.obs[column] = np.tile(["x", "y", "z"], 30)
    few.uns["own_colors"], few.uns["log1p"] = ["#000000"] * 3, {}
    assert "key_added=" in refused(sg.tl.finetune, few, NOT_LOADED, **RUN, **options)


def test_predictions_corrected_by_hand(few: AnnData, model: SCGPT) -> None:
    """The way that the message proposes: the labels stay, and scores compare with them."""
    sg.tl.finetune(few, model, labels_key="bulk_labels", **RUN)
    few.obs["scgpt_label"] = truth = pd.Categorical(np.tile(["x", "y", "z"], 30))
    refused(sg.tl.finetune, few, model, labels_key="scgpt_label", **RUN)
    sg.tl.finetune(few, model, labels_key="scgpt_label", key_added="second", **RUN)
    assert few.obs["scgpt_label"].tolist() == list(truth)
    held_out = (few.obs["second_split"] == "test").to_numpy()
    right = (few.obs["second_label"].to_numpy() == truth)[held_out].mean()
    assert few.uns["second"]["metrics"].loc["test", "accuracy"] == pytest.approx(right)


def test_own_results_are_replaced(few: AnnData, model: SCGPT) -> None:
    for _ in range(2):
        sg.tl.finetune(few, model, labels_key="bulk_labels", **RUN)
        sg.tl.annotate(few, model)
        sg.tl.embed(few, model)
    sg.tl.finetune(few, model, labels_key="bulk_labels", split_key="scgpt_split", **RUN)
    for _ in range(2):
        sg.tl.select_genes(few, 20)


def test_a_column_that_a_mudata_shows(few: AnnData) -> None:
    few.obs["rna:scgpt_label"] = few.obs["bulk_labels"]
    with pytest.raises(OptionError, match="is read by this call"):
        sg.tl.finetune(MuData({"rna": few}), NOT_LOADED, labels_key="rna:scgpt_label", **RUN)


@pytest.mark.parametrize("function", [sg.tl.embed, sg.tl.annotate])
def test_the_base_of_the_logarithm(few: AnnData, function: Callable[..., Any]) -> None:
    few.uns["log1p"] = {"base": 2}
    refused(function, few, NOT_LOADED, key_added="log1p")


@pytest.mark.parametrize("key_added", ["symbol", "log1p", "split"])
def test_select_genes(few: AnnData, key_added: str) -> None:
    few.var["symbol"] = few.var_names
    few.obs["split"] = "train"
    few.uns |= {"log1p": {}, "split": {}}
    refused(sg.tl.select_genes, few, 20, gene_symbols="symbol", split_key="split", key_added=key_added)


def test_columns_beside_the_selection(few: AnnData) -> None:
    few.var["mine_source"] = few.var_names
    refused(sg.tl.select_genes, few, 20, gene_symbols="mine_source", key_added="mine")
    sg.tl.select_genes(few, 20, gene_symbols="mine_source", key_added="bulk_labels")  # of obs, which is another slot


@pytest.mark.parametrize("key_added", ["perturbation", "cell_line", "log1p"])
def test_split_perturbations(key_added: str) -> None:
    adata = counts()
    adata.uns["log1p"] = {}
    refused(sg.pp.split_perturbations, adata, context_key="cell_line", key_added=key_added)


@pytest.mark.parametrize("key_added", ["p", "log1p", "split"])
def test_evaluate_perturbation(screen_once: tuple[AnnData, CellModel], key_added: str) -> None:
    adata = screen_once[0].copy()
    adata.uns |= {"log1p": {}, "split": {}}
    refused(sg.tl.evaluate_perturbation, adata, key="p", key_added=key_added)


@pytest.mark.parametrize("key_added", ["finetune", "log1p", "split"])
@pytest.mark.parametrize(
    ("function", "target"), [(sg.tl.predict_perturbation, ["G05"]), (sg.tl.rank_perturbations, "G05")]
)
def test_predict_and_rank_perturbations(
    screen_once: tuple[AnnData, CellModel], function: Callable[..., Any], target: Any, key_added: str
) -> None:
    adata = screen_once[0].copy()
    adata.uns |= {"log1p": {}, "split": {}}
    refused(function, adata, target, key_added=key_added)
