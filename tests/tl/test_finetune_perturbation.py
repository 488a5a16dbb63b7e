import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData
from tests.bitwise import differences
from tests.steps import is_step
from tests.trained_screens import PARTS, TRAINING, counts, log_normalised, untrained

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.model import SCGPT
from scgalore.objectives import Perturbation

RUN: dict[str, Any] = {"task": "perturbation", **TRAINING, "split_key": "split"}
NO_SPLIT: dict[str, Any] = {**RUN, "split_key": None}


@pytest.fixture
def adata() -> AnnData:
    return counts()


def slots(adata: AnnData) -> dict[str, set[str]]:
    return {slot: set(getattr(adata, slot)) for slot in ("obs", "var", "obsm", "varm", "obsp", "layers", "uns")}


def without_split(adata: AnnData) -> AnnData:
    del adata.obs["split"]
    return adata


class TestKeys:
    def test_one_key_is_written(self, adata: AnnData) -> None:
        before, obs, x = slots(adata), adata.obs.copy(), adata.X.copy()
        model = untrained()
        assert sg.tl.finetune(adata, model, **RUN) is model
        assert slots(adata) == before | {"uns": {"finetune"}}
        pd.testing.assert_frame_equal(adata.obs, obs)
        assert (x != adata.X).nnz == 0

    def test_key_added_is_taken_verbatim(self, adata: AnnData) -> None:
        sg.tl.finetune(adata, untrained(), **RUN, key_added="My run")
        assert set(adata.uns) == {"My run"}

    def test_content_is_the_models(self, adata: AnnData) -> None:
        model = sg.tl.finetune(adata, untrained(), **RUN, rng=3, batch_key="batch", context_key="cell_line")
        content = adata.uns["finetune"]
        assert model.memory is not None
        assert content["stats"] == model.memory.stats
        assert {part: set(names) for part, names in content["perturbations"].items()} == {
            part: set(names) for part, names in PARTS.items()
        }
        pd.testing.assert_frame_equal(content["history"], model.history)
        assert content["training"] == model.result.summary()
        assert content["weights"]["name"] == "random"
        assert content["version"] == sg.__version__
        expected = {
            "task": "perturbation",
            "pert_key": "perturbation",
            "batch_key": "batch",
            "context_key": "cell_line",
            "split_key": "split",
            "control": "control",
            "prior": "chosen",
            "rng": 3,
            "lr": RUN["lr"],
            "optimizer": "galore",
        }
        assert content["params"].items() >= expected.items()

    def test_choice_of_the_prior_is_written_and_read_again(self, adata: AnnData, tmp_path: Path) -> None:
        model = sg.tl.finetune(adata, untrained(), **RUN)
        table = adata.uns["finetune"]["prior"]
        assert model.memory is not None
        pd.testing.assert_frame_equal(table, model.memory.choice)
        assert table.groupby("question")["chosen"].sum().eq(1).all()
        adata.write_h5ad(tmp_path / "screen.h5ad")
        read = anndata.read_h5ad(tmp_path / "screen.h5ad").uns["finetune"]["prior"]
        pd.testing.assert_frame_equal(read, table, check_dtype=False, check_index_type=False)
        other = counts()
        sg.tl.finetune(other, untrained(), **RUN, prior="mixed")
        assert "prior" not in other.uns["finetune"]

    def test_defaults_are_those_of_perturbations(self, adata: AnnData) -> None:
        sg.tl.finetune(adata, untrained(), task="perturbation", max_epochs=1, accelerator="cpu")
        assert adata.uns["finetune"]["params"].items() >= {"patience": 3, "dropout": 0.0, "batch_size": 64}.items()

    def test_everything_survives_h5ad(self, adata: AnnData, tmp_path: Path) -> None:
        sg.tl.finetune(without_split(adata), untrained(), **NO_SPLIT, save_dir=tmp_path / "model")
        adata.write_h5ad(tmp_path / "screen.h5ad")
        read = anndata.read_h5ad(tmp_path / "screen.h5ad")
        pd.testing.assert_frame_equal(read.obs, adata.obs)
        ours, theirs = adata.uns["finetune"], read.uns["finetune"]
        assert theirs.keys() == ours.keys()
        pd.testing.assert_frame_equal(theirs["history"], ours["history"])
        assert theirs["stats"] == ours["stats"]
        assert dict(theirs["model"]) == dict(ours["model"])
        assert {part: list(names) for part, names in theirs["perturbations"].items()} == ours["perturbations"]
        assert theirs["params"].keys() == ours["params"].keys()


