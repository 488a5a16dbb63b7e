"""What a scanpy user may take for granted about every public function, and what its docstring must say."""

import inspect
import re
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

import scgalore as sg
from scgalore._options import options_of
from scgalore.model import SCGPT
from scgalore.tasks import TASKS
from scgalore.tl._declared import TRAINING
from scgalore.train import TrainConfig

ROOMS = (
    "adapters",
    "datasets",
    "get",
    "mapping",
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
API_PAGES = Path(__file__).parents[1] / "docs" / "api"

USER_PAGES = ("tl", "pp", "pl", "get", "datasets", "model", "weights", "memory", "pipeline")


def listed(page: str) -> list[str]:
    """Names in the tables of a page of the API, such as ``tl.embed``."""
    text = (API_PAGES / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(r"^   ([a-z_.]+\w+)$", text, flags=re.MULTILINE)


USER_NAMES = [name for page in USER_PAGES for name in listed(page)]

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


Functions = dict[str, Callable[..., Any]]


def functions_of(*rooms: str) -> Functions:
    members = {
        f"{room}.{name}": getattr(getattr(sg, room), name) for room in rooms for name in getattr(sg, room).__all__
    }
    return {name: member for name, member in members.items() if inspect.isfunction(member)}


def methods() -> Functions:
    members = [(name, member) for name, member in inspect.getmembers(SCGPT, callable) if not name.startswith("_")]
    return {f"SCGPT.{name}": getattr(member, "__func__", member) for name, member in members}


def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in parameters.items() if name not in {"self", "cls"}}


def sections(function: Callable[..., Any]) -> dict[str, str]:
    """Parts of a numpydoc docstring by heading; the text before the first one is ``""``."""
    parts = re.split(r"^(.+)\n-{3,}\n", inspect.getdoc(function) or "", flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def related(member: Any) -> list[str]:
    """Names in the section "See Also"."""
    return re.findall(r"^scgalore\.([\w.]+) : \S.*\.$", sections(member).get("See Also", ""), flags=re.MULTILINE)


def documented(function: Callable[..., Any]) -> list[str]:
    """Names in the parameter sections, where entries stand at the margin."""
    text = sections(function).get("Parameters", "") + sections(function).get("Other Parameters", "")
    entries = [line for line in text.splitlines() if line and not line[0].isspace()]
    return [name.strip().lstrip("*") for entry in entries for name in entry.split(",")]


class TestSignature:
    @pytest.fixture
    def functions(self) -> Functions:
        return functions_of("tl", "pl")

    def test_data_come_first(self, functions: Functions, subtests: pytest.Subtests) -> None:
        for name, function in functions.items():
            with subtests.test(name):
                first = next(iter(parameters_of(function).values()))
                assert first.name in {"adata", "data", "query", "sources"}
                # Embeddings of the genes that a model knows need no data.
                assert first.default is first.empty or name == "tl.gene_embeddings"

    def test_at_most_three_are_positional(self, functions: Functions, subtests: pytest.Subtests) -> None:
        for name, function in functions.items():
            with subtests.test(name):
                positional = [p for p in parameters_of(function).values() if p.kind is p.POSITIONAL_OR_KEYWORD]
                assert len(positional) <= 3
                assert not [p.name for p in positional if isinstance(p.default, bool)], "what does f(adata, True) mean?"

    def test_everything_is_annotated(self, functions: Functions, subtests: pytest.Subtests) -> None:
        for name, function in functions.items():
            with subtests.test(name):
                signature = inspect.signature(function)
                assert signature.return_annotation is not signature.empty
                assert [p.name for p in signature.parameters.values() if p.annotation is p.empty] == []

    def test_names_are_the_fields(self, functions: Functions, subtests: pytest.Subtests) -> None:
        for name, function in functions.items():
            with subtests.test(name):
                # ``key`` names results that are read, which plots do, and scores of a prediction or a network. ``save`` is scanpy's.
                reads = name.startswith("pl.") or name in {"tl.evaluate_perturbation", "tl.evaluate_gene_network"}
                other = OTHER_NAMES - ({"key"} if reads else set()) - ({"save"} if name.startswith("pl.") else set())
                assert parameters_of(function).keys() & other == set()

    def test_shared_parameters_have_one_default(self, functions: Functions, subtests: pytest.Subtests) -> None:
        shared = {"copy": False, "key_added": None, "layer": None, "gene_symbols": None, "mod": "rna", "rng": 0}
        shared |= {"ax": None, "show": None, "save": None, "return_fig": False, "title": None}
        for name, function in functions.items():
            # The key of select_genes is a column of its own, which scripts read by name, as scanpy's highly_variable.
            # Files are read as they come, and have their counts where they have them.
            own = {"tl.select_genes": {"key_added": "selected"}, "tl.pretrain": {"layer": "auto"}}
            defaults = {**shared, **own.get(name, {})}
            with subtests.test(name):
                found = {name: p.default for name, p in parameters_of(function).items() if name in defaults}
                assert found == {name: defaults[name] for name in found}

    def test_copy_returns_or_changes_in_place(self, functions: Functions, subtests: pytest.Subtests) -> None:
        copying = {name: function for name, function in functions.items() if "copy" in parameters_of(function)}
        assert copying
        for name, function in copying.items():
            with subtests.test(name):
                assert str(inspect.signature(function).return_annotation).endswith("| None")
                assert "copy=True" in sections(function)["Returns"]

    def test_docstring_has_all_parts(self, functions: Functions, subtests: pytest.Subtests) -> None:
        for name, function in functions.items():
            with subtests.test(name):
                parts = sections(function)
                assert parts[""].strip().splitlines()[0].endswith(".")
                assert {"Parameters", "Returns", "Examples"} <= parts.keys()


def test_plots_draw_on_given_axes(subtests: pytest.Subtests) -> None:
    for name, function in functions_of("pl").items():
        with subtests.test(name):
            assert {"ax", "show", "save", "return_fig", "title"} <= parameters_of(function).keys()
            assert "Axes" in str(inspect.signature(function).return_annotation)


def test_tools_name_the_keys_they_write(subtests: pytest.Subtests) -> None:
    for name, function in functions_of("tl").items():
        if "sources" in parameters_of(function):  # files, to which nothing is written
            continue
        with subtests.test(name):
            returns = sections(function)["Returns"]
            assert "key_added" in parameters_of(function)
            assert re.search(r"adata\.(obs|obsm|var|varm|layers|uns)\['", returns), "which slots does it write?"


def test_docstrings_describe_every_parameter_and_leave_types_to_the_signature(subtests: pytest.Subtests) -> None:
    for name, function in {**functions_of(*ROOMS), **methods()}.items():
        with subtests.test(name):
            text = inspect.getdoc(function)
            assert text
            assert documented(function) == list(parameters_of(function))
            assert [name for name in documented(function) if " : " in name] == []
            assert re.findall(r"^ *\{\w+\}$", text, flags=re.MULTILINE) == [], "a placeholder is left"


def test_training_options_have_the_defaults_that_are_declared(subtests: pytest.Subtests) -> None:
    declared = {option.name: option for option in options_of(TrainConfig)}
    functions: Functions = {"tl.finetune": sg.tl.finetune, "tl.pretrain": sg.tl.pretrain, "train": SCGPT.train}
    of_tasks = {name for task in TASKS.values() for name in task.training}
    for name, function in functions.items():
        shown = {key: p.default for key, p in parameters_of(function).items() if key in TRAINING}
        own = {"batch_size"} if name == "tl.pretrain" else set()  # pre-training is one task
        for key in shown.keys() - own:
            with subtests.test(f"{name}: {key}"):
                left_open = key in of_tasks or key == "accelerator"
                assert shown[key] == (None if left_open else declared[key].default)
    assert set(TRAINING) <= parameters_of(sg.tl.finetune).keys() & parameters_of(SCGPT.train).keys()
    text = sections(sg.tl.finetune)["Parameters"]
    assert "Default: 64 for ``task='perturbation'``, 32 for others." in text


@pytest.mark.parametrize("name", USER_NAMES)
def test_names_for_users_have_an_example_and_refer_to_others(name: str) -> None:
    member = attrgetter(name)(sg)
    assert re.search(r"^>>> .*\bsg\.", sections(member)["Examples"], flags=re.MULTILINE)
    others = related(member)
    assert others
    assert name not in others
    assert len(others) == len([line for line in sections(member)["See Also"].splitlines() if line])
    assert [other for other in others if not callable(attrgetter(other)(sg))] == []


def test_every_public_name_has_documentation(subtests: pytest.Subtests) -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in API_PAGES.glob("*.md"))
    for room in ROOMS:
        with subtests.test(room):
            module = getattr(sg, room)
            assert module.__doc__
            assert [name for name in module.__all__ if not getattr(module, name).__doc__] == []
            assert [name for name in module.__all__ if not re.search(rf"\b{room}\.{name}\b", pages)] == []
