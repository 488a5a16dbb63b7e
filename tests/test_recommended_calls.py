"""What a message says to call runs, as it stands in the message, and then the call that was refused runs too."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from tests.screens import screen, write_prediction

import scgalore as sg
from scgalore.model import SCGPT

CALL = re.compile(r"\b(?:sg|sc)\.\w+\.\w+\((?:[^()]|\([^()]*\))*\)")
TRAIN: dict[str, Any] = {"max_epochs": 1, "batch_size": 32, "accelerator": "cpu"}


def calls_in(message: str) -> list[str]:
    return CALL.findall(message)


@pytest.fixture
def cells(few: AnnData, model: SCGPT) -> dict[str, Any]:
    return {"adata": few, "model": model}


CELLS: dict[str, Callable[..., Any]] = {
    "draw a selection": lambda adata, model: sg.pl.gene_selection(adata, show=False),
    "draw a selection by its key": lambda adata, model: sg.pl.gene_selection(adata, key="mine", show=False),
    "follow a ranking": lambda adata, model: sg.tl.finetune(
        adata, model, curriculum={50: 1}, genes_key="mine", **TRAIN
    ),
}


@pytest.mark.parametrize("wanted", CELLS)
def test_of_cells(wanted: str, cells: dict[str, Any]) -> None:
    run_after_the_call(lambda: CELLS[wanted](**cells), cells["adata"])


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [sg.pl.perturbation_scores, sg.get.perturbation_scores], ids=["pl", "get"])
def test_of_a_screen(wanted: Callable[..., Any]) -> None:
    adata = screen()
    write_prediction(adata)
    run_after_the_call(lambda: wanted(adata), adata)


def test_of_a_ranking_that_ranks_nothing(few: AnnData, model: SCGPT) -> None:
    few.var["mine_rank"] = np.nan
    run_after_the_call(lambda: sg.tl.finetune(few, model, curriculum={50: 1}, genes_key="mine", **TRAIN), few)


def test_of_empty_cells(few: AnnData, model: SCGPT) -> None:
    few.X[:3] = 0
    few.X.eliminate_zeros()
    run_after_the_call(lambda: sg.tl.embed(few, model), few)
    assert few.n_obs == 87


def run_after_the_call(wanted: Callable[[], Any], adata: AnnData) -> None:
    with pytest.raises((ValueError, KeyError)) as refused:
        wanted()
    [call] = calls_in(str(refused.value))
    eval(call, {"sg": sg, "sc": sc, "adata": adata})
    wanted()
