import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from scgalore.errors import OptionError
from scgalore.pipeline import RunConfig


def write(path: Path, **content: Any) -> Path:
    path.write_text(json.dumps({"kind": "scgalore run", **content}), encoding="utf-8")
    return path


def test_json_gives_the_same_object(tmp_path: Path) -> None:
    config = RunConfig(
        "a.h5ad",
        "x",
        labels_key="type",
        genes=300,
        phases=(100, 300),
        must_include=("CD3D",),
        train_options={"clip_norm": math.inf, "optimizer_options": {"rank": 8}},
    )
    path = tmp_path / "config.json"
    path.write_text(config.to_json(), encoding="utf-8")
    assert RunConfig.from_json(path) == config
    assert "Infinity" not in path.read_text(encoding="utf-8"), "which is no JSON"
    assert json.loads(config.to_json()).keys() - {"kind"} == {field.name for field in fields(RunConfig)}


def test_paths_are_whole_so_that_a_run_can_be_repeated_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = RunConfig("a.h5ad", "runs/x")
    assert (config.data, config.out) == (str(tmp_path / "a.h5ad"), str(tmp_path / "runs" / "x"))


@pytest.mark.parametrize(
    ("options", "task"),
    [({}, "expression"), ({"labels_key": "a"}, "classes"), ({"pert_key": "a"}, "perturbation")],
)
def test_columns_decide_the_task(options: dict[str, Any], task: str) -> None:
    assert RunConfig("a.h5ad", "x", **options).task == task


@pytest.mark.parametrize(
    ("content", "match"),
    [
        pytest.param({"gene": 5}, r"'gene', which does not exist\. Did you mean 'genes'", id="unknown_field"),
        pytest.param({"genes": "5000"}, "genes='5000': it must be a whole number", id="text_for_a_number"),
        pytest.param({"genes": True}, "genes=True", id="bool_for_a_number"),
        pytest.param({"genes": 0}, "genes=0", id="no_genes"),
        pytest.param({"epochs": 1.5}, "epochs=1.5", id="half_an_epoch"),
        pytest.param({"test_size": 1.0}, "test_size=1.0", id="all_cells_held_out"),
        pytest.param({"labels_key": 3}, "labels_key=3: it must be a text, or None", id="key"),
        pytest.param({"model": None}, "model=None: it must be a text", id="no_model"),
        pytest.param({"must_include": "CD3D"}, "must_include='CD3D'", id="text_for_a_list"),
        pytest.param({"phases": [100, "x"]}, "phases=", id="phases"),
        pytest.param({"batch_size": "large"}, "batch_size='large'", id="batch_size"),
        pytest.param({"train_options": ["lr"]}, "train_options=", id="train_options"),
        pytest.param({"strategy": "progresive"}, "strategy='progresive': choose one of", id="strategy"),
        pytest.param({"strategy": "plain", "phases": [10]}, "belong to strategy='progressive'", id="plain_phases"),
        pytest.param({"labels_key": "a", "pert_key": "b"}, "Leave one out", id="two_tasks"),
        pytest.param({"control": "ctrl"}, "control='ctrl' belongs to perturbations", id="control"),
        pytest.param({"pert_key": "a", "test_size": 0.1}, "test_size=0.1 is for cells", id="test_size"),
        pytest.param({"train_options": {"max_epochs": 3}}, "pass epochs instead", id="own_field"),
        pytest.param({"train_options": {"curriculum": True}}, "pass strategy instead", id="curriculum"),
    ],
)
def test_what_makes_no_sense_is_refused_and_named(tmp_path: Path, content: dict[str, Any], match: str) -> None:
    path = write(tmp_path / "config.json", data="a.h5ad", out="x", **content)
    with pytest.raises(OptionError, match=match):
        RunConfig.from_json(path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        pytest.param('{"kind": "scgalore run",', "cannot be read as JSON", id="cut_off"),
        pytest.param('{"data": "a.h5ad"}', "no configuration of a run", id="another_config"),
        pytest.param("[]", "no configuration of a run", id="list"),
        pytest.param('{"kind": "scgalore run", "out": "x"}', "lacks 'data'", id="no_data"),
    ],
)
def test_files_that_are_no_configuration_are_refused(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(OptionError, match=match):
        RunConfig.from_json(path)
    with pytest.raises(OptionError, match="cannot be read"):
        RunConfig.from_json(tmp_path / "absent.json")


def test_differences_name_what_makes_another_run() -> None:
    config = RunConfig("a.h5ad", "x", genes=100)
    assert config.differences(replace(config, out="y", device="cpu")) == []
    assert config.differences(replace(config, genes=None)) == [], "left to the run"
    assert config.differences(replace(config, train_options={"lr": 1})) == ["train_options['lr'] was None, now 1"]
    assert config.differences(replace(config, seed=1, genes=50)) == ["genes was 100, now 50", "seed was 0, now 1"]
