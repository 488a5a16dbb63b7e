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
from sklearn.metrics import accuracy_score, f1_score
from tests.steps import is_step

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.model import SCGPT
from scgalore.objectives import Classification

RUN: dict[str, Any] = {"labels_key": "bulk_labels", "max_epochs": 2, "batch_size": 32, "lr": 2e-3}
OBS = ("scgpt_label", "scgpt_label_score", "scgpt_split")


def keys(adata: AnnData) -> dict[str, set[str]]:
    return {slot: set(getattr(adata, slot)) for slot in ("obs", "var", "obsm", "varm", "obsp", "layers", "uns")}


def added(adata: AnnData, before: dict[str, set[str]]) -> dict[str, set[str]]:
    return {slot: names - before[slot] for slot, names in keys(adata).items() if names != before[slot]}


@pytest.fixture
def tuned(few: AnnData, model: SCGPT) -> AnnData:
    sg.tl.finetune(few, model, **RUN, validation_size=0.2, test_size=0.2)
    return few


class TestKeys:
    def test_with_labels(self, few: AnnData, model: SCGPT) -> None:
        before = keys(few)
        sg.tl.finetune(few, model, **RUN)
        assert added(few, before) == {
            "obs": set(OBS),
            "obsm": {"X_scGPT", "scgpt_probabilities"},
            "uns": {"finetune", "scgpt_label_colors"},
        }
        assert few.obsm["X_scGPT"].shape == (90, 16)
        assert few.obsm["X_scGPT"].dtype == few.obsm["scgpt_probabilities"].dtype == np.float32
        assert few.obs["scgpt_label_score"].dtype == np.float32

    def test_a_class_has_one_place_and_one_colour(self, few: AnnData, model: SCGPT) -> None:
        """In the labels and in the predictions, whatever the order of the labels' categories is."""
        few.obs["bulk_labels"] = few.obs["bulk_labels"].cat.remove_unused_categories()
        order = list(reversed(few.obs["bulk_labels"].cat.categories))
        few.obs["bulk_labels"] = few.obs["bulk_labels"].cat.reorder_categories(order)
        few.uns["bulk_labels_colors"] = np.array([f"#{i:06d}" for i in range(len(order))])
        sg.tl.finetune(few, model, **RUN)
        assert list(few.obs["scgpt_label"].cat.categories) == order == list(few.uns["finetune"]["classes"])
        np.testing.assert_array_equal(few.uns["scgpt_label_colors"], few.uns["bulk_labels_colors"])

    def test_colours_stay_with_their_classes_where_categories_are_unused(self, few: AnnData, model: SCGPT) -> None:
        few.obs["bulk_labels"] = few.obs["bulk_labels"].cat.add_categories("none of these").cat.as_unordered()
        names = ["none of these", *few.obs["bulk_labels"].cat.categories[:-1]]
        few.obs["bulk_labels"] = few.obs["bulk_labels"].cat.reorder_categories(names)
        few.uns["bulk_labels_colors"] = ["#ffffff", "#000001", "#000002", "#000003"]
        sg.tl.finetune(few, model, **RUN)
        assert list(few.uns["scgpt_label_colors"]) == ["#000001", "#000002", "#000003"]

    def test_without_labels(self, few: AnnData, model: SCGPT) -> None:
        before = keys(few)
        sg.tl.finetune(few, model, **{**RUN, "labels_key": None})
        assert added(few, before) == {"obs": {"scgpt_split"}, "obsm": {"X_scGPT"}, "uns": {"finetune"}}
        assert "metrics" not in few.uns["finetune"]
        assert "mse" in "".join(few.uns["finetune"]["history"])

    def test_without_labels_on_a_model_with_classes(self, few: AnnData, model: SCGPT) -> None:
        model.train(few, **RUN)
        before = keys(few)
        sg.tl.finetune(few, model, max_epochs=1)
        assert added(few, before) == {"obs": {"scgpt_split"}, "obsm": {"X_scGPT"}, "uns": {"finetune"}}

    def test_key_added_is_taken_verbatim(self, few: AnnData, model: SCGPT) -> None:
        before = keys(few)
        sg.tl.finetune(few, model, **RUN, key_added="My run")
        assert added(few, before) == {
            "obs": {"My run_label", "My run_label_score", "My run_split"},
            "obsm": {"My run", "My run_probabilities"},
            "uns": {"My run", "My run_label_colors"},
        }

    def test_second_run_replaces_the_first(self, few: AnnData, tuned: AnnData, model: SCGPT) -> None:
        before = keys(tuned)
        sg.tl.finetune(tuned, model, **{**RUN, "labels_key": "phase"})
        assert added(tuned, before) == {}
        assert tuned.obs["scgpt_label"].cat.categories.tolist() == ["G1", "G2M", "S"]


