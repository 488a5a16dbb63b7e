import json
import re
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib import image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from tests import screens
from tests.pipeline.conftest import quick

import scgalore as sg
from scgalore._settings import settings
from scgalore.data.reading import READING
from scgalore.errors import DownloadError, OptionError
from scgalore.model import load
from scgalore.pipeline import RunConfig, run
from scgalore.pipeline.config import training_options
from scgalore.pipeline.folder import FILES
from scgalore.train import budget

ERRORS = (ValueError, KeyError, ConnectionError)


@pytest.fixture(scope="session")
def screen_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Singles and doubles with additive effects; the split is part of the file."""
    path = tmp_path_factory.mktemp("data") / "screen.h5ad"
    adata = screens.screen(n_cells=12, n_control=24)
    sg.pp.split_perturbations(adata, "custom", parts={"test": list(screens.TEST)})
    adata.write_h5ad(path)
    return path


def config_of(task: str, pbmc_file: Path, screen_file: Path, out: Path) -> RunConfig:
    if task == "perturbation":
        return quick(screen_file, out, pert_key="perturbation", n_genes=30, curriculum=[15, 30], lr=None)
    keys: dict[str, dict[str, Any]] = {
        "classes": {"labels_key": "bulk_labels"},
        "regression": {"values_key": "S_score"},
        "expression": {"logger": "csv"},
        "integration": {"task": "integration", "batch_key": "phase", "labels_key": "bulk_labels", "test_size": 0.3},
    }
    return quick(pbmc_file, out, **keys[task])


@pytest.fixture(scope="module", params=["classes", "regression", "perturbation", "expression", "integration"])
def finished(
    request: pytest.FixtureRequest, pbmc_file: Path, screen_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("runs") / "new" / request.param
    assert run(config_of(request.param, pbmc_file, screen_file, out)) == out
    return out


def metrics(folder: Path) -> Any:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


class TestFinishedRun:
    def test_every_file_is_there_and_no_other(self, finished: Path) -> None:
        names = {path.name for path in finished.iterdir()}
        assert names == {*FILES, "figures", "checkpoints"}
        logs = {"logs"} if finished.name == "expression" else set()
        assert {path.name for path in (finished / "checkpoints").iterdir()} == {"last.ckpt", "model", *logs}
        assert [path.name for path in finished.parent.iterdir()] == [finished.name], "a draft was left"

    def test_links_of_the_report_resolve(self, finished: Path) -> None:
        report = (finished / "report.md").read_text(encoding="utf-8")
        links = re.findall(r"\]\(([^)]+)\)", report)
        assert sorted(links) == sorted(f"figures/{path.name}" for path in (finished / "figures").iterdir())
        assert len(links) == 4
        for link in links:
            pixels = image.imread(finished / link)
            assert 0.003 < np.mean(pixels[..., :3].min(axis=2) < 0.9) < 0.9, f"{link} shows nothing"

    def test_card_of_the_model_has_the_scores_of_the_report(self, finished: Path) -> None:
        files = (finished / "report.md", finished / "checkpoints" / "model" / "README.md")
        report, card = (set(re.findall(r"^\| .+ \|$", path.read_text("utf-8"), flags=re.M)) for path in files)
        assert len(report & card) > 2

    def test_configuration_is_complete(self, finished: Path) -> None:
        config = RunConfig.from_json(finished / "config.json")
        left = {name for name, value in config.flat().items() if value is None}
        wanted = {
            "context_key",
            "batch_key",
            "dose_key",
            "vectors_key",
            "genes_per_step",
            "class_weight",
            "split_key",
            "validation_size",
            "test_size",
            "logger",
            "mask_ratio",
            "objective",
            "unlabelled",
            "accumulate_tokens",
            "checkpoint_every",
            "from_cell_prompt",
        }
        limits = {"batch_tokens", "max_length", "adapter", "patience", "dropout"}
        assert left <= {*wanted, *limits, *READING}
        assert {option.name for option in training_options()} <= config.flat().keys()
        assert config.training["optimizer_options"]["update_proj_gap"] > 0

    def test_history_has_a_row_for_each_epoch(self, finished: Path) -> None:
        history = pd.read_csv(finished / "history.csv")
        assert history["epoch"].tolist() == [0, 1]
        assert history["n_genes"].is_monotonic_increasing
        assert history["n_genes"].nunique() == 2
        assert metrics(finished)["training"]["epochs"] == 2

    def test_calibration_is_reported_for_validation_and_test_cells(self, finished: Path) -> None:
        if "calibration" not in metrics(finished):
            assert finished.name != "classes"
            return
        found = metrics(finished)["calibration"]
        adata = ad.read_h5ad(finished / "results.h5ad")
        assert found["temperature"] == adata.uns["finetune"]["calibration"]["temperature"]
        report = (finished / "report.md").read_text(encoding="utf-8")
        section = report.partition("## Calibration")[2]
        for part in ("validation", "test"):
            row, cells = found["parts"][part], adata.obs[adata.obs["scgpt_split"] == part]
            assert row["n"] == len(cells)
            if part == "test":  # validation cells are labelled by a linear model that was fitted to them as well
                assert row["confidence"] == pytest.approx(cells["scgpt_label_score"].mean(), abs=1e-5)
            texts = (part, str(len(cells)), f"{row['accuracy']:.3f}", f"{row['confidence']:.3f}")
            assert re.search(r"\| " + r" +\| ".join(map(re.escape, texts)), section), section

    def test_selected_genes_are_the_best_ranked_and_those_of_the_results(self, finished: Path) -> None:
        config = RunConfig.from_json(finished / "config.json")
        table = pd.read_csv(finished / "selected_genes.csv", index_col="gene")
        assert table["selected"].sum() == config.n_genes == metrics(finished)["genes"]
        assert table["rank"].dropna().tolist() == list(range(table["rank"].notna().sum()))
        assert table["selected"].tolist() == (table["rank"] < config.n_genes).tolist(), "a prefix of one ranked list"
        adata = ad.read_h5ad(finished / "results.h5ad")
        assert set(adata.var_names) == set(table.index[table["selected"]])
        assert adata.X.min() == 0 < adata.X.max() < 20

    def test_split_is_that_of_the_results(self, finished: Path) -> None:
        table = pd.read_csv(finished / "split.csv", index_col="cell")["part"]
        adata = ad.read_h5ad(finished / "results.h5ad")
        assert table.index.tolist() == adata.obs_names.tolist()
        found = metrics(finished)["cells"]
        assert table.value_counts().to_dict() == {
            part: n for part in ("train", "validation", "test") if (n := found[part])
        }
        assert found["cells chosen"] == len(table) + found["without a selected gene"]

    def test_fitted_model_is_in_the_folder(self, finished: Path) -> None:
        model = load(finished / "checkpoints" / "model")
        adata = ad.read_h5ad(finished / "results.h5ad")
        if "perturbation" in finished.name:
            assert model.memory is not None
            return
        embedding = model.get_latent_representation(adata[:5].copy())
        np.testing.assert_allclose(embedding, adata.obsm["X_scGPT"][:5], atol=1e-5)

    def test_configuration_gives_the_same_numbers_again(self, finished: Path, tmp_path: Path) -> None:
        config = RunConfig.from_json(finished / "config.json", out=str(tmp_path / "again"))
        again = run(config)
        for name in ("metrics.json", "selected_genes.csv", "split.csv"):
            assert (again / name).read_bytes() == (finished / name).read_bytes(), name

    def test_resuming_changes_nothing(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = snapshot(finished)
        config = RunConfig.from_json(finished / "config.json")
        assert run(config.changed(accelerator="auto"), resume=True) == finished
        assert "is finished; nothing was changed" in capsys.readouterr().err
        assert snapshot(finished) == before

    def test_another_configuration_is_not_resumed_and_the_difference_is_named(self, finished: Path) -> None:
        before = snapshot(finished)
        config = RunConfig.from_json(finished / "config.json")
        with pytest.raises(OptionError, match="contains a different run: rng was 0, now 1"):
            run(config.changed(rng=1), resume=True)
        with pytest.raises(OptionError, match="already contains a finished run"):
            run(config)
        assert snapshot(finished) == before

    def test_bad_input_spares_the_run_that_it_would_have_replaced(self, finished: Path) -> None:
        before = snapshot(finished)
        config = RunConfig.from_json(finished / "config.json")
        for changed in ({"optimizer": "gallore"}, {"split_key": "nowhere"}, {"model": "scgpt-minni"}):
            with pytest.raises(ERRORS):
                run(config.changed(**changed), force=True)
        assert snapshot(finished) == before


@pytest.mark.slow
class TestMoreEpochs:
    STEADY: dict[str, Any] = {"labels_key": "bulk_labels", "curriculum": None, "lr_schedule": "constant", "warmup": 0.0}

    def test_a_finished_run_becomes_the_longer_one(
        self, pbmc_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        whole = run(quick(pbmc_file, tmp_path / "whole", **self.STEADY))
        short = run(quick(pbmc_file, tmp_path / "short", **self.STEADY, max_epochs=1))
        longer = run(RunConfig.from_json(short / "config.json", max_epochs=2), resume=True)
        assert "is extended: max_epochs 1 to 2" in capsys.readouterr().err
        for name in ("metrics.json", "selected_genes.csv", "split.csv"):
            assert (longer / name).read_bytes() == (whole / name).read_bytes(), name
        assert {path.name for path in longer.iterdir()} == {path.name for path in whole.iterdir()}
        assert RunConfig.from_json(longer / "config.json").training["max_epochs"] == 2
        before = snapshot(longer)
        for changed, message in (
            ({"max_epochs": 1}, "max_epochs was 2, now 1"),
            ({"max_epochs": 3, "rng": 1}, "rng was"),
        ):
            with pytest.raises(OptionError, match=message):
                run(RunConfig.from_json(longer / "config.json", **changed), resume=True)
        assert snapshot(longer) == before
        (longer / "checkpoints" / "last.ckpt").unlink()
        with pytest.raises(OptionError, match=r"no last\.ckpt any more"):
            run(RunConfig.from_json(longer / "config.json", max_epochs=3), resume=True)
        assert (longer / "report.md").exists()


class TestOpenBudget:
    OPEN: dict[str, Any] = {"labels_key": "bulk_labels", "curriculum": None, "max_epochs": None, "prior": "none"}

    def test_is_recorded_and_kept(
        self,
        pbmc_file: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(budget, "FEWEST_EPOCHS", 1)
        monkeypatch.setattr(budget, "STEPS", 20)  # of ten steps an epoch
        options = {**self.OPEN, "lr": 1e-5, "optimizer": "adamw", "lr_schedule": "constant"}
        folder = run(quick(pbmc_file, tmp_path / "run", **options))
        recorded = RunConfig.from_json(folder / "config.json").training
        assert (recorded["max_epochs"], recorded["patience"]) == (2, budget.PATIENCE)
        assert metrics(folder)["training"]["max_epochs"] == 2
        monkeypatch.setattr(budget, "STEPS", 40)
        before = snapshot(folder)
        run(quick(pbmc_file, folder, **options), resume=True)
        assert "is finished; nothing was changed" in capsys.readouterr().err
        assert snapshot(folder) == before
        caplog.clear()
        with sg.settings.override(verbosity=1):
            run(quick(pbmc_file, folder, **{**options, "max_epochs": 3, "patience": budget.PATIENCE}), resume=True)
        lines = capsys.readouterr().err
        assert "max_epochs 2 to 3" in lines
        assert lines.count("genes are in the model's vocabulary") == 1
        assert [record.levelname for record in caplog.records if "genes matched" in record.message] == ["WARNING"]
        assert "fine-tuning" not in caplog.text
        assert metrics(folder)["training"]["converged"] is False
        assert "had not converged" in (folder / "report.md").read_text()
        assert "--max-epochs 6" in (folder / "report.md").read_text()


class TestNumbers:
    @pytest.mark.parametrize("finished", ["classes"], indirect=True)
    def test_accuracy_is_that_of_the_labels_in_the_results(self, finished: Path) -> None:
        found, adata = metrics(finished), ad.read_h5ad(finished / "results.h5ad")
        is_test, is_train = (adata.obs["run_split"] == part for part in ("test", "train"))
        truth, predicted = (adata.obs[key].astype(str) for key in ("bulk_labels", "scgpt_label"))
        f1 = f1_score(
            truth[is_test], predicted[is_test], average="macro", labels=truth[is_test].unique(), zero_division=0
        )
        assert found["test"]["n"] == is_test.sum() == 20
        assert found["test"]["accuracy"] == pytest.approx(accuracy_score(truth[is_test], predicted[is_test]))
        assert found["test"]["macro_f1"] == pytest.approx(f1)
        most = truth[is_train].mode()[0]
        assert found["baselines"]["majority class"]["accuracy"] == pytest.approx((truth[is_test] == most).mean())
        dropped = list(adata.uns["finetune"]["genes"]["dropped"])
        x = adata[:, ~adata.var_names.isin(dropped)].X.toarray()
        logistic = LogisticRegression(max_iter=2000).fit(x[is_train], truth[is_train])
        expected = logistic.score(x[is_test], truth[is_test])
        assert found["baselines"]["logistic regression"]["accuracy"] == pytest.approx(expected, abs=0.051)
        assert found["difference"]["accuracy"] == pytest.approx(
            found["test"]["accuracy"] - found["baselines"][found["difference"]["to"]]["accuracy"]
        )

    @pytest.mark.parametrize("finished", ["perturbation"], indirect=True)
    def test_scores_of_perturbations_are_those_of_the_tool(self, finished: Path) -> None:
        found, adata = metrics(finished), ad.read_h5ad(finished / "results.h5ad")
        summary = adata.uns["evaluate_perturbation"]["summary"]
        assert set(adata.uns["predict_perturbation"]["rows"]["perturbation"]) == set(screens.TEST)
        assert found["test"]["n_perturbations"] == len(screens.TEST)
        everything = summary[summary["group"] == "all"].set_index(["metric", "method"])["mean"]
        by_metric = found["groups"]["all"]
        assert {"model", "prior", "training mean", "training mean + own gene", "ceiling"} <= by_metric[
            "pearson_delta"
        ].keys()
        for metric, method in (("pearson_delta", "model"), ("mse", "ceiling")):
            assert by_metric[metric][method]["mean"] == pytest.approx(everything[metric, method])
        report = (finished / "report.md").read_text(encoding="utf-8")
        assert f"| {everything['pearson_delta', 'model']:.3f} [" in report

    @pytest.mark.parametrize("finished", ["expression"], indirect=True)
    def test_masked_expression_stands_beside_means(self, finished: Path) -> None:
        found = metrics(finished)
        assert found["test"]["n"] == 20
        rules = found["baselines"]
        assert 0 < rules["each gene's mean bin"]["mse"] < rules["mean bin of all genes"]["mse"]
        assert "not the quality of its embeddings" in (finished / "report.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_genes_are_selected_from_training_cells_only(pbmc: AnnData, tmp_path: Path) -> None:
    pbmc.obs["part"] = np.where(
        np.arange(pbmc.n_obs) % 5 < 3, "train", np.where(np.arange(pbmc.n_obs) % 5 < 4, "val", "test")
    )
    ranks = []
    for name in ("as_they_are", "shuffled"):
        if name == "shuffled":
            held_out = np.flatnonzero(pbmc.obs["part"] != "train")
            x = pbmc.X.toarray()
            x[held_out] = x[held_out][:, ::-1]
            pbmc.X = x
        path = tmp_path / f"{name}.h5ad"
        pbmc.write_h5ad(path)
        options = {"labels_key": "bulk_labels", "split_key": "part", "max_cells": "all", "max_epochs": 1}
        folder = run(quick(path, tmp_path / name, curriculum=None, n_genes=60, **options))
        ranks.append((folder / "selected_genes.csv").read_bytes())
        assert (
            pd.read_csv(folder / "split.csv")["part"].value_counts()["validation"] == (pbmc.obs["part"] == "val").sum()
        )
    assert ranks[0] == ranks[1]


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        pytest.param({"data": "nowhere.h5ad"}, "does not exist", id="no_file"),
        pytest.param({"labels_key": "nope"}, "labels_key='nope'", id="no_column"),
        pytest.param({"layer": "counts"}, "layer='counts'", id="no_layer"),
        pytest.param({"gene_symbols": "symbol"}, "gene_symbols='symbol'", id="no_symbols"),
        pytest.param({"curriculum": [40, 20]}, "increase", id="curriculum_falls"),
        pytest.param({"curriculum": [10, 20, 120]}, "3 phases", id="more_phases_than_epochs"),
        pytest.param({"optimizer": "gallore"}, "Did you mean 'galore'", id="optimizer"),
        pytest.param({"learning_rate": 1}, "no option 'learning_rate'", id="option"),
        pytest.param({"control": "ctrl"}, "control='ctrl' is an argument of task='perturbation'", id="other_task"),
        pytest.param({"accelerator": "tpu"}, "accelerator='tpu'", id="device"),
        pytest.param({"model": "scgpt-minni"}, "Did you mean 'scgpt-mini'", id="model"),
        pytest.param({"gene_strategy": "biologic"}, "biologic", id="gene_strategy"),
        pytest.param({"species": "axolotl"}, "axolotl", id="species"),
        pytest.param({"test_size": 0.0}, "for training and for testing", id="nothing_held_out"),
        pytest.param({"split_key": "phase"}, "split", id="no_split"),
        pytest.param({"labels_key": "n_counts"}, "different numbers", id="measurement"),
        pytest.param({"data_sha256": "0" * 64}, "sha256", id="other_data"),
        pytest.param({"devices": 2}, "no option 'devices'", id="processes"),
    ],
)
def test_bad_input_leaves_nothing_on_disk(pbmc_file: Path, tmp_path: Path, changed: dict[str, Any], match: str) -> None:
    config = quick(pbmc_file, tmp_path / "new" / "run", labels_key="bulk_labels")
    with pytest.raises(ERRORS, match=match):
        run(config.changed(**changed))
    assert list(tmp_path.iterdir()) == []


def test_all_expressed_genes_are_taken_where_more_are_asked_for(
    pbmc: AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = pbmc[:120, :90].copy()
    few.X[:, :4] = 0
    few.write_h5ad(tmp_path / "few.h5ad")
    options = {"labels_key": "bulk_labels", "n_genes": 5000, "curriculum": [40, 2000, 5000], "max_epochs": 3}
    with caplog.at_level("INFO", logger="scgalore"):
        folder = run(quick(tmp_path / "few.h5ad", tmp_path / "run", **options))
    n_selected = int(pd.read_csv(folder / "selected_genes.csv")["selected"].sum())
    assert n_selected == metrics(folder)["genes"] == ad.read_h5ad(folder / "results.h5ad").n_vars <= 86
    assert sum("n_genes=5,000" in record.getMessage() for record in caplog.records) == 1
    assert f"{n_selected} of its 90 genes" in (folder / "report.md").read_text(encoding="utf-8")
    assert pd.read_csv(folder / "history.csv")["n_genes"].tolist()[0] == 40
    assert pd.read_csv(folder / "history.csv")["n_genes"].nunique() == 2, "the phases beyond all genes are one"
    # The configuration holds what was asked for, so that the run is continued and repeated by the same call.
    assert RunConfig.from_json(folder / "config.json").n_genes == 5000
    assert run(quick(tmp_path / "few.h5ad", tmp_path / "run", **options), resume=True) == folder


def test_scaled_data_leave_nothing_on_disk(pbmc: AnnData, tmp_path: Path) -> None:
    pbmc.X = pbmc.X.toarray() - 0.5
    path = tmp_path / "scaled.h5ad"
    pbmc.write_h5ad(path)
    with pytest.raises(ValueError, match="negative"):
        run(quick(path, tmp_path / "run", labels_key="bulk_labels"))
    assert [path.name for path in tmp_path.iterdir()] == ["scaled.h5ad"]


def test_without_a_network_the_small_weights_are_named(pbmc_file: Path, tmp_path: Path) -> None:
    settings.offline = True
    with pytest.raises(DownloadError, match="--model scgpt-mini"):
        run(quick(pbmc_file, tmp_path / "run", model="scgpt", labels_key="bulk_labels"))
    assert list(tmp_path.iterdir()) == []


def test_several_processes_are_refused(pbmc_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match="a single process, but 2 were started"):
        run(RunConfig(pbmc_file, tmp_path / "out", labels_key="bulk_labels"))
    assert list(tmp_path.iterdir()) == []
