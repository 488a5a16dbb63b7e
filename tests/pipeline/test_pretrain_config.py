from pathlib import Path
from typing import Any

import pytest

from scgalore.errors import OptionError
from scgalore.pipeline import PretrainConfig, RunConfig
from scgalore.pipeline.pretrain_config import pretrain_options


def config(**options: Any) -> PretrainConfig:
    return PretrainConfig(["a.h5ad", "b"], "out", **options)


def test_it_comes_back_from_its_file(tmp_path: Path) -> None:
    made = config(max_hours=2, shares=None, clip_norm=float("inf"), mask_ratio=(0.25, 0.5), sizes={"d_model": 64})
    (tmp_path / "config.json").write_text(made.to_json(), encoding="utf-8")
    assert PretrainConfig.from_json(tmp_path / "config.json") == made


def test_paths_are_absolute_and_named_sources_stay_named() -> None:
    assert config().sources == [str(Path("a.h5ad").absolute()), str(Path("b").absolute())]
    named = PretrainConfig({"blood": "a", "lung": ["b", "c"]}, "out").sources
    assert named == {"blood": [str(Path("a").absolute())], "lung": [str(Path(name).absolute()) for name in "bc"]}


def test_defaults_are_those_of_the_function() -> None:
    from inspect import signature

    from scgalore.tl import pretrain

    of_function = {name: parameter.default for name, parameter in signature(pretrain).parameters.items()}
    for option, _ in pretrain_options():
        if option.name in of_function and option.name not in ("sizes", "labels_key", "accelerator"):
            assert config().options[option.name] == of_function[option.name], option.name


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("T cell=2,B cell=0.5", {"T cell": 2.0, "B cell": 0.5}),
        ("CD4-positive, alpha-beta T cell=2, B=0", {"CD4-positive, alpha-beta T cell": 2.0, "B": 0.0}),
        ("score=high=3", {"score=high": 3.0}),
        ('{"a, b=1": 4, "2": 1}', {"a, b=1": 4.0, "2": 1.0}),
    ],
)
def test_weights_are_read_from_a_command_line(text: str, weights: dict[str, float], tmp_path: Path) -> None:
    option = next(option for option, _ in pretrain_options() if option.name == "weights")
    made = config(weights_key="cell_type", weights=option.kind.read(text))
    assert made.options["weights"] == weights
    (tmp_path / "config.json").write_text(made.to_json(), encoding="utf-8")
    assert PretrainConfig.from_json(tmp_path / "config.json") == made


def test_labels_that_are_numbers_have_one_form() -> None:
    assert config(weights_key="louvain", weights={1: 2, 2.0: 3}).options["weights"] == {"1": 2.0, "2": 3.0}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_step": 3}, r"has no option 'max_step'\. Did you mean 'max_steps'"),
        ({"max_steps": 3, "max_hours": 1}, "a run has exactly one budget"),
        ({"max_steps": -1}, "max_steps=-1"),
        ({"max_epochs": 2}, "no option 'max_epochs'"),
        ({"sizes": {}}, "sizes="),
        ({"weights": "T cell"}, "weights='T cell': give a non-negative number"),
        ({"weights": {"T cell": float("nan")}}, "weights="),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        config(**options)


def test_a_configuration_of_fine_tuning_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(RunConfig("a.h5ad", "x").to_json(), encoding="utf-8")
    with pytest.raises(OptionError, match='it has no "kind": "scgalore pretrain"'):
        PretrainConfig.from_json(tmp_path / "config.json")


def test_differences_are_named_and_places_are_none() -> None:
    other = PretrainConfig("moved", "elsewhere", lr=0.1)
    assert config().differences(other) == ["lr was None, now 0.1"]


def test_patience_is_not_said_to_follow_an_option_that_there_is_not() -> None:
    shown = {option.name: option.shown_default for option, _ in pretrain_options()}
    assert "max_epochs" not in shown
    assert shown["patience"] == "all epochs"