class TestContent:
    def test_labels_scores_and_probabilities_agree(self, tuned: AnnData) -> None:
        classes = tuned.uns["finetune"]["classes"]
        probabilities = pd.DataFrame(tuned.obsm["scgpt_probabilities"], index=tuned.obs_names, columns=classes)
        assert probabilities.idxmax(axis=1).tolist() == tuned.obs["scgpt_label"].tolist()
        np.testing.assert_array_equal(probabilities.max(axis=1), tuned.obs["scgpt_label_score"])
        assert tuned.obs["scgpt_label"].cat.categories.tolist() == classes
        assert classes == sorted(tuned.obs["bulk_labels"].unique())

    def test_metrics_are_sklearns(self, tuned: AnnData) -> None:
        metrics = tuned.uns["finetune"]["metrics"]
        assert metrics.index.tolist() == ["train", "validation", "test"]
        majority = tuned.obs.loc[tuned.obs["scgpt_split"] == "train", "bulk_labels"].mode()[0]
        for part, row in metrics.iterrows():
            cells = tuned.obs[tuned.obs["scgpt_split"] == part]
            truth, predicted = cells["bulk_labels"].astype(str), cells["scgpt_label"].astype(str)
            accuracy = accuracy_score(truth, predicted)
            f1 = f1_score(truth, predicted, average="macro", labels=truth.unique(), zero_division=0)
            assert row["n"] == len(cells)
            assert row["majority_accuracy"] == pytest.approx((truth == majority).mean())
            assert row["accuracy_se"] == pytest.approx(np.sqrt(row["accuracy"] * (1 - row["accuracy"]) / len(cells)))
            if part == "test":
                assert row["accuracy"] == pytest.approx(accuracy)
                assert row["macro_f1"] == pytest.approx(f1)
            else:  # of linear models that were fitted without the cell, and not of the one that labels it
                assert row["accuracy"] < accuracy

    def test_metrics_leave_out_empty_parts(self, few: AnnData, model: SCGPT) -> None:
        sg.tl.finetune(few, model, **RUN, validation_size=0.0, test_size=0.0)
        assert few.uns["finetune"]["metrics"].index.tolist() == ["train"]
        assert few.uns["finetune"]["split"] == {"train": 90, "validation": 0, "test": 0}

    def test_held_out_cells_are_not_trained_on(
        self, few: AnnData, model: SCGPT, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: dict[bool, set[int]] = {True: set(), False: set()}
        loss = Classification.__call__

        def watched(self: Classification, network: Any, batch: Any) -> Any:
            if network.training == is_step(network, batch):
                seen[network.training].update(batch.cells.tolist())
            return loss(self, network, batch)

        monkeypatch.setattr(Classification, "__call__", watched)
        sg.tl.finetune(few, model, **RUN, validation_size=0.2, test_size=0.2)
        parts = few.obs["scgpt_split"].to_numpy()
        assert seen == {True: set(np.flatnonzero(parts == "train")), False: set(np.flatnonzero(parts == "validation"))}
        assert (parts == "test").sum() == 18

    def test_split_key_is_obeyed(self, few: AnnData, model: SCGPT) -> None:
        few.obs["mine"] = ["train", "val", "test"] * 30
        sg.tl.finetune(few, model, **RUN, split_key="mine")
        assert few.obs["scgpt_split"].tolist() == ["train", "validation", "test"] * 30

    def test_own_split_can_be_used_again(self, few: AnnData, tuned: AnnData, model: SCGPT) -> None:
        before = tuned.obs["scgpt_split"].copy()
        sg.tl.finetune(tuned, model, **RUN, split_key="scgpt_split")
        pd.testing.assert_series_equal(tuned.obs["scgpt_split"], before)

    def test_embedding_is_that_of_the_returned_model(self, few: AnnData, model: SCGPT) -> None:
        fitted = sg.tl.finetune(few, model, **RUN, max_length=24, rng=4)  # of the training only
        np.testing.assert_array_equal(few.obsm["X_scGPT"], fitted.get_latent_representation(few, rng=4))

    def test_uns_tells_how_it_was_made(self, few: AnnData, model: SCGPT) -> None:
        extra = AnnData(np.ones((90, 2)), obs=few.obs[[]])
        extra.var_names = ["unheard-of-1", "unheard-of-2"]
        adata = anndata.concat([few, extra], axis=1, merge="first")
        adata.obs = few.obs.copy()
        sg.tl.finetune(adata, model, **RUN, optimizer="adamw", rng=7, prior="none")
        content = adata.uns["finetune"]
        assert (
            content["params"].items()
            >= {"labels_key": "bulk_labels", "optimizer": "adamw", "rng": 7, "lr": 2e-3}.items()
        )
        assert content["weights"]["name"] == "random"
        assert content["version"] == sg.__version__
        assert content["genes"]["matched"] == 150
        assert list(content["genes"]["dropped"]) == ["unheard-of-1", "unheard-of-2"]
        assert content["training"]["best_epoch"] in (0, 1)
        assert content["training"]["optimizer_bytes"] > 0
        pd.testing.assert_frame_equal(content["history"], model.history, check_column_type=False)

    def test_messages_name_genes_and_keys(self, few: AnnData, model: SCGPT, caplog: pytest.LogCaptureFixture) -> None:
        with sg.settings.override(verbosity=3):
            sg.tl.finetune(few, model, **RUN)
        assert "fine-tuning random to predict the classes of obs['bulk_labels'], on 90 cells" in caplog.text
        assert "150 of 150 genes matched" in caplog.text
        assert "'X_scGPT', cell embeddings (adata.obsm)" in caplog.text

    def test_default_messages_have_task_genes_split_score_and_slots(
        self, few: AnnData, model: SCGPT, caplog: pytest.LogCaptureFixture
    ) -> None:
        with sg.settings.override(verbosity=1):
            sg.tl.finetune(few, model, **RUN)
        parts = few.uns["finetune"]["metrics"]
        text = [message.strip() for message in caplog.messages]
        assert text[0].startswith("fine-tuning random to predict the classes of obs['bulk_labels']")
        assert ["150 of 150 genes matched" in line for line in text[:3]] == [False, True, False]
        assert f"split: {', '.join(f'{n} {part}' for part, n in few.uns['finetune']['split'].items())} cells" in text
        score, linear = parts.loc["test", "accuracy"], few.uns["finetune"]["prior"]["metrics"].loc["test", "accuracy"]
        assert any(f": {score:.3f} ±" in line and f"linear model: {linear:.3f}" in line for line in text)
        assert "adata.obsm['X_scGPT', " in text[-1]
        assert len(text) <= 7

    def test_without_labels_the_message_names_the_task(
        self, few: AnnData, model: SCGPT, caplog: pytest.LogCaptureFixture
    ) -> None:
        run = {name: value for name, value in RUN.items() if name != "labels_key"}
        with sg.settings.override(verbosity=1):
            sg.tl.finetune(few, model, **run)
        assert "pre-training continues, since none of labels_key=, " in caplog.text
        loss = few.uns["finetune"]["history"]["validation_loss"]
        assert f"validation loss: {loss.loc[few.uns['finetune']['training']['best_epoch']]:.4g}" in caplog.text


class TestModel:
    def test_given_model_is_trained_in_place_and_returned(self, few: AnnData, model: SCGPT) -> None:
        before = model.network.gene_table.weight.clone()
        assert sg.tl.finetune(few, model, **RUN, prior="none") is model
        assert model.is_trained
        assert not torch.equal(model.network.gene_table.weight, before)

    def test_folder_and_path_are_read(self, few: AnnData, model: SCGPT, tmp_path: Path) -> None:
        model.save(tmp_path / "model")
        results = []
        for given in (tmp_path / "model", str(tmp_path / "model"), model):
            adata = few.copy()
            fitted = sg.tl.finetune(adata, given, **RUN)
            assert isinstance(fitted, SCGPT)
            results.append(adata.obsm["X_scGPT"])
        np.testing.assert_array_equal(results[0], results[1])
        np.testing.assert_array_equal(results[0], results[2])

    def test_failing_training_leaves_model_and_data(
        self, few: AnnData, model: SCGPT, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, weight = keys(few), model.network.gene_table.weight.clone()
        monkeypatch.setattr(Classification, "__call__", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sg.tl.finetune(few, model, **RUN)
        assert added(few, before) == {}
        assert torch.equal(model.network.gene_table.weight, weight)
        assert not model.is_trained

    def test_interrupted_run_is_resumed(
        self, few: AnnData, make_model: Callable[..., SCGPT], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        whole = few.copy()
        sg.tl.finetune(whole, make_model(few.var_names), **RUN)
        calls, loss = [0], Classification.__call__

        def failing(self: Classification, network: Any, batch: Any) -> Any:
            calls[0] += is_step(network, batch)
            return loss(self, network, batch) if calls[0] < 5 else 1 / 0

        with monkeypatch.context() as patch:
            patch.setattr(Classification, "__call__", failing)
            with pytest.raises(ZeroDivisionError):
                sg.tl.finetune(few, make_model(few.var_names), **RUN, checkpoint_dir=tmp_path)
        sg.tl.finetune(few, make_model(few.var_names), **RUN, checkpoint_dir=tmp_path, resume=True)
        np.testing.assert_array_equal(few.obsm["X_scGPT"], whole.obsm["X_scGPT"])
        np.testing.assert_array_equal(few.obsm["scgpt_probabilities"], whole.obsm["scgpt_probabilities"])


class TestContainers:
    def test_view_becomes_an_object_of_its_own(self, few: AnnData, model: SCGPT) -> None:
        view, before = few[10:80], keys(few)
        sg.tl.finetune(view, model, **RUN)
        assert not view.is_view
        assert "X_scGPT" in view.obsm
        assert added(few, before) == {}

    def test_view_stays_a_view_when_refused(self, few: AnnData, model: SCGPT) -> None:
        view = few[10:80]
        with pytest.raises(MissingKeyError):
            sg.tl.finetune(view, model, **{**RUN, "labels_key": "no"})
        assert view.is_view

    def test_backed_file_gets_results_in_memory(self, few: AnnData, model: SCGPT, tmp_path: Path) -> None:
        few.write_h5ad(tmp_path / "few.h5ad")
        backed = anndata.read_h5ad(tmp_path / "few.h5ad", backed="r")
        sg.tl.finetune(backed, model, **RUN)
        assert backed.obsm["X_scGPT"].shape == (90, 16)
        with pytest.raises(DataError, match="view of a backed file"):
            sg.tl.finetune(backed[:50], model, **RUN)

    def test_repeated_names_of_cells(self, few: AnnData, model: SCGPT) -> None:
        few.obs_names = ["cell"] * 90
        sg.tl.finetune(few, model, **RUN)
        classes = np.array(few.uns["finetune"]["classes"])
        best = classes[few.obsm["scgpt_probabilities"].argmax(axis=1)]
        assert best.tolist() == few.obs["scgpt_label"].tolist()

    def test_modality_is_written_and_mirrored(self, few: AnnData, model: SCGPT) -> None:
        protein = AnnData(np.ones((60, 3)), obs=pd.DataFrame(index=few.obs_names[30:]))
        mdata = MuData({"rna": few, "prot": protein})
        sg.tl.finetune(mdata, model, **RUN)
        rna = mdata["rna"]
        assert "X_scGPT" in rna.obsm
        assert "finetune" in rna.uns
        for key in OBS:
            mirrored = mdata.obs[f"rna:{key}"]
            assert mirrored.loc[rna.obs_names].tolist() == rna.obs[key].tolist()

    def test_other_modality(self, few: AnnData, model: SCGPT) -> None:
        mdata = MuData({"gex": few})
        with pytest.raises(MissingKeyError, match="no modality 'rna'; it has 'gex'"):
            sg.tl.finetune(mdata, model, **RUN)
        sg.tl.finetune(mdata, model, **RUN, mod="gex")
        assert "gex:scgpt_label" in mdata.obs


class TestRoundTrip:
    @pytest.mark.parametrize("labels_key", ["bulk_labels", None])
    def test_every_key_survives_h5ad(self, few: AnnData, model: SCGPT, labels_key: str | None, tmp_path: Path) -> None:
        few.obs["bulk_labels"] = few.obs["bulk_labels"].cat.rename_categories(lambda name: f"CD4+/CD25 {name}")
        del few.uns
        sg.tl.finetune(few, model, **{**RUN, "labels_key": labels_key}, checkpoint_dir=tmp_path / "checkpoints")
        few.write_h5ad(tmp_path / "few.h5ad")
        read = anndata.read_h5ad(tmp_path / "few.h5ad")
        assert keys(read) == keys(few)
        pd.testing.assert_frame_equal(read.obs, few.obs)
        for key in few.obsm:
            np.testing.assert_array_equal(read.obsm[key], few.obsm[key])
        ours, theirs = few.uns["finetune"], read.uns["finetune"]
        assert set(theirs) == set(ours)
        pd.testing.assert_frame_equal(theirs["history"], ours["history"], check_column_type=False)
        assert theirs["weights"] == ours["weights"]
        assert theirs["genes"].keys() == ours["genes"].keys()
        assert theirs["params"].keys() == ours["params"].keys()
        if labels_key is not None:
            pd.testing.assert_frame_equal(theirs["metrics"], ours["metrics"])
            assert list(theirs["classes"]) == ours["classes"]

    def test_every_key_survives_h5mu(self, few: AnnData, model: SCGPT, tmp_path: Path) -> None:
        import mudata

        mdata = MuData({"rna": few})
        sg.tl.finetune(mdata, model, **RUN)
        mdata.write_h5mu(tmp_path / "few.h5mu")
        read = mudata.read_h5mu(tmp_path / "few.h5mu")
        assert set(read.obs) == set(mdata.obs)
        assert keys(read["rna"]) == keys(mdata["rna"])


class TestSideEffects:
    def test_nothing_appears_in_the_working_folder(
        self, few: AnnData, model: SCGPT, in_empty_folder: Callable[[], None]
    ) -> None:
        sg.tl.finetune(few, model, **RUN)
        in_empty_folder()

    def test_random_states_are_the_users(
        self, few: AnnData, model: SCGPT, random_states: Callable[[], tuple[object, ...]], tmp_path: Path
    ) -> None:
        model.save(tmp_path / "model")
        before = random_states()
        sg.tl.finetune(few, tmp_path / "model", **RUN)
        assert random_states() == before

    def test_training_options_reach_the_training(self, few: AnnData, model: SCGPT) -> None:
        sg.tl.finetune(few, model, **{**RUN, "max_epochs": 30, "lr": 0.5}, patience=1, warmup=0.0, optimizer="adamw")
        assert len(model.history) < 30
        assert few.uns["finetune"]["params"]["patience"] == 1

    def test_misspelt_option_is_named(self, few: AnnData, model: SCGPT) -> None:
        with pytest.raises(OptionError, match="'label_key'.*Did you mean 'labels_key'"):
            sg.tl.finetune(few, model, label_key="bulk_labels")
