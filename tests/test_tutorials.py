"""The notebooks as they are read, and that they still run."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import scgalore as sg

TUTORIALS = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))

MACHINE = re.compile(
    r"(?<![\w.:/])/(?:work|tmp|root|home|Users|usr|opt|var|mnt|data|private)\b|\b[A-Z]:\\|site-packages"
)
COLUMNS = 88
"""Of code, as the pages of the documentation show it without a scroll bar."""

NOISE = re.compile(r"\r|\b\w*Warning\b|\bit/s\b|\d%\||\bFailed to load\b")

Cell = dict[str, Any]


def code_cells(notebook: dict[str, Any]) -> list[Cell]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def texts(notebook: dict[str, Any]) -> Iterator[str]:
    """All that can be read in a notebook: prose, code and outputs, without the bytes of pictures."""
    for cell in notebook["cells"]:
        yield "".join(cell["source"])
        for output in cell.get("outputs", []):
            yield "".join(output.get("text", ""))
            for kind, content in output.get("data", {}).items():
                if not kind.startswith("image/"):
                    yield "".join(content)


def kinds(notebook: dict[str, Any]) -> list[list[list[str]]]:
    """Formats of what each cell shows, beyond what it prints."""
    return [[sorted(output["data"]) for output in cell["outputs"] if "data" in output] for cell in code_cells(notebook)]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def notebook(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_there_are_tutorials() -> None:
    assert {path.stem for path in NOTEBOOKS} >= {
        "checkpoints",
        "command_line",
        "embedding",
        "finetune",
        "genes_and_memory",
        "own_data",
        "perturbation",
        "pretraining",
    }


def test_was_executed_from_first_to_last_cell(notebook: dict[str, Any]) -> None:
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]


def test_shows_neither_the_machine_nor_noise(notebook: dict[str, Any]) -> None:
    assert [found[0] for text in texts(notebook) for found in MACHINE.finditer(text)] == []
    printed = ["".join(output.get("text", "")) for cell in code_cells(notebook) for output in cell["outputs"]]
    assert [found[0] for text in printed for found in NOISE.finditer(text)] == []


def test_begins_with_its_goal_and_ends_with_next_steps(notebook: dict[str, Any]) -> None:
    pages = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    assert re.match(r"# .+\n\n[A-Z].+\.(\n|$)", pages[0])
    assert re.search(r"^## Next steps\n\n(- \[|- )", pages[-1], flags=re.MULTILINE)


def test_code_fits_the_page(notebook: dict[str, Any]) -> None:
    lines = [line for cell in code_cells(notebook) for line in "".join(cell["source"]).splitlines()]
    assert [line for line in lines if len(line) > COLUMNS] == []


def test_names_no_earlier_version(notebook: dict[str, Any]) -> None:
    found = [found[0] for text in texts(notebook) for found in re.finditer(r"version\W+\d+\.\d+\.\d+", text)]
    assert found == []


def test_is_small_enough_for_the_repository(path: Path) -> None:
    assert path.stat().st_size < 500_000


@pytest.mark.slow
def test_runs_and_shows_the_same_kinds_of_things(path: Path, notebook: dict[str, Any]) -> None:
    for package in ("nbclient", "ipykernel"):
        pytest.importorskip(package, reason="notebooks are run with nbclient and ipykernel, of the group test")
    from scripts.execute_tutorials import execute

    if path.stem == "perturbation":
        try:
            sg.datasets.fetch_dataset("perturbench_devel")
        except sg.errors.DownloadError as error:
            pytest.skip(f"the data are not here: {error}")
    assert kinds(execute(path)) == kinds(notebook)
