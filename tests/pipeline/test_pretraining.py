import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from matplotlib import image
from safetensors.torch import load_file
from tests.bitwise import differences
from tests.tiny_plugin import few_cells
from typer.testing import CliRunner

import scgalore as sg
from scgalore.cli import app
from scgalore.errors import MissingKeyError, OptionError
from scgalore.pipeline import PretrainConfig, pretrain
from scgalore.pipeline.pretraining import FILES, plan_pretraining

SIZES = {"d_model": 16, "n_heads": 2, "d_hid": 32, "n_layers": 2, "max_length": 40}
RUN: dict[str, Any] = {
    "model": "scgpt",
    "sizes": SIZES,
    "max_steps": 6,
    "steps_per_epoch": 2,
    "batch_size": 8,
    "block_size": 4,
    "buffer_size": 16,
    "validation_cells": 30,
    "accelerator": "cpu",
}


@pytest.fixture(scope="module")
def sources(_pbmc_once: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 90 cells in two files, whose genes differ."""
    folder, few = tmp_path_factory.mktemp("cells"), few_cells(_pbmc_once)
    few[::2, :140].copy().write_h5ad(folder / "even.h5ad")
    few[1::2, 20:].copy().write_h5ad(folder / "odd.h5ad")
    return folder


@pytest.fixture(scope="module")
def finished(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "new" / "out"
    assert pretrain(PretrainConfig(sources, out, labels_key="bulk_labels", logger="csv", **RUN)) == out
    return out


def trained(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "model" / "model.safetensors")


def test_files_without_labels_are_no_obstacle(sources: Path, tmp_path: Path) -> None:
    """Their cells are left out of the score and shown all the same; drawing by such a column is refused, naming the file."""
    folder = tmp_path / "cells"
    folder.mkdir()
    even, bare = (ad.concat([ad.read_h5ad(sources / f"{name}.h5ad")] * 6) for name in ("even", "odd"))
    even.write_h5ad(folder / "even.h5ad")
    del bare.obs["bulk_labels"]
    bare.write_h5ad(folder / "odd.h5ad")
    run = {**RUN, "max_steps": 2, "validation_cells": 30}
    with pytest.raises(MissingKeyError, match=r"no column 'bulk_labels' in 1 of 2 sources: '.*odd\.h5ad'"):
        pretrain(PretrainConfig(folder, tmp_path / "none", weights_key="bulk_labels", **run))
    assert not (tmp_path / "none").exists()
    out = pretrain(PretrainConfig(folder, tmp_path / "out", labels_key="bulk_labels", **run))
    held = ad.read_h5ad(out / "held_out.h5ad")
    assert held.obs["bulk_labels"].isna().tolist() == (held.obs["source"] == "odd").tolist()
    assert (out / "figures" / "umap.png").exists()
    n_labelled = int((held.obs["source"] == "even").sum())
    for row in json.loads((out / "metrics.json").read_text())["neighbours"].values():
        assert 10 <= row["n"] <= n_labelled < held.n_obs - 10


class TestFinishedRun:
    def test_every_file_is_there_and_no_other(self, finished: Path) -> None:
        assert {path.name for path in finished.iterdir()} == {*FILES, "figures", "checkpoints"}
        assert {path.name for path in (finished / "checkpoints").iterdir()} == {"last.ckpt", "model", "logs"}

    def test_pictures_are_those_of_the_report_and_show_something(self, finished: Path) -> None:
        links = re.findall(r"\]\(([^)]+)\)", (finished / "report.md").read_text(encoding="utf-8"))
        assert sorted(links) == sorted(f"figures/{path.name}" for path in (finished / "figures").iterdir())
        assert len(links) == 2
        for link in links:
            assert 0.003 < np.mean(image.imread(finished / link)[..., :3].min(axis=2) < 0.9) < 0.9

    def test_held_out_cells_are_scored_next_to_principal_components(self, finished: Path) -> None:
        held = ad.read_h5ad(finished / "held_out.h5ad")
        model = sg.model.load(finished / "checkpoints" / "model")
        assert held.n_obs == 9
        assert set(held.obs["source"]) <= {"even", "odd"}
        assert {"X_scGPT", "X_pca", "before"} <= set(held.obsm)
        assert set(held.var_names) <= set(model.vocab.tokens)
        scores = json.loads((finished / "metrics.json").read_text())["neighbours"]
        assert list(scores) == ["principal components", "before", "after"]

    def test_history_is_that_of_the_model(self, finished: Path) -> None:
        history = pd.read_csv(finished / "history.csv", index_col="epoch")
        model = sg.model.load(finished / "checkpoints" / "model")
        assert history["validation_loss"].tolist() == pytest.approx(model.history["validation_loss"].tolist())

    def test_it_is_neither_replaced_nor_changed_unless_asked_for(self, finished: Path, sources: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
        config = PretrainConfig.from_json(finished / "config.json")
        with pytest.raises(OptionError, match="already contains a finished run"):
            pretrain(config)
        with pytest.raises(OptionError, match="contains a different run: lr was None, now 1.0"):
            pretrain(config.changed(lr=1.0), resume=True)
        assert pretrain(config, resume=True) == finished
        assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_dry_run_tells_sizes_memory_and_hours_and_writes_nothing(sources: Path, tmp_path: Path) -> None:
    text = plan_pretraining(PretrainConfig(sources, tmp_path / "out", **RUN))
    for part in (
        "81 cells to train on, 9 held out",
        "parameters; a step of 8 cells takes",
        "6 steps (0.6 passes",
        "GB",
    ):
        assert part in text or part.replace("GB", "MB") in text, part
    assert list(tmp_path.iterdir()) == []


def test_dry_run_looks_for_the_labels(sources: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingKeyError, match=r"None of the 2 files has a value in obs\['cell_typ'\]"):
        plan_pretraining(PretrainConfig(sources, tmp_path / "out", labels_key="cell_typ", **RUN))


def test_dry_run_says_how_far_a_run_is(finished: Path, tmp_path: Path) -> None:
    config = PretrainConfig.from_json(finished / "config.json")
    with pytest.raises(OptionError, match="contains a different run: lr was"):
        plan_pretraining(config.changed(lr=1.0), resume=True)
    assert "is finished; nothing would be changed" in plan_pretraining(config, resume=True)
    begun = tmp_path / "begun"
    shutil.copytree(finished, begun)
    (begun / "report.md").unlink()
    before = sorted(begun.rglob("*"))
    assert "last.ckpt at step 6 of 6, after all 3 epochs." in plan_pretraining(config.changed(out=begun), resume=True)
    assert sorted(begun.rglob("*")) == before


class TestCommand:
    def test_from_named_files_to_a_report(self, sources: Path, tmp_path: Path) -> None:
        sizes = ",".join(f"{name}={value}" for name, value in SIZES.items())
        given = [
            f"a={sources / 'even.h5ad'}",
            f"b={sources / 'odd.h5ad'}",
            "--shares",
            "a=0.75,b=0.25",
            "--sizes",
            sizes,
        ]
        given += ["--model", "scgpt", "--max-steps", "2", "--steps-per-epoch", "1", "--batch-size", "8"]
        given += ["--where", "bulk_labels != 'Dendritic'", "--out", str(tmp_path / "run")]
        done = CliRunner().invoke(app, ["pretrain", *given])
        assert done.exit_code == 0, done.output
        config = PretrainConfig.from_json(tmp_path / "run" / "config.json")
        assert config.options["shares"] == {"a": 0.75, "b": 0.25}
        assert config.options["sizes"] == SIZES

    def test_moved_files_keep_the_options_of_the_run(self, sources: Path, finished: Path, tmp_path: Path) -> None:
        moved, begun = tmp_path / "moved", tmp_path / "begun"
        shutil.copytree(sources, moved)
        shutil.copytree(finished, begun)
        (begun / "report.md").unlink()
        before = PretrainConfig.from_json(begun / "config.json")
        done = CliRunner().invoke(app, ["pretrain", str(moved), "--resume", "--out", str(begun)])
        assert done.exit_code == 0, done.output
        assert "report.md" in done.output
        assert differences(trained(begun), trained(finished)) == []
        assert PretrainConfig.from_json(begun / "config.json").options == before.options
        done = CliRunner().invoke(app, ["pretrain", str(moved), "--resume", "--lr", "1", "--out", str(begun)])
        assert done.exit_code == 2
        assert "lr was None, now 1.0" in done.output

    @pytest.mark.parametrize(
        ("given", "text"),
        [
            (["--model", "scgpt-mini"], "Pass them"),
            (["nowhere"], "does not exist"),
            (["a=x.h5ad", "y.h5ad"], "Name all of them or none"),
            (["x.h5ad", "--max-steps", "many"], "max_steps='many'"),
        ],
    )
    def test_bad_input_is_a_message_and_writes_nothing(
        self, given: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        done = CliRunner().invoke(app, ["pretrain", *given])
        assert done.exit_code == 2
        assert text in done.output
        assert list(tmp_path.iterdir()) == []

    def test_help_teaches(self) -> None:
        text = CliRunner().invoke(app, ["pretrain", "--help"]).output
        for part in (
            "--max-hours",
            "--where",
            "--shares",
            "--resume",
            "--dry-run",
            "--steps-per-epoch",
        ):
            assert part in text


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("moment", range(5))
def test_a_run_that_was_killed_goes_on_to_the_same_bits(
    sources: Path, tmp_path: Path, finished: Path, moment: int
) -> None:
    """Killed while it starts, at three points of training, which lie inside a pass over the files, and while it ends."""
    out = tmp_path / "run"
    config = PretrainConfig.from_json(finished / "config.json", out=out, max_steps=40)
    whole = pretrain(config.changed(out=tmp_path / "whole"))
    (tmp_path / "config.json").write_text(config.to_json(), encoding="utf-8")
    command = [sys.executable, "-m", "scgalore", "pretrain", "--config", str(tmp_path / "config.json"), "--resume"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.Popen([*command, "--out", str(out)], env=environment, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    wanted = ["[1/4]", "step 4:", "step 18:", "step 30:", "[3/4]"][moment]
    for line in run.stderr:
        if wanted in line:
            break
    time.sleep(0.05 * moment)
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stderr.close()
    assert not (out / "report.md").exists()
    assert pretrain(config, resume=True) == out
    assert differences(trained(out), trained(whole)) == []
    assert (out / "report.md").exists()


@pytest.fixture(scope="module")
def killed(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    script = Path(__file__).with_name("killed_pairs.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(folder), str(sources)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    logs = "".join(path.read_text()[-1500:] for path in sorted(folder.glob("*.txt")))
    assert done.returncode == 0, done.stderr[-2000:] + logs
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forked")
class TestTwoProcessesThatAreKilled:
    """One of two processes gets SIGKILL, and then the other: five times, in training, validation and while files are written."""

    def test_go_on_from_the_last_checkpoint_that_is_whole(self, killed: Path) -> None:
        assert (killed / "steps.txt").read_text() == "0 10 12 22 24 24"

    def test_end_with_the_bits_of_the_run_that_was_not(self, killed: Path) -> None:
        resumed, whole = killed / "resumed", killed / "whole"
        assert differences(trained(resumed), trained(whole)) == []
        losses = ["lr", "train_loss", "validation_loss"]
        again, once = (pd.read_csv(run / "history.csv", index_col="epoch")[losses] for run in (resumed, whole))
        pd.testing.assert_frame_equal(again, once, check_exact=True)
        embedded = [ad.read_h5ad(run / "held_out.h5ad").obsm["X_scGPT"] for run in (resumed, whole)]
        np.testing.assert_array_equal(*embedded)

    def test_leave_what_one_process_leaves(self, killed: Path) -> None:
        found = [
            sorted(str(path.relative_to(killed / run)) for path in (killed / run).rglob("*"))
            for run in ("resumed", "whole")
        ]
        assert found[0] == found[1]
        assert {path.name for path in (killed / "whole").iterdir()} == {*FILES, "figures", "checkpoints"}
        best = sorted((killed / "whole" / "checkpoints" / "best").iterdir())
        assert len(best) == 2
        assert sg.model.load(best[0]).network.config.d_model == 16
        for path in best:
            kept = load_file(path / "model.safetensors")
            assert (
                differences(
                    kept, load_file(killed / "resumed" / "checkpoints" / "best" / path.name / "model.safetensors")
                )
                == []
            )

    def test_say_everything_once(self, killed: Path) -> None:
        first, second = ((killed / f"whole_log-{rank}.txt").read_text() for rank in range(2))
        assert "[4/4] report" in first
        assert "epoch 3 (4 of 4), step 24" in first
        assert not re.search("epoch|report|pre-train", second)
