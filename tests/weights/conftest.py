"""The original program's tiny checkpoint, in folders that a test may change."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

FIXTURE = Path(__file__).parents[1] / "data" / "scgpt" / "model"


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint folder in upstream's layout whose weights are one of the fixture's files."""

    def make(weights: str | None = "best_model.pt", *, name: str = "model") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file in ("args.json", "vocab.json"):
            shutil.copyfile(FIXTURE / file, folder / file)
        if weights is not None:
            shutil.copyfile(FIXTURE / weights, folder / "best_model.pt")
        return folder

    return make
