from pathlib import Path

import pytest

from scgalore._folders import FolderKind, no_empty_folders, whole_folder
from scgalore.errors import OptionError

CHECKPOINT = FolderKind("a checkpoint", is_one=lambda names: "model.safetensors" in names)


def save(folder: Path, content: str, *, overwrite: bool = False, fail: bool = False) -> None:
    with whole_folder(folder, CHECKPOINT, overwrite=overwrite) as draft:
        (draft / "model.safetensors").write_text(content)
        if fail:
            raise KeyboardInterrupt


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_appears_with_its_parents(tmp_path: Path) -> None:
    save(tmp_path / "a" / "b", "new")
    assert tree(tmp_path) == {"a/b/model.safetensors": "new"}


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "a" / "b", "new", fail=True)
    assert list(tmp_path.iterdir()) == []


def test_failure_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    save(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "a", "new", overwrite=True, fail=True)
    assert tree(tmp_path) == {"a/model.safetensors": "old"}


def test_failing_last_step_brings_the_old_checkpoint_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a", "old")
    rename = Path.rename

    def fail_for_drafts(self: Path, target: Path) -> Path:
        if self.suffix == ".draft":
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_drafts)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path / "a", "new", overwrite=True)
    assert tree(tmp_path) == {"a/model.safetensors": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_overwrite_replaces_the_whole_folder(tmp_path: Path) -> None:
    save(tmp_path / "a", "old")
    (tmp_path / "a" / "history.csv").write_text("of the old one")
    save(tmp_path / "a", "new", overwrite=True)
    assert tree(tmp_path) == {"a/model.safetensors": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_link_keeps_pointing_to_the_replaced_folder(tmp_path: Path) -> None:
    save(tmp_path / "a", "old")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    save(tmp_path / "link", "new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a" / "model.safetensors").read_text() == "new"


def test_empty_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    save(tmp_path / "a", "new")
    assert tree(tmp_path) == {"a/model.safetensors": "new"}


def test_taken_paths_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a", "old")
    with pytest.raises(OptionError, match="overwrite=True"):
        save(tmp_path / "a", "new")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.md").write_text("years")
    with pytest.raises(OptionError, match="not a checkpoint"):
        save(tmp_path / "thesis", "new", overwrite=True)
    with pytest.raises(OptionError, match="is a file"):
        save(tmp_path / "thesis" / "chapter.md", "new", overwrite=True)
    assert tree(tmp_path) == {"a/model.safetensors": "old", "thesis/chapter.md": "years"}


def interrupt_on_the_way_to(folder: Path, *, after: str | None = None) -> None:
    with no_empty_folders(folder):
        folder.mkdir(parents=True)
        if after is not None:
            (folder.parent / after).touch()
        raise KeyboardInterrupt


def test_only_folders_that_were_absent_are_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyboardInterrupt):
        interrupt_on_the_way_to(tmp_path / "mine" / "a" / "b")
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_folders_with_content_stay(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt_on_the_way_to(tmp_path / "a" / "b", after="file")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "file"]


def test_folder_made_by_another_run_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OptionError, match="already"), whole_folder(out, CHECKPOINT, overwrite=False):
        save(out, "other")
    assert tree(tmp_path) == {"out/model.safetensors": "other"}


def test_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="Cannot create the folder"):
        save(tmp_path / "file" / "out", "new")
