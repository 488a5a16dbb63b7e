"""What the metadata promise must be what the code needs."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest

import scgalore as sg

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def name_of(requirement: str) -> str:
    """Normalised distribution name of a requirement or of a line of constraints.txt."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]).lower()


# Those of the extras are imported where an extra is asked for.
REQUIREMENTS: list[str] = [
    *PROJECT["project"]["dependencies"],
    *chain(*PROJECT["project"]["optional-dependencies"].values()),
]


def constrained() -> set[str]:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {name_of(line) for line in lines if line and not line.startswith("#")}


def test_every_import_is_a_declared_dependency() -> None:
    declared = {name_of(requirement) for requirement in REQUIREMENTS}
    distributions = packages_distributions()
    missing: dict[str, str] = {}
    for path in (REPOSITORY / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for package in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"scgalore"}:
                if not declared & {name_of(distribution) for distribution in distributions.get(package, [package])}:
                    missing[package] = path.name
    assert missing == {}


def test_bounds_are_lower_bounds() -> None:
    assert [requirement for requirement in REQUIREMENTS if not re.fullmatch(r"[\w-]+>=[\d.]+", requirement)] == []


def test_constraints_cover_what_is_installed_and_nothing_local() -> None:
    groups = [entry for group in PROJECT["dependency-groups"].values() for entry in group if isinstance(entry, str)]
    wanted = {name_of(requirement) for requirement in REQUIREMENTS + groups}
    assert wanted - constrained() == set()
    text = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    pins = [line for line in text.splitlines() if not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []


def test_version_is_written_once() -> None:
    assert sg.__version__ == PROJECT["project"]["version"]
    assert f"version: {sg.__version__}" in (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["py.typed", "weights/registry.toml", "datasets/registry.toml"])
def test_data_files_lie_in_the_package(name: str) -> None:
    assert (Path(sg.__file__).parent / name).is_file()


def test_readme_commands_use_the_tested_versions() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^```bash\n(.+?)\n```$", text, flags=re.MULTILINE | re.DOTALL)
    assert [("-m scgalore demo" in c, "-m pytest" in c) for c in commands] == [(True, False), (False, True)]
    assert all("-c constraints.txt" in command for command in commands)
