from pathlib import Path

import pytest

from scgalore.demo.folder import demo_folder
from scgalore.errors import OptionError


def make(out: Path, text: str, *, force: bool = False) -> None:
    with demo_folder(out, force=force) as draft:
        (draft / "report.md").write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_files_appear_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with demo_folder(out, force=False) as draft:
        (draft / "report.md").write_text("new")
        assert not out.exists()
    assert content(out) == {"report.md": "new"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def interrupted(out: Path, *, force: bool = False) -> None:
    with demo_folder(out, force=force) as draft:
        (draft / "report.md").write_text("half")
        raise KeyboardInterrupt


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []


def test_earlier_demo_is_replaced_by_force_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, "old")
    with pytest.raises(OptionError, match=r"earlier demo.*--force"):
        make(out, "new")
    assert content(out) == {"report.md": "old"}
    make(out, "new", force=True)
    assert content(out) == {"report.md": "new"}
    assert list(tmp_path.iterdir()) == [out]


def test_forced_run_that_fails_keeps_the_earlier_demo(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, "old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(out, force=True)
    assert content(out) == {"report.md": "old"}
    assert list(tmp_path.iterdir()) == [out]


def test_foreign_files_are_never_lost(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(OptionError, match=r"thesis\.tex"):
        make(tmp_path, "new", force=True)
    assert content(tmp_path) == {"thesis.tex": "years"}


def test_folder_made_by_another_run_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OptionError, match="earlier demo"), demo_folder(out, force=False):
        make(out, "other")
    assert content(out) == {"report.md": "other"}
    assert list(tmp_path.iterdir()) == [out]


def test_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    make(tmp_path / "out", "new")
    assert content(tmp_path / "out") == {"report.md": "new"}


@pytest.mark.parametrize(("out", "match"), [("file", "is a file"), ("file/out", "Cannot make the folder")])
def test_impossible_folder_is_named(tmp_path: Path, out: str, match: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=match):
        make(tmp_path / out, "new")
