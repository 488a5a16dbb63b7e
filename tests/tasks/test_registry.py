"""Which task a call is for, and what its options are."""

from typing import Any, cast

import pytest

import scgalore as sg
from scgalore._options import Option, options_of
from scgalore.errors import OptionError
from scgalore.tasks.registry import TASKS, argument_names, choose_task, resolve_call, task_named
from scgalore.train import TrainConfig

OPTIONS = [
    *(pytest.param(option, id=f"{task.name}-{option.name}") for task in TASKS.values() for option in task.arguments),
    *(pytest.param(option, id=f"{task.name}-{option.name}") for task in TASKS.values() for option in task.sizes),
    *(pytest.param(option, id=f"training-{option.name}") for option in options_of(TrainConfig)),
]
CHECKED_AS_A_WHOLE = {"curriculum"}
"""What goes with other options is checked with them."""


def call(task: str | None = None, **options: Any) -> Any:
    return resolve_call(options, task=task, seed=0, function=sg.tl.finetune)


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.key is not None])
def test_key_argument_chooses_the_task(name: str) -> None:
    task = TASKS[name]
    assert task.key is not None
    assert choose_task(None, {task.key: "column"}) is task


def test_no_argument_is_masked_expression() -> None:
    assert choose_task(None, dict.fromkeys(argument_names())).name == "expression"


def test_names_are_those_of_the_registry() -> None:
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in TASKS}
    with pytest.raises(OptionError, match=r"task='clases'.*'classes'"):
        task_named("clases")


def test_two_keys_are_refused_and_both_tasks_named() -> None:
    with pytest.raises(OptionError, match="labels_key='x' and values_key='y'.*classes, regression.*task="):
        choose_task(None, {"labels_key": "x", "values_key": "y"})


@pytest.mark.parametrize(
    ("task", "options", "owner"),
    [
        ("perturbation", {"labels_key": "x"}, "classes"),
        ("classes", {"values_key": "x"}, "regression"),
        ("expression", {"genes_per_step": 5}, "perturbation"),
        (None, {"control": "ctrl"}, "perturbation"),
    ],
)
def test_argument_of_another_task_is_refused_and_that_task_named(
    task: str | None, options: dict[str, Any], owner: str
) -> None:
    ((name, value),) = options.items()
    this = task or "expression"
    with pytest.raises(
        OptionError, match=f"{name}={value!r} is an argument of task={owner!r}.*, but the task is {this!r}"
    ):
        call(task, **options)


@pytest.mark.parametrize(
    ("name", "meant"), [("max_epoch", "max_epochs"), ("label_key", "labels_key"), ("split_keys", "split_key")]
)
def test_unknown_option_is_refused_with_what_may_have_been_meant(name: str, meant: str) -> None:
    with pytest.raises(OptionError, match=f"{name!r}. Did you mean {meant!r}"):
        call(None, **{name: 3})


def test_task_without_its_key_is_refused() -> None:
    with pytest.raises(OptionError, match="task='classes' needs labels_key="):
        call("classes")
    assert call("perturbation")[1].arguments["pert_key"] == "perturbation"  # the usual name of that column


def test_task_has_its_own_defaults_of_training_and_they_can_be_changed() -> None:
    task, found = call(pert_key="gene", lr=0.5)
    assert found.config.lr == 0.5
    others = {name: value for name, value in task.training.items() if name != "lr"}
    assert others
    assert {name: getattr(found.config, name) for name in others} == others
    assert call(labels_key="x")[1].config == TrainConfig()


def test_arguments_are_complete_and_plain() -> None:
    _, found = call(pert_key="gene", genes_per_step=12)
    assert found.arguments == {
        "pert_key": "gene",
        "pert_kind": "gene",
        "dose_key": None,
        "vectors_key": None,
        "control": None,
        "context_key": None,
        "batch_key": None,
        "separator": None,
        "prior": "chosen",
        "genes_per_step": 12,
    }


def test_one_name_means_one_thing() -> None:
    training = {option.name for option in options_of(TrainConfig)}
    assert training & argument_names().keys() == set()


@pytest.mark.parametrize("option", OPTIONS)
def test_option_has_help_and_refuses_a_wrong_value(option: Option) -> None:
    assert option.short_help.endswith(".")
    assert option.check(option.default) == option.default
    if option.name in CHECKED_AS_A_WHOLE:
        with pytest.raises(OptionError, match=option.name):
            TrainConfig(**{option.name: cast("Any", object())})
        return
    with pytest.raises(OptionError, match=option.name):
        option.check(object())