class TestSplit:
    def test_split_that_is_there_is_used(self, adata: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: dict[bool, set[int]] = {True: set(), False: set()}
        loss = Perturbation.__call__

        def watched(self: Perturbation, network: Any, batch: Any) -> Any:
            if network.training == is_step(network, batch):
                seen[network.training].update(batch.cells.tolist())
            return loss(self, network, batch)

        monkeypatch.setattr(Perturbation, "__call__", watched)
        sg.tl.finetune(adata, untrained(), **RUN)
        control = (adata.obs["perturbation"] == "control").to_numpy()
        assert seen[True] == set(np.flatnonzero((adata.obs["split"] == "train") & ~control))
        assert seen[False] <= set(np.flatnonzero(control))  # validation compares means of control cells

    def test_other_column_can_be_named(self, adata: AnnData) -> None:
        adata.obs["mine"] = np.where(adata.obs["perturbation"].isin(["G00", "X1"]), "validation", "train")
        sg.tl.finetune(adata, untrained(), **{**RUN, "split_key": "mine"})
        assert set(adata.uns["finetune"]["perturbations"]["validation"]) == {"G00", "X1"}
        assert adata.uns["finetune"]["params"]["split_key"] == "mine"

    def test_where_there_is_none_it_is_that_of_split_perturbations(self, adata: AnnData) -> None:
        expected = without_split(adata).copy()
        sg.pp.split_perturbations(expected)
        sg.tl.finetune(adata, untrained(), **NO_SPLIT)
        assert adata.obs["split"].tolist() == expected.obs["split"].tolist()
        assert {"train", "test"} <= set(adata.obs["split"])
        assert adata.uns["finetune"]["params"]["split_key"] == "split"

    def test_cells_without_a_part_are_left_out(self, adata: AnnData) -> None:
        gone = adata.obs["perturbation"] == "G03"
        adata.obs["split"] = adata.obs["split"].astype(object).where(~gone, None)
        sg.tl.finetune(adata, untrained(), **RUN)
        known = {name for names in adata.uns["finetune"]["perturbations"].values() for name in names}
        assert known == {name for part in PARTS.values() for name in part} - {"G03"}
        assert adata.uns["finetune"]["stats"]["training_perturbations"] == len(PARTS["train"]) - 1


class TestSaving:
    def test_folder_has_model_statistics_and_card(self, adata: AnnData, tmp_path: Path) -> None:
        folder = tmp_path / "new" / "model"
        model = sg.tl.finetune(adata, untrained(), **RUN, save_dir=folder)
        assert {"model.safetensors", "training_stats.json", "README.md"} <= {path.name for path in folder.iterdir()}
        assert json.loads((folder / "training_stats.json").read_text()) == adata.uns["finetune"]["stats"]
        assert adata.uns["finetune"]["model"]["folder"] == str(folder)
        assert differences(SCGPT.load(folder).network.state_dict(), model.network.state_dict()) == []

    def test_relative_folder_is_found_from_elsewhere(
        self, adata: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        sg.tl.finetune(adata, untrained(), **RUN, save_dir="model")
        assert Path(adata.uns["finetune"]["model"]["folder"]) == tmp_path / "model"

    def test_classes_are_saved_too(self, few: AnnData, model: SCGPT, tmp_path: Path) -> None:
        sg.tl.finetune(few, model, labels_key="bulk_labels", max_epochs=1, save_dir=tmp_path / "model")
        assert SCGPT.load(tmp_path / "model").classes == model.classes


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "column of perturbations": (
        {"pert_key": "guide"},
        MissingKeyError,
        r"pert_key='guide' is not a column of adata\.obs",
    ),
    "context": ({"context_key": "line"}, MissingKeyError, "context_key='line' is not a column"),
    "batch": ({"batch_key": "plate"}, MissingKeyError, "batch_key='plate' is not a column"),
    "split": ({"split_key": "parts"}, MissingKeyError, "split_key='parts' is not a column"),
    "control": ({"control": "NT"}, OptionError, "control='NT' is none of the 12 labels"),
    "labels": (
        {"labels_key": "cell_line"},
        OptionError,
        "labels_key='cell_line' is an argument of task='classes'.*, but the task is 'perturbation'",
    ),
    "task": ({"task": "perturbations"}, OptionError, "task='perturbations': choose one of 'classes', "),
    "task classes": ({"task": "classes"}, OptionError, "task='classes' needs labels_key="),
    "option without task": (
        {"task": None, "context_key": "cell_line"},
        OptionError,
        "is an argument of task='perturbation'",
    ),
    "prior without task": ({"task": None, "prior": "mixed"}, OptionError, "prior='mixed' is an argument of"),
    "genes without task": (
        {"task": "expression", "genes_per_step": 5},
        OptionError,
        "genes_per_step=5 is an argument of",
    ),
    "two devices": ({"devices": 2}, OptionError, "single process|several processes"),  # where pytest is no script
    "no genes": ({"genes_per_step": 0}, OptionError, "genes_per_step=0: it must be a whole number, at least 1"),
    "half a gene": ({"genes_per_step": 0.5}, OptionError, "genes_per_step=0.5"),
    "prior": ({"prior": "mean"}, OptionError, "prior='mean': choose one of 'chosen'"),
    "layer": ({"layer": "counts"}, MissingKeyError, "counts"),
    "not trained on": ({"split_key": "none"}, DataError, "No perturbed cell is in 'train'"),
    "strange split": (
        {"split_key": "cell_line"},
        DataError,
        r"adata\.obs\['cell_line'\] holds \['K562'\]; each cell must",
    ),
}


class TestRefusals:
    @pytest.mark.parametrize("case", REFUSED)
    def test_before_anything_is_changed(self, adata: AnnData, case: str, in_empty_folder: Callable[[], None]) -> None:
        adata.obs["all"], adata.obs["none"], adata.obs["cell_line"] = "train", "test", "K562"
        options, error, message = REFUSED[case]
        model = untrained()
        before, network, vocab = slots(adata), model.network, model.vocab
        with pytest.raises(error, match=message):
            sg.tl.finetune(adata, model, **{**RUN, "save_dir": "model", **options})
        assert slots(adata) == before
        assert (model.network, model.vocab, model.is_trained) == (network, vocab, False)
        in_empty_folder()

    def test_several_processes_of_a_launcher(self, adata: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        with pytest.raises(OptionError, match="runs in a single process, but there are 2"):
            sg.tl.finetune(adata, untrained(), **RUN)

    def test_single_device_may_be_named(self, adata: AnnData) -> None:
        sg.tl.finetune(adata, untrained(), **RUN, devices=1)
        assert "finetune" in adata.uns

    def test_folder_that_is_taken(self, adata: AnnData, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        sg.tl.finetune(adata, untrained(), **RUN, save_dir=tmp_path / "model")  # an empty one is free
        before = slots(adata)
        model = untrained()
        with pytest.raises(OptionError, match=r"save_dir=.*already exists and is not empty"):
            sg.tl.finetune(adata, model, **RUN, save_dir=tmp_path / "model")
        with pytest.raises(OptionError, match="already exists"):
            sg.tl.finetune(adata, model, **RUN, save_dir=tmp_path / "model" / "README.md")
        assert slots(adata) == before
        assert not model.is_trained


def stop_in_epoch(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, epochs = Perturbation.__call__, {"validated": 0}

    def interrupted(self: Perturbation, network: Any, batch: Any) -> Any:
        epochs["validated"] += not network.training
        # Two perturbations are validated in each epoch.
        if network.training and epochs["validated"] >= 2 * epoch:
            raise KeyboardInterrupt
        return loss(self, network, batch)

    monkeypatch.setattr(Perturbation, "__call__", interrupted)


@pytest.mark.parametrize("options", [{}, {"genes_per_step": 10, "optimizer": "adamw", "batch_key": "batch"}])
def test_interrupted_run_is_resumed_bit_for_bit(
    adata: AnnData, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = {**RUN, "max_epochs": 4, "dropout": 0.1, "optimizer_options": {}, **options}
    whole, model = adata.copy(), untrained()
    expected = sg.tl.finetune(whole, untrained(), **run)
    with monkeypatch.context() as patch:
        stop_in_epoch(2, patch)
        with pytest.raises(KeyboardInterrupt):
            sg.tl.finetune(adata, model, **run, checkpoint_dir=tmp_path)
    assert "finetune" not in adata.uns
    assert not model.network.config.perturbation
    resumed = sg.tl.finetune(adata, model, **run, checkpoint_dir=tmp_path, resume=True)
    assert differences(resumed.network.state_dict(), expected.network.state_dict()) == []
    pd.testing.assert_frame_equal(
        resumed.history.drop(columns="seconds"), expected.history.drop(columns="seconds"), check_exact=True
    )
    assert resumed.memory is not None
    assert expected.memory is not None
    assert differences(resumed.memory.stats, expected.memory.stats, besides=("wall_clock",)) == []
    with pytest.raises(OptionError, match="belongs to another run"):
        sg.tl.finetune(
            log_normalised(adata[adata.obs["perturbation"] != "G03"].copy()),
            untrained(),
            **run,
            checkpoint_dir=tmp_path,
            resume=True,
        )


class TestContainers:
    def test_modality_is_written_and_its_split_mirrored(self, adata: AnnData) -> None:
        protein = AnnData(np.ones((50, 3)), obs=pd.DataFrame(index=adata.obs_names[:50]))
        mdata = MuData({"gex": without_split(adata), "prot": protein})
        with pytest.raises(MissingKeyError, match="no modality 'rna'; it has 'gex'"):
            sg.tl.finetune(mdata, untrained(), **NO_SPLIT)
        sg.tl.finetune(mdata, untrained(), **NO_SPLIT, mod="gex")
        assert "finetune" in mdata["gex"].uns
        mirrored = mdata.obs["gex:split"].loc[mdata["gex"].obs_names]
        assert mirrored.tolist() == mdata["gex"].obs["split"].tolist()

    def test_view_becomes_an_object_of_its_own(self, adata: AnnData) -> None:
        view = adata[adata.obs["perturbation"] != "G03"]
        sg.tl.finetune(view, untrained(), **RUN)
        assert not view.is_view
        assert "finetune" in view.uns
        assert "finetune" not in adata.uns


class TestSideEffects:
    def test_random_states_are_the_users(
        self, adata: AnnData, random_states: Callable[[], tuple[object, ...]], in_empty_folder: Callable[[], None]
    ) -> None:
        model = untrained()
        before = random_states()
        sg.tl.finetune(adata, model, **RUN)
        assert random_states() == before
        in_empty_folder()

    def test_messages_say_what_there_is_to_beat(self, adata: AnnData, caplog: pytest.LogCaptureFixture) -> None:
        with sg.settings.override(verbosity=3):
            sg.tl.finetune(adata, untrained(), **RUN)
        assert "6 training perturbations, 2 validation perturbations" in caplog.text
        assert "2 genes are added to the vocabulary" in caplog.text
        assert "best baseline on validation perturbations" in caplog.text
        assert "Pearson delta on 2 validation perturbations" in caplog.text
        assert re.search(r"expected time: \d+ s per epoch, at most 2 epochs,", caplog.text)


def test_without_a_prior_and_validation_perturbations_all_epochs_are_trained(adata: AnnData) -> None:
    adata.obs["everything"] = "train"
    run: dict[str, Any] = {"task": "perturbation", "split_key": "everything", "prior": "none"}
    sg.tl.finetune(adata, untrained(), **run, **{**TRAINING, "max_epochs": 3, "patience": 1})
    stats = adata.uns["finetune"]["stats"]
    assert (stats["epochs"], stats["stopped_because"]) == (3, "max_epochs reached")
    assert stats["validation_pearson_delta"] == {}
