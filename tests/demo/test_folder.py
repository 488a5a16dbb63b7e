from pathlib import Path

import pytest

from scgalore._folders import whole_folder
from scgalore.demo.folder import DEMO
from scgalore.errors import OptionError


def make(out: Path, text: str, *, force: bool = False) -> None:
    with whole_folder(out, DEMO, overwrite=force) as draft:
        (draft / "report.md").write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_earlier_demo_is_replaced_by_force_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, "old")
    with pytest.raises(OptionError, match=r"a demo already.*--force"):
        make(out, "new")
    assert content(out) == {"report.md": "old"}
    make(out, "new", force=True)
    assert content(out) == {"report.md": "new"}


def test_foreign_files_are_never_lost(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(OptionError, match=r"thesis\.tex"):
        make(tmp_path, "new", force=True)
    assert content(tmp_path) == {"thesis.tex": "years"}
