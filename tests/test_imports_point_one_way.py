"""The import graph of the package, read from the source: rooms know those below them and none above, files form no circle."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from tests.import_graph import circles, import_graph, statements_in

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "src" / "scgalore"

# What each room may import, besides itself. Anyone may use the package's underscore modules and its own names, such as
# __version__, which "__init__" stands for.
BASE = {path.stem for path in PACKAGE.glob("_*.py")} - {"__main__"} | {"errors"}
WORKSHOP = BASE | {"adapters", "data", "genes", "integration", "networks", "nn", "objectives", "optim"}
WORKSHOP |= {"perturb", "weights"}
ALLOWED = {
    "genes": BASE,
    "weights": BASE,
    "optim": BASE,
    "data": BASE | {"genes", "weights"},
    "nn": BASE | {"data", "objectives"},
    "adapters": BASE | {"nn", "optim"},
    "objectives": BASE | {"data", "nn", "optim"},
    "perturb": BASE | {"data", "genes"},
    "integration": BASE | {"data"},
    "networks": BASE,
    "datasets": BASE | {"data", "genes", "perturb"},
    "pp": BASE | {"data", "genes", "perturb"},
    "get": BASE | {"data", "genes", "perturb"},
    "train": WORKSHOP,
    "selection": BASE | {"data", "genes", "perturb"},
    "pl": BASE | {"data", "perturb"},
    "tasks": WORKSHOP | {"train", "pl", "pp", "selection"},
    "model": WORKSHOP | {"train", "tasks"},
    "mapping": BASE | {"tasks"},
    "tl": WORKSHOP | {"train", "selection", "tasks", "model", "mapping"},
    "pipeline": WORKSHOP | {"train", "selection", "tasks", "model", "pp", "tl", "pl"},
    "demo": WORKSHOP | {"train", "tasks", "model", "tl", "pl", "pipeline"},
    "cli": WORKSHOP | {"train", "tasks", "model", "tl", "pl", "demo", "pipeline"},
    "__main__": {"cli"},
    **dict.fromkeys(BASE, BASE),
}
SCVI_FILES = {"nn/adapter.py", "train/plan.py", "train/runner.py"}


@cache
def modules() -> tuple[str, ...]:
    return tuple(sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")))


def room_of(module: str) -> str:
    return module.partition("/")[0].removesuffix(".py")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported(node: ast.AST, *, typing: bool) -> Iterator[str]:
    """Dotted names imported anywhere below a node; with ``typing`` also those that only type checkers see."""
    for child in statements_in(node):
        if is_type_checking(child) and not typing:
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module or '.'}.{alias.name}" for alias in child.names)
        else:
            yield from imported(child, typing=typing)


@cache
def imports_of(module: str, *, typing: bool = False) -> set[str]:
    return set(imported(ast.parse((PACKAGE / module).read_text(encoding="utf-8")), typing=typing))


def packages_of(module: str, *, typing: bool = False) -> set[str]:
    return {name.split(".")[0] for name in imports_of(module, typing=typing)}


@cache
def rooms_of(module: str) -> set[str]:
    rooms = {room_of(other) for other in modules()}
    parts = [name.split(".") for name in imports_of(module) if name.split(".")[0] == "scgalore"]
    return {part[1] if part[1:] and part[1] in rooms else "__init__" for part in parts}


def test_every_room_has_a_rule() -> None:
    assert {room_of(module) for module in modules()} <= ALLOWED.keys(), "say in ALLOWED what the new room may import"


def test_rooms_import_only_rooms_below() -> None:
    wrong = {m: rooms_of(m) - ALLOWED[room_of(m)] - {room_of(m)} for m in modules()}
    assert {module: rooms for module, rooms in wrong.items() if rooms} == {}


def test_rooms_form_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for module in modules():
        graph.setdefault(room_of(module), set()).update(rooms_of(module) - {room_of(module)})
    while graph:
        free = [room for room, needs in graph.items() if not needs & graph.keys()]
        assert free, f"these rooms import each other: {graph}"
        for room in free:
            del graph[room]


@pytest.mark.parametrize("folder", [PACKAGE, REPOSITORY / "benchmarks"], ids=lambda folder: folder.name)
def test_files_form_no_circle(folder: Path) -> None:
    # Imports for type checking and inside functions count: a circle of them shows two files that are one idea, or a type
    # in the wrong file.
    assert circles(import_graph(folder)) == []


FILES = {
    "__init__": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p import a\n"
    "__all__ = ['a', '__version__']\n__version__ = '1'",
    "a/__init__": "from p.a.one import One\nfrom p.a.helper import helper\n__all__ = ['One']\nown = helper()",
    "a/one": "from p import __version__",
    "a/helper": "",
}


@pytest.mark.parametrize(
    ("two", "imports", "in_circle"),
    [
        ("from p.a import One", {"p.a.one"}, False),  # what the own package passes on, from where it is defined
        ("from p.a import own", {"p.a.__init__"}, False),  # what the package makes itself, with what that takes
        ("def f():\n    from p.a.one import One as Other", {"p.a.one"}, False),
        ("from p import a", {"p.a"}, False),  # all that the package passes on
        ("import torch, p.a.one", {"p.a.one"}, False),
        ("if TYPE_CHECKING:\n    from p.a.three import Three", {"p.a.three"}, True),
    ],
)
def test_an_import_leads_to_the_file_that_defines_the_name(
    tmp_path: Path, two: str, imports: set[str], in_circle: bool
) -> None:
    for name, text in {**FILES, "a/two": two, "a/three": "def f():\n    import p.a.two"}.items():
        path = tmp_path / "p" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    graph = import_graph(tmp_path / "p")
    assert graph["p.a.two"] == imports
    assert graph["p.a.one"] == {"p.__init__"}
    assert graph["p.a.__init__"] == {"p.a.helper"}
    assert circles(graph) == ([["p.a.three", "p.a.two"]] if in_circle else [])


def test_scvi_is_imported_in_three_files() -> None:
    assert {module for module in modules() if "scvi" in packages_of(module)} <= SCVI_FILES


def test_lightning_is_imported_where_training_happens() -> None:
    users = {module for module in modules() if "lightning" in packages_of(module)}
    assert {room_of(module) for module in users - SCVI_FILES} <= {"train"}
    # Both are installed, and callbacks of one are not recognised by the other.
    assert {module for module in modules() if "pytorch_lightning" in packages_of(module, typing=True)} == set()


def test_networks_adapters_and_optimizers_are_plain_torch() -> None:
    plain = [
        module for module in modules() if room_of(module) in {"adapters", "nn", "optim"} and module != "nn/adapter.py"
    ]
    foreign = {"anndata", "lightning", "mudata", "pandas", "scanpy", "scvi"}
    assert {module for module in plain if packages_of(module, typing=True) & foreign} == set()


def test_imports_are_absolute() -> None:
    assert {module for module in modules() if "" in packages_of(module, typing=True)} == set()
