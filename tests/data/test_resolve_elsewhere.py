"""Columns that stand in the tables of a MuData and not in those of its modality."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from tests.tiny_plugin import tiny_model

import scgalore as sg
from scgalore.errors import MissingKeyError

CALLS: dict[str, Callable[[Any, Any, str], Any]] = {
    "labels_key": lambda mdata, model, key: sg.tl.finetune(mdata, model, labels_key=key, max_epochs=1),
    "values_key": lambda mdata, model, key: sg.tl.finetune(mdata, model, values_key=key, max_epochs=1),
    "split_key": lambda mdata, model, key: sg.tl.finetune(mdata, model, split_key=key, max_epochs=1),
    "batch_key": lambda mdata, model, key: sg.tl.select_genes(mdata, 20, "hvg", batch_key=key),
    "pert_key": lambda mdata, model, key: sg.pp.split_perturbations(mdata, pert_key=key),
}


@pytest.fixture
def mdata(few: AnnData) -> Any:
    mudata = pytest.importorskip("mudata")
    protein = AnnData(np.ones((few.n_obs, 2), dtype=np.float32), obs=few.obs[[]].copy())
    protein.var_names = ["CD3-protein", "CD4-protein"]
    found = mudata.MuData({"rna": few, "protein": protein})
    found.obs["mine"] = np.where(np.arange(found.n_obs) % 2, "a", "b")
    found.var["symbols"] = list(found.var_names)
    return found


@pytest.mark.parametrize("argument", CALLS)
def test_a_column_of_the_whole_is_brought_to_the_modality_by_the_call_that_is_proposed(
    mdata: Any, argument: str
) -> None:
    model = tiny_model(mdata.mod["rna"].var_names)
    with pytest.raises(MissingKeyError, match=rf"{argument}='mine' is a column of obs of the MuData") as refused:
        CALLS[argument](mdata, model, "mine")
    exec(str(refused.value).split("To use it: ")[1].strip("\"'").rstrip("."), {"mdata": mdata})
    assert mdata.mod["rna"].obs["mine"].tolist() == mdata.obs["mine"].tolist()


def test_names_of_genes_of_the_whole_are_named(mdata: Any) -> None:
    with pytest.raises(MissingKeyError, match="gene_symbols='symbols' is a column of var of the MuData"):
        sg.tl.embed(mdata, tiny_model(mdata.mod["rna"].var_names), gene_symbols="symbols")


def test_a_column_that_is_shown_with_the_name_of_its_modality_is_named_without(mdata: Any) -> None:
    mdata.obs["rna:bulk_labels"] = mdata.mod["rna"].obs["bulk_labels"]
    with pytest.raises(MissingKeyError, match="pass labels_key='bulk_labels'"):
        sg.tl.finetune(mdata, tiny_model(mdata.mod["rna"].var_names), labels_key="rna:bulk_labels", max_epochs=1)
