import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scgalore._options import TEXT, Option, options_of
from scgalore.errors import OptionError
from scgalore.pipeline import RunConfig
from scgalore.pipeline.config import training_options
from scgalore.tasks import TASKS, task_named
from scgalore.tasks.expression import Expression


def write(path: Path, **content: Any) -> Path:
    path.write_text(json.dumps({"kind": "scgalore run", **content}), encoding="utf-8")
    return path


def test_json_gives_the_same_object_and_is_flat(tmp_path: Path) -> None:
    config = RunConfig(
        "a.h5ad",
        "x",
        labels_key="type",
        n_genes=300,
        curriculum={100: 4, 300: 6},
        must_include=("CD3D",),
        clip_norm=math.inf,
        optimizer_options={"rank": 8},
    )
    path = tmp_path / "config.json"
    path.write_text(config.to_json(), encoding="utf-8")
    assert RunConfig.from_json(path) == config
    assert "Infinity" not in path.read_text(encoding="utf-8"), "which is no JSON"
    content = json.loads(config.to_json())
    declared = [*options_of(RunConfig), *task_named("classes").arguments, *training_options()]
    assert content.keys() == {"kind", "data", "out", "version", "data_sha256", *(option.name for option in declared)}
    assert list(content) == list(json.loads(RunConfig("b.h5ad", "y", lr=1, labels_key="type").to_json()))


def test_paths_are_whole_so_that_a_run_can_be_repeated_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = RunConfig("a.h5ad", "runs/x")
    assert (config.data, config.out) == (str(tmp_path / "a.h5ad"), str(tmp_path / "runs" / "x"))


@pytest.mark.parametrize(
    ("options", "task"),
    [
        ({}, "expression"),
        ({"labels_key": "a"}, "classes"),
        ({"pert_key": "a"}, "perturbation"),
        ({"values_key": "a"}, "regression"),
    ],
)
def test_columns_decide_the_task(options: dict[str, Any], task: str) -> None:
    assert RunConfig("a.h5ad", "x", **options).task == task


