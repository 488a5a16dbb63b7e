from pathlib import Path

import pytest

from scgalore.errors import OptionError
from scgalore.pipeline import RunConfig
from scgalore.pipeline.folder import FILES, RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A finished run."""
    folder = RunFolder(tmp_path / "runs" / "x")
    folder.begin(RunConfig("a.h5ad", folder.path))
    for name in FILES[1:]:
        (folder.path / name).touch()
    for name in (
        "figures/history.png",
        "figures/of_some_task.png",
        "checkpoints/last.ckpt",
        "checkpoints/model/config.json",
    ):
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).touch()
    return folder


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_configuration_is_written_first_and_read_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "new" / "x")
    config = RunConfig("a.h5ad", folder.path, rng=3)
    folder.begin(config)
    assert [path.name for path in folder.path.iterdir()] == ["config.json"]
    assert folder.config() == config
    assert (folder.is_begun, folder.is_finished) == (True, False)


def test_a_run_is_replaced_or_continued_only_when_asked_for(folder: RunFolder) -> None:
    before = snapshot(folder.path)
    with pytest.raises(OptionError, match=r"already contains a finished run.*--resume.*--force"):
        folder.check(force=False, resume=False)
    (folder.path / "report.md").unlink()
    with pytest.raises(OptionError, match="an unfinished run"):
        folder.check(force=False, resume=False)
    folder.check(force=True, resume=False)
    folder.check(force=False, resume=True)
    with pytest.raises(OptionError, match="Pass only one of them"):
        folder.check(force=True, resume=True)
    before.pop("report.md")
    assert snapshot(folder.path) == before


@pytest.mark.parametrize(
    "foreign",
    [
        "thesis.tex",
        "figures/for_the_paper.svg",
        "figures/deep/history.png",
        "checkpoints/other.ckpt",
        "notes/history.csv",
        "report.md.bak",
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_folders_with_anything_else_are_never_touched(folder: RunFolder, foreign: str, force: bool) -> None:
    path = folder.path / foreign
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("months of work", encoding="utf-8")
    before = snapshot(folder.path)
    with pytest.raises(OptionError, match="files that were not written by a run"):
        folder.check(force=force, resume=not force)
    assert snapshot(folder.path) == before


def test_a_model_of_another_program_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Bert"]}', encoding="utf-8")
    with pytest.raises(OptionError, match=r"'config\.json'"):
        RunFolder(tmp_path).check(force=True, resume=False)
    (tmp_path / "config.json").unlink()
    (tmp_path / "split.csv").touch()
    with pytest.raises(OptionError, match=r"'split\.csv'"):
        RunFolder(tmp_path).check(force=True, resume=False)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(OptionError, match="is a file"):
        RunFolder(tmp_path / "x").check(force=True, resume=False)


def test_what_a_killed_run_left_behind_is_ours_and_goes(folder: RunFolder) -> None:
    left = (".report.0a1b2c3d.draft.md", "figures/.umap.0a1b2c3d.draft.png", "checkpoints/.last.ckpt.part")
    for name in left:
        (folder.path / name).touch()
    draft = folder.path / "checkpoints" / ".model.0a1b2c3d.draft"
    draft.mkdir()
    (draft / "model.safetensors").touch()
    folder.check(force=False, resume=True)
    folder.remove_drafts()
    assert not any((folder.path / name).exists() for name in left)
    assert not draft.exists()
    assert not folder.model.exists(), "training saves it again"
    assert (folder.path / "checkpoints" / "last.ckpt").exists()


def test_beginning_anew_leaves_nothing_of_the_old_run(folder: RunFolder) -> None:
    folder.begin(RunConfig("b.h5ad", folder.path))
    assert list(snapshot(folder.path)) == ["config.json"]
    assert Path(folder.config().data).name == "b.h5ad"
    assert [path.name for path in folder.path.parent.iterdir()] == ["x"]


def test_an_empty_folder_may_be_used_and_a_run_can_be_removed(tmp_path: Path, folder: RunFolder) -> None:
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty").check(force=False, resume=False)
    folder.remove()
    assert not folder.path.exists()


def test_a_run_that_cannot_be_replaced_stays(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(folder.path)
    monkeypatch.setattr(RunConfig, "to_json", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        folder.begin(RunConfig("b.h5ad", folder.path))
    assert snapshot(folder.path) == before
    assert [path.name for path in folder.path.parent.iterdir()] == [folder.path.name]
