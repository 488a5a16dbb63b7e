"""Records in uns are what a tool wrote there, or an error that names the slot."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from tests import screens

import scgalore as sg
from scgalore.data.records import read_prediction_record, read_record
from scgalore.errors import DataError, MissingKeyError
from scgalore.tl._fitted import records_of

ODD: list[Any] = [None, True, 3, "text", ["a"], np.arange(3), pd.DataFrame({"a": [1]}), {}, {"params": None}]
KEY = "predict_perturbation"


def adata_with(**uns: Any) -> AnnData:
    adata = AnnData(np.ones((2, 2), dtype=np.float32))
    adata.uns.update(uns)
    return adata


@pytest.mark.parametrize("value", ODD, ids=str)
def test_what_is_no_record_is_missing(value: Any) -> None:
    with pytest.raises(MissingKeyError, match="Call it first"):
        read_record(adata_with(x=value), "x", holds=("params", "rows"), missing="Call it first.")


@pytest.mark.parametrize("value", [value for value in ODD if not isinstance(value, pd.DataFrame)], ids=str)
def test_what_is_no_table_is_named(value: Any) -> None:
    record = {"params": {}, "rows": value}
    with pytest.raises(DataError, match=r"adata\.uns\['x'\]\['rows'\] is a \w+, expected a table"):
        read_record(adata_with(x=record), "x", tables=("rows",), missing="")
    with pytest.raises(DataError, match=r"adata\.uns\['x'\]\['params'\] is a list, expected a dictionary"):
        read_record(adata_with(x={"params": []}), "x", missing="")


READERS: dict[str, Callable[[AnnData], Any]] = {
    "get.perturbation_effects": lambda adata: sg.get.perturbation_effects(adata, key="x"),
    "get.perturbation_scores": lambda adata: sg.get.perturbation_scores(adata, key="x"),
    "get.perturbed_cells": lambda adata: sg.get.perturbed_cells(adata, key="x"),
    "tl.evaluate_perturbation": lambda adata: sg.tl.evaluate_perturbation(adata, key="x", de=False),
    "pl.history": lambda adata: sg.pl.history(adata, key="x"),
    "pl.confusion_matrix": lambda adata: sg.pl.confusion_matrix(adata, key="x"),
    "pl.gene_selection": lambda adata: sg.pl.gene_selection(adata, "x"),
    "pl.perturbation_effect": lambda adata: sg.pl.perturbation_effect(adata, "A", key="x"),
    "pl.perturbation_embedding": lambda adata: sg.pl.perturbation_embedding(adata, key="x"),
    "pl.perturbation_scores": lambda adata: sg.pl.perturbation_scores(adata, key="x"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("value", ODD, ids=str)
def test_every_reader_of_uns_refuses_what_is_none_of_its_own(reader: str, value: Any) -> None:
    with pytest.raises((DataError, MissingKeyError), match=r"adata\.uns\['x'\]"):
        READERS[reader](adata_with(x=value))


@pytest.mark.parametrize("value", [*ODD, {"params": {"task": "perturbation"}, "model": None}], ids=str)
def test_no_model_is_found_in_it(value: Any) -> None:
    adata = adata_with(finetune=value)
    assert records_of(adata, "perturbation") == {}
    with pytest.raises(MissingKeyError, match=r"adata\.uns records none"):
        sg.tl.predict_perturbation(adata)


def test_tables_that_do_not_belong_together_are_named() -> None:
    adata = screens.screen()
    screens.write_prediction(adata)
    adata.uns[KEY]["means"] = adata.uns[KEY]["means"].iloc[:, 1:]
    with pytest.raises(DataError, match=r"adata\.uns\['predict_perturbation'\] has tables of inconsistent shapes"):
        read_prediction_record(adata, KEY)