@pytest.mark.parametrize(
    ("content", "match"),
    [
        pytest.param({"n_gene": 5}, r"A run has no option 'n_gene'\. Did you mean 'n_genes'", id="unknown"),
        pytest.param({"n_genes": "5000"}, "n_genes='5000': it must be a whole number", id="text_for_a_number"),
        pytest.param({"n_genes": True}, "n_genes=True", id="bool_for_a_number"),
        pytest.param({"n_genes": 0}, "n_genes=0", id="no_genes"),
        pytest.param({"max_epochs": 1.5}, "max_epochs=1.5", id="half_an_epoch"),
        pytest.param({"test_size": 1.0}, "test_size=1.0", id="all_cells_held_out"),
        pytest.param({"labels_key": 3}, "labels_key=3: it must be a non-empty string, or None", id="key"),
        pytest.param({"model": None}, "model=None: it must be a non-empty string", id="no_model"),
        pytest.param({"must_include": "CD3D"}, "must_include='CD3D'", id="text_for_a_list"),
        pytest.param({"batch_size": "large"}, "batch_size='large'", id="batch_size"),
        pytest.param({"precision": "fp16"}, "precision='fp16': choose one of", id="precision"),
        pytest.param({"labels_key": "a", "pert_key": "b"}, "Omit one", id="two_tasks"),
        pytest.param({"task": "clases", "labels_key": "a"}, "Did you mean 'classes'", id="no_such_task"),
        pytest.param({"task": "classes"}, "needs labels_key=", id="task_without_its_key"),
        pytest.param({"control": "ctrl"}, "control='ctrl' is an argument of task='perturbation'", id="of_another_task"),
        pytest.param({"pert_key": "a", "test_size": 0.1}, "test_size=0.1 is a fraction of cells", id="test_size"),
        pytest.param({"seed": 3}, "no option 'seed'", id="seed"),
        pytest.param({"devices": 2}, "no option 'devices'", id="devices"),
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
        pytest.param('{"data": "a.h5ad"}', "not a configuration of a run", id="another_config"),
        pytest.param("[]", "not a configuration of a run", id="list"),
        pytest.param('{"kind": "scgalore run", "out": "x"}', "has no entry 'data'", id="no_data"),
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
    config = RunConfig("a.h5ad", "x", n_genes=100, curriculum=[50, 100])
    assert config.differences(config.changed(out="y", accelerator="cpu")) == []
    assert config.differences(config.changed(n_genes=None, curriculum=True)) == [], "left to the run"
    assert config.differences(config.changed(curriculum=None)) == ["curriculum was [50, 100], now None"]
    assert config.changed(curriculum=None).differences(config) == ["curriculum was None, now [50, 100]"]
    assert config.differences(config.changed(lr=1)) == ["lr was None, now 1.0"]
    assert config.differences(config.changed(rng=1, n_genes=50)) == ["n_genes was 100, now 50", "rng was 0, now 1"]
    assert config.differences(config.changed(labels_key="type", task=None))[0] == "task was 'expression', now 'classes'"


def test_a_file_can_be_used_for_another_task(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    screen = RunConfig("a.h5ad", "x", pert_key="gene", control="ctrl", batch_key="plate", max_epochs=3)
    path.write_text(screen.to_json(), encoding="utf-8")
    config = RunConfig.from_json(path, labels_key="type")
    assert config == RunConfig("a.h5ad", "x", labels_key="type", batch_key="plate", max_epochs=3)
    assert RunConfig.from_json(path, control="none").arguments["control"] == "none"


def test_batches_are_an_argument_of_the_tasks_that_read_them() -> None:
    assert RunConfig("a.h5ad", "x", pert_key="gene", batch_key="plate").arguments["batch_key"] == "plate"
    config = RunConfig("a.h5ad", "x", labels_key="type", batch_key="plate")
    assert (config.batch_key, config.arguments["labels_key"]) == ("plate", "type")
    assert "batch_key" not in config.arguments


class Toy(Expression):
    """A task that is registered from outside."""

    name, key, arguments = "toy", "toy_key", (Option("toy_key", TEXT, "Column of obs.", column="obs"),)


def test_a_task_from_outside_brings_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="no option 'toy_key'"):
        RunConfig("a.h5ad", "x", toy_key="t")
    monkeypatch.setitem(TASKS, "toy", Toy())
    config = RunConfig("a.h5ad", "x", toy_key="t")
    assert (config.task, config.arguments) == ("toy", {"toy_key": "t"})
    with pytest.raises(OptionError, match="toy_key='t' is an argument of task='toy'"):
        RunConfig("a.h5ad", "x", task="expression", toy_key="t")


@pytest.mark.parametrize(
    ("control", "kept"),
    [
        ("NT", "NT"),
        (0, "0"),
        (np.int64(0), "0"),
        (["NT_1", "NT_2"], ["NT_1", "NT_2"]),
        (("NT_1", 2.0), ["NT_1", "2"]),
        (np.array(["NT_1", "NT_2"]), ["NT_1", "NT_2"]),
        (["NT"], "NT"),
        ("NT_*", "NT_*"),
    ],
    ids=repr,
)
def test_control_is_a_label_or_several(control: Any, kept: Any, tmp_path: Path) -> None:
    config = RunConfig("a.h5ad", "x", pert_key="gene", control=control)
    assert config.arguments["control"] == kept
    (tmp_path / "config.json").write_text(config.to_json(), encoding="utf-8")
    assert RunConfig.from_json(tmp_path / "config.json") == config


@pytest.mark.parametrize("control", [[], True, "", ["NT", None], {"a": 1}], ids=str)
def test_what_is_no_control_is_refused(control: Any) -> None:
    with pytest.raises(OptionError, match="control="):
        RunConfig("a.h5ad", "x", pert_key="gene", control=control)
