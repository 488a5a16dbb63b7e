"""What a scanpy user may take for granted about every public function, and what its docstring must say."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import scgalore as sg
from scgalore.model import SCGPT

ROOMS = (
    "adapters",
    "datasets",
    "get",
    "model",
    "nn",
    "objectives",
    "optim",
    "perturb",
    "pipeline",
    "pl",
    "pp",
    "tl",
    "train",
    "weights",
)
Function = Callable[..., Any]
API_PAGES = Path(__file__).parents[1] / "docs" / "api"

# Names other packages use for what has one name here.
OTHER_NAMES = {
    "backup_url",
    "cell_type_key",
    "control_key",
    "inplace",
    "key",
    "label_key",
    "n_top_genes",
    "output",
    "random_state",
    "save",
    "seed",
    "use_raw",
}


def functions_of(*rooms: str) -> dict[str, Function]:
    members = {
        f"{room}.{name}": getattr(getattr(sg, room), name) for room in rooms for name in getattr(sg, room).__all__
    }
    return {name: member for name, member in members.items() if inspect.isfunction(member)}


def methods() -> dict[str, Function]:
    members = [(name, member) for name, member in inspect.getmembers(SCGPT, callable) if not name.startswith("_")]
    return {f"SCGPT.{name}": getattr(member, "__func__", member) for name, member in members}


def wrong(functions: dict[str, Function], right: Callable[[Function], bool]) -> list[str]:
    """Names of the functions for which something does not hold."""
    return [name for name, function in functions.items() if not right(function)]


def parameters_of(function: Function) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in parameters.items() if name not in {"self", "cls"}}


def sections(function: Function) -> dict[str, str]:
    """Parts of a numpydoc docstring by heading; the text before the first one is ``""``."""
    parts = re.split(r"^(.+)\n-{3,}\n", inspect.getdoc(function) or "", flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def documented(function: Function) -> list[str]:
    """Names in the parameter sections, where entries stand at the margin."""
    text = sections(function).get("Parameters", "") + sections(function).get("Other Parameters", "")
    entries = [line for line in text.splitlines() if line and not line[0].isspace()]
    return [name.strip().lstrip("*") for entry in entries for name in entry.split(",")]


def data_come_first(function: Function) -> bool:
    first = next(iter(parameters_of(function).values()))
    return first.name in {"adata", "data", "query"} and first.default is first.empty


def at_most_three_are_positional(function: Function) -> bool:
    positional = [p for p in parameters_of(function).values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    # What does f(adata, True) mean?
    return len(positional) <= 3 and not any(isinstance(p.default, bool) for p in positional)


def everything_is_annotated(function: Function) -> bool:
    signature = inspect.signature(function)
    annotations = [signature.return_annotation, *(p.annotation for p in signature.parameters.values())]
    return signature.empty not in annotations


def names_are_the_fields(function: Function) -> bool:
    # ``key`` names results that are read, which plots do, and the scores of a prediction.
    reads = function.__module__.startswith("scgalore.pl") or function.__name__ == "evaluate_perturbation"
    other = OTHER_NAMES - ({"key"} if reads else set())
    return parameters_of(function).keys().isdisjoint(other)


def shared_parameters_have_one_default(function: Function) -> bool:
    defaults = {"copy": False, "key_added": None, "layer": None, "gene_symbols": None, "mod": "rna", "rng": 0}
    defaults |= {"ax": None, "show": None}
    if function.__name__ == "select_genes":
        # The key is a column of its own, which scripts read by name, as scanpy's highly_variable.
        defaults["key_added"] = "selected"
    return all(p.default == defaults[name] for name, p in parameters_of(function).items() if name in defaults)


def copy_returns_or_changes_in_place(function: Function) -> bool:
    returned = str(inspect.signature(function).return_annotation)
    says = returned.endswith("| None") and "copy=True" in sections(function)["Returns"]
    return "copy" not in parameters_of(function) or says


def docstring_has_all_parts(function: Function) -> bool:
    parts = sections(function)
    return parts[""].strip().splitlines()[0].endswith(".") and {"Parameters", "Returns", "Examples"} <= parts.keys()


@pytest.mark.parametrize(
    "right",
    [
        data_come_first,
        at_most_three_are_positional,
        everything_is_annotated,
        names_are_the_fields,
        shared_parameters_have_one_default,
        copy_returns_or_changes_in_place,
        docstring_has_all_parts,
    ],
    ids=lambda right: right.__name__,
)
def test_tools_and_plots(right: Callable[[Function], bool]) -> None:
    assert wrong(functions_of("tl", "pl"), right) == []


def draws_on_given_axes(function: Function) -> bool:
    returned = str(inspect.signature(function).return_annotation)
    return {"ax", "show"} <= parameters_of(function).keys() and "Axes" in returned


def test_plots_draw_on_given_axes() -> None:
    assert wrong(functions_of("pl"), draws_on_given_axes) == []


def names_the_keys_it_writes(function: Function) -> bool:
    returns = sections(function)["Returns"]
    slots = re.search(r"adata\.(obs|obsm|var|layers|uns)\['", returns)
    return "key_added" in parameters_of(function) and slots is not None


def test_tools_name_the_keys_they_write() -> None:
    assert wrong(functions_of("tl"), names_the_keys_it_writes) == []


class TestDocstring:
    def test_every_parameter_is_described(self) -> None:
        for name, function in (functions_of(*ROOMS) | methods()).items():
            assert inspect.getdoc(function), name
            assert documented(function) == list(parameters_of(function)), name

    def test_types_are_left_to_the_signature(self) -> None:
        described = {name: documented(function) for name, function in (functions_of(*ROOMS) | methods()).items()}
        assert [name for name, entries in described.items() if any(" : " in entry for entry in entries)] == []

    def test_no_placeholder_is_left(self) -> None:
        docs = {name: inspect.getdoc(function) or "" for name, function in (functions_of(*ROOMS) | methods()).items()}
        assert [name for name, text in docs.items() if re.search(r"^ *\{\w+\}$", text, flags=re.MULTILINE)] == []


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_has_documentation(room: str) -> None:
    module = getattr(sg, room)
    assert module.__doc__
    assert [name for name in module.__all__ if not getattr(module, name).__doc__] == []
    pages = "\n".join(page.read_text(encoding="utf-8") for page in API_PAGES.glob("*.md"))
    assert [name for name in module.__all__ if not re.search(rf"\b{room}\.{name}\b", pages)] == []
