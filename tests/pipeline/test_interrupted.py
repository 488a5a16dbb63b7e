"""A run that was interrupted, killed and resumed ends with the numbers of the run that was not."""

import os
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scgalore.pipeline import RunConfig
from scgalore.pipeline.folder import FILES

SCRIPT = Path(__file__).with_name("killed_runs.py")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forked"),
]


@pytest.fixture(scope="module")
def folder(pbmc_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted")
    done = subprocess.run(
        [sys.executable, SCRIPT, folder, pbmc_file], cwd=folder, capture_output=True, text=True, check=False
    )
    logs = "\n".join(f"{path.name}:\n{path.read_text(encoding='utf-8')[-1500:]}" for path in folder.glob("*.txt"))
    assert done.returncode == 0, done.stderr[-1500:] + logs
    return folder


def test_numbers_are_those_of_the_whole_run(folder: Path) -> None:
    for name in ("metrics.json", "selected_genes.csv", "split.csv"):
        assert (folder / "resumed" / name).read_bytes() == (folder / "whole" / name).read_bytes(), name


def test_history_has_every_epoch_once(folder: Path) -> None:
    resumed, whole = (pd.read_csv(folder / name / "history.csv", index_col="epoch") for name in ("resumed", "whole"))
    assert resumed.index.tolist() == [0, 1, 2]
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), whole.drop(columns="seconds"), check_exact=True)
    assert resumed["n_genes"].is_monotonic_increasing
    assert resumed["n_genes"].nunique() == 3


def test_results_are_those_of_the_whole_run(folder: Path) -> None:
    resumed, whole = (ad.read_h5ad(folder / name / "results.h5ad") for name in ("resumed", "whole"))
    np.testing.assert_array_equal(resumed.obsm["X_scGPT"], whole.obsm["X_scGPT"])
    pd.testing.assert_frame_equal(resumed.obs, whole.obs)


def test_a_killed_run_leaves_whole_files_only(folder: Path) -> None:
    left = set((folder / "after_kill.txt").read_text(encoding="utf-8").split("\n"))
    assert left == {"config.json", "environment.txt", "selected_genes.csv", "split.csv", "checkpoints/last.ckpt"}


def test_resumed_folder_holds_what_the_whole_one_holds(folder: Path) -> None:
    resumed, whole = (
        {path.relative_to(folder / name) for path in (folder / name).rglob("*")} for name in ("resumed", "whole")
    )
    assert resumed == whole
    assert {Path(name) for name in FILES} <= whole
    assert (
        RunConfig.from_json(folder / "resumed/config.json").differences(
            RunConfig.from_json(folder / "whole/config.json")
        )
        == []
    )


def test_ctrl_c_says_how_to_go_on(folder: Path) -> None:
    log = (folder / "1.txt").read_text(encoding="utf-8")
    assert f"Interrupted. Continue with: scgalore run --resume --out {folder / 'resumed'}" in log
    assert "Traceback" not in log


def test_environment_says_when_it_was_resumed(folder: Path) -> None:
    text = (folder / "resumed" / "environment.txt").read_text(encoding="utf-8")
    begun = [line.split()[0] for line in text.splitlines() if line.startswith(("begun", "resumed"))]
    assert begun == ["begun", "resumed", "resumed", "resumed"]
