"""``sg.tl.finetune(curriculum=...)``: whose ranking it follows."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from anndata import AnnData
from tests.bitwise import differences
from tests.trained_screens import TRAINING, counts, untrained

import scgalore as sg
from scgalore.errors import MissingKeyError, OptionError
from scgalore.model import SCGPT
from scgalore.selection.ranking import rank_adata

RUN: dict[str, Any] = {"max_epochs": 2, "batch_size": 32, "curriculum": [30, 150]}


@pytest.mark.parametrize("labels_key", ["bulk_labels", None])
def test_genes_are_ranked_from_training_cells_alone(few: AnnData, make_model: Any, labels_key: str | None) -> None:
    first = make_model(few.var_names)
    sg.tl.finetune(few, first, labels_key=labels_key, **RUN)
    assert "selected_rank" not in few.var
    train = (few.obs["scgpt_split"] == "train").to_numpy()

    # What other cells hold has no say: the same weights, although validation and test cells express other genes.
    spoilt = few.copy()
    rng = np.random.default_rng(0)
    x = spoilt.X.toarray()
    x[~train] = x[~train][:, rng.permutation(few.n_vars)]
    spoilt.X = type(few.X)(x)
    assert not np.array_equal(
        rank_adata(few).rank, rank_adata(spoilt).rank, equal_nan=True
    )  # what looking at all cells would do
    spoilt.var["mine_rank"] = rank_adata(few, train=train).rank
    seen = []
    for genes_key in (None, "mine"):
        model = make_model(few.var_names)
        sg.tl.finetune(spoilt, model, labels_key=labels_key, genes_key=genes_key, **RUN)
        seen.append(model.network.state_dict())
    assert differences(*seen) == []


def test_a_ranking_that_was_written_is_followed(few: AnnData, make_model: Any) -> None:
    sg.tl.select_genes(few, n_genes=50)
    fitted = []
    for key in (None, "selected"):
        model = make_model(few.var_names)
        sg.tl.finetune(few, model, labels_key="bulk_labels", genes_key=key, prior="none", **RUN)
        fitted.append(model)
    assert differences(*(model.network.state_dict() for model in fitted)) == []
    assert few.uns["finetune"]["params"]["genes_key"] == "selected"
    other = make_model(few.var_names)
    few.var["other_rank"] = few.var["selected_rank"].to_numpy()[::-1]
    sg.tl.finetune(few, other, labels_key="bulk_labels", genes_key="other", prior="none", **RUN)
    assert differences(other.network.state_dict(), fitted[0].network.state_dict())


def test_result_survives_h5ad_with_its_phases(few: AnnData, model: SCGPT, tmp_path: Path) -> None:
    sg.tl.finetune(few, model, labels_key="bulk_labels", max_epochs=3, curriculum={30: 1, 150: 2})
    few.write_h5ad(tmp_path / "a.h5ad")
    result = anndata.read_h5ad(tmp_path / "a.h5ad").uns["finetune"]
    n_all = int(result["genes"]["matched"])
    assert result["history"]["n_genes"].tolist() == [30, n_all, n_all]
    assert {key: int(value) for key, value in result["params"]["curriculum"].items()} == {"30": 1, "150": 2}


def test_perturbations_are_ranked_as_perturbations() -> None:
    adata = counts()
    expected = counts()
    train = (adata.obs["split"] == "train") | (adata.obs["perturbation"] == "control")
    expected.var["selected_rank"] = rank_adata(
        adata, "perturbation", pert_key="perturbation", control="control", train=train.to_numpy()
    ).rank
    models = [untrained(), untrained()]
    options = {**TRAINING, "max_epochs": 2, "curriculum": [5, 10_000]}
    for data, model in zip((adata, expected), models, strict=True):
        sg.tl.finetune(data, model, task="perturbation", **options)
    assert differences(*(model.network.state_dict() for model in models)) == []
    assert adata.uns["finetune"]["history"]["n_genes"].iloc[0] == 5
    sg.tl.predict_perturbation(adata, model=models[0])


class TestRefusals:
    def test_of_a_key_that_is_not_there(self, few: AnnData, model: SCGPT) -> None:
        with pytest.raises(MissingKeyError, match=r"No column 'mine_rank'.*sg\.tl\.select_genes"):
            sg.tl.finetune(few, model, genes_key="mine", **RUN)
        assert not {"finetune", "X_scGPT"} & {*few.uns, *few.obsm}

    def test_of_a_key_without_a_curriculum(self, few: AnnData, model: SCGPT) -> None:
        with pytest.raises(OptionError, match="genes_key='selected' requires a curriculum"):
            sg.tl.finetune(few, model, genes_key="selected", max_epochs=1)

    def test_of_phases_that_do_not_rise(self, few: AnnData, model: SCGPT) -> None:
        with pytest.raises(OptionError, match="increase from phase to phase"):
            sg.tl.finetune(few, model, max_epochs=2, curriculum=[150, 30])
