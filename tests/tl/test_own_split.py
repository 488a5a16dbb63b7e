"""A column "split" that is somebody else's is neither used nor replaced, by any function."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from tests.pipeline.conftest import quick
from tests.tiny_plugin import tiny_model
from tests.trained_screens import GENES, counts

import scgalore as sg
from scgalore.errors import DataError
from scgalore.model import SCGPT
from scgalore.pipeline import run

RUN: dict[str, Any] = {"task": "perturbation", "max_epochs": 1, "batch_size": 32}


def with_split_of_cells() -> AnnData:
    adata = counts(n_cells=6, n_control=12)
    adata.uns.pop("split", None)
    adata.obs["split"] = np.resize(["train", "train", "test", "validation"], adata.n_obs)
    return adata


@pytest.fixture(scope="module")
def foreign() -> tuple[AnnData, Any]:
    adata = with_split_of_cells()
    return adata, sg.tl.finetune(adata, tiny_model(GENES), **RUN)


def test_training_makes_its_own_beside_it(foreign: tuple[AnnData, SCGPT]) -> None:
    adata, model = foreign
    assert adata.obs["split"].tolist() == with_split_of_cells().obs["split"].tolist()
    assert "split" not in adata.uns
    made = adata.obs["perturbation_split"].astype(str)
    assert made.groupby(adata.obs["perturbation"], observed=True).nunique().max() == 1
    assert adata.uns["finetune"]["params"]["split_key"] == "perturbation_split"
    expected = counts(n_cells=6, n_control=12)
    del expected.obs["split"]
    expected.uns.pop("split", None)
    sg.pp.split_perturbations(expected)
    assert made.tolist() == expected.obs["split"].astype(str).tolist()
    for part in ("train", "validation", "test"):
        assert set(adata.uns["perturbation_split"][part]) == set(expected.uns["split"][part])
        assert set(model.memory.perturbations[part]) == set(expected.uns["split"][part])


def test_held_out_is_what_training_has_not_seen(foreign: tuple[AnnData, SCGPT]) -> None:
    adata, model = foreign[0].copy(), foreign[1]
    sg.tl.predict_perturbation(adata, model=model)
    rows = adata.uns["predict_perturbation"]["rows"]
    assert not rows["measured"].any()
    assert set(rows["perturbation"]) == set(model.memory.perturbations["test"])
    assert set(rows["group"]) > {""} or rows["group"].astype(bool).all()
    sg.tl.evaluate_perturbation(adata, de=False, n_bootstrap=5)
    assert set(sg.get.perturbation_scores(adata)["perturbation"]) == set(rows["perturbation"])
    sg.tl.rank_perturbations(adata, rows["perturbation"].iloc[0], model=model)
    assert set(adata.uns["rank_perturbations"]["recovery"]["perturbation"]) <= set(rows["perturbation"])


def test_a_second_run_takes_up_the_first_ones_split(foreign: tuple[AnnData, SCGPT]) -> None:
    adata = foreign[0].copy()
    made = adata.obs["perturbation_split"].copy()
    sg.tl.finetune(adata, tiny_model(GENES), **RUN, key_added="again")
    assert adata.obs["perturbation_split"].tolist() == made.tolist()
    assert adata.uns["again"]["params"]["split_key"] == "perturbation_split"
    assert not any(key.startswith("perturbation_split_") for key in adata.obs)


def test_named_it_is_used() -> None:
    adata = with_split_of_cells()
    model = sg.tl.finetune(adata, tiny_model(GENES), **RUN, split_key="split")
    assert adata.uns["finetune"]["params"]["split_key"] == "split"
    assert "perturbation_split" not in adata.obs
    sg.tl.predict_perturbation(adata, model=model)  # by the name it had in training
    assert adata.uns["predict_perturbation"]["params"]["split_key"] == "split"
    assert adata.uns["predict_perturbation"]["rows"]["measured"].all()


def test_other_data_with_such_a_column(foreign: tuple[AnnData, SCGPT]) -> None:
    """The name that a split had in training does not make a split of a column of other data."""
    adata, model = counts(n_cells=6, n_control=12, seed=1), foreign[1]
    adata.obs["perturbation_split"] = np.resize(["train", "test"], adata.n_obs)
    sg.tl.predict_perturbation(adata, ["G00"], model=model)
    assert adata.uns["predict_perturbation"]["params"]["split_key"] in (None, "split")
    sg.tl.predict_perturbation(adata, ["G00"], model=model, split_key="perturbation_split")
    assert adata.uns["predict_perturbation"]["params"]["split_key"] == "perturbation_split"


@pytest.mark.parametrize("strategy", ["perturbation", "hvg"])
def test_selection_of_genes_looks_at_all_cells(strategy: str) -> None:
    adata = with_split_of_cells()
    sg.tl.select_genes(adata, 10, strategy, pert_key="perturbation")
    assert adata.uns["select_genes"]["params"]["split_key"] is None
    assert adata.uns["select_genes"]["n_cells"] == adata.n_obs
    sg.tl.select_genes(adata, 10, strategy, pert_key="perturbation", split_key="split")
    assert adata.uns["select_genes"]["n_cells"] == (adata.obs["split"] == "train").sum()


def test_a_curriculum_ranks_on_the_cells_that_train(foreign: tuple[AnnData, SCGPT]) -> None:
    adata, expected = with_split_of_cells(), counts(n_cells=6, n_control=12)
    del expected.obs["split"]
    expected.uns.pop("split", None)
    for one in (adata, expected):
        one.uns.pop("finetune", None)
        sg.tl.finetune(one, tiny_model(GENES), **RUN | {"max_epochs": 2}, curriculum=[10, 30])
    assert (
        adata.uns["finetune"]["history"]["train_loss"].tolist()
        == expected.uns["finetune"]["history"]["train_loss"].tolist()
    )


def test_a_pipeline_run_makes_its_own(tmp_path: Path) -> None:
    with_split_of_cells().write_h5ad(tmp_path / "foreign.h5ad")
    named = counts(n_cells=6, n_control=12)
    sg.pp.split_perturbations(named)
    named.write_h5ad(tmp_path / "ours.h5ad")
    options: dict[str, Any] = {
        "pert_key": "perturbation",
        "n_genes": 30,
        "curriculum": None,
        "max_epochs": 1,
        "max_cells": "all",
    }
    settled = {
        name: sg.pipeline.checks.complete_config(quick(tmp_path / f"{name}.h5ad", tmp_path / name, **options))[
            0
        ].split_key
        for name in ("foreign", "ours")
    }
    assert settled == {"foreign": None, "ours": "split"}
    folder = run(quick(tmp_path / "foreign.h5ad", tmp_path / "run", **options))
    split = np.loadtxt(folder / "split.csv", delimiter=",", dtype=str, skiprows=1)[:, 1]
    assert {"train", "test"} <= set(split)
    assert split.tolist() != with_split_of_cells().obs["split"].tolist()


class TestStale:
    @pytest.fixture
    def stale(self) -> AnnData:
        adata = with_split_of_cells()
        column = adata.obs["split"]
        sg.pp.split_perturbations(adata)
        adata.obs["split"] = column
        return adata

    def test_is_refused_before_any_work(self, stale: AnnData, foreign: tuple[AnnData, SCGPT], tmp_path: Path) -> None:
        before = stale.copy()
        calls = [
            lambda: sg.tl.finetune(stale, "never looked at", task="perturbation"),
            lambda: sg.tl.select_genes(stale, 5, "hvg", pert_key="perturbation"),
            lambda: sg.tl.predict_perturbation(stale, model=foreign[1]),
            lambda: sg.tl.rank_perturbations(stale, "G00", model=foreign[1]),
        ]
        for call in calls:
            with pytest.raises(DataError, match=r"adata\.obs\['split'\] is no longer the split"):
                call()
        assert stale.uns.keys() == before.uns.keys()
        assert stale.obs.equals(before.obs)
        stale.write_h5ad(tmp_path / "stale.h5ad")
        with pytest.raises(DataError, match="is no longer the split"):
            run(quick(tmp_path / "stale.h5ad", tmp_path / "run", pert_key="perturbation", n_genes=30, curriculum=None))
        assert not (tmp_path / "run").exists()

    def test_is_used_if_it_is_named(self, stale: AnnData) -> None:
        sg.tl.select_genes(stale, 5, "hvg", pert_key="perturbation", split_key="split")
        assert stale.uns["select_genes"]["params"]["split_key"] == "split"


def test_a_new_split_says_what_it_replaces(caplog: pytest.LogCaptureFixture) -> None:
    adata = with_split_of_cells()
    sg.pp.split_perturbations(adata)
    assert "adata.obs['split'] existed without a record of a split and is replaced" in caplog.text
    caplog.clear()
    sg.pp.split_perturbations(adata)
    assert "is replaced" not in caplog.text
