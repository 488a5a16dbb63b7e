"""Control as a number, as several labels and as a pattern, from the command line to the results."""

import json
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from tests import screens
from typer.testing import CliRunner

from scgalore.cli import app
from scgalore.tasks.perturbation.reading import CONTROL


@pytest.mark.parametrize(
    ("text", "control"),
    [("0", "0"), ("NT", "NT"), ("NT_1,NT_2", ["NT_1", "NT_2"]), ("NT_*", "NT_*"), ('["a,b", "c"]', ["a,b", "c"])],
)
def test_text_of_the_command_line(text: str, control: Any) -> None:
    read = CONTROL.read(text)
    assert CONTROL.fits(read)
    assert CONTROL.plain(read) == control


@pytest.mark.parametrize(
    ("given", "names", "kept"),
    [
        ("0", {"control": 0}, "0"),
        ("NT_1,NT_2", {"control": ["NT_1", "NT_2"]}, ["NT_1", "NT_2"]),
        ("NT_?", {"control": ["NT_1", "NT_2"]}, ["NT_1", "NT_2"]),
    ],
)
def test_a_run_from_file_to_report(given: str, names: dict[str, Any], kept: Any, tmp_path: Path) -> None:
    adata = screens.screen(n_cells=8, n_control=16)
    labels = adata.obs["perturbation"].astype(object)
    if given == "0":  # numbers, with a gap that makes floats of them
        numbers = {name: float(i) for i, name in enumerate(["control", *screens.SINGLES])}
        labels = labels.map(numbers)  # doubles have none
    else:
        own = np.resize(names["control"], int((labels == "control").sum()))
        labels[labels == "control"] = own
    adata.obs["perturbation"] = pd.Series(labels).astype("category")
    adata.write_h5ad(tmp_path / "screen.h5ad")
    options = [
        "--pert-key",
        "perturbation",
        "--model",
        "scgpt-mini",
        "--epochs",
        "1",
        "--genes",
        "30",
        "--device",
        "cpu",
    ]
    command = ["run", str(tmp_path / "screen.h5ad"), *options, "--control", given, "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert (config["control"], config["separator"]) == (kept, "+")
    found = ad.read_h5ad(tmp_path / "run" / "results.h5ad")
    assert np.array(found.uns["predict_perturbation"]["params"]["control"]).tolist() == kept
    assert len(found.uns["evaluate_perturbation"]["scores"])
