import os
from pathlib import Path

import pytest
import torch

from scgalore.errors import OptionError, WeightsError
from scgalore.train.checkpoint import (
    CHECKPOINT_KEY,
    WholeFiles,
    checkpoint_callback,
    checkpoint_to_resume,
    last_checkpoint,
    read_checkpoint,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    WholeFiles().save_checkpoint(
        {CHECKPOINT_KEY: {"lr": 1, "seed": 0}, "x": torch.arange(4)}, last_checkpoint(tmp_path)
    )
    return tmp_path


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


class TestWholeFiles:
    def test_round_trip_makes_folders(self, tmp_path: Path) -> None:
        path = tmp_path / "a" / "b" / "last.ckpt"
        WholeFiles().save_checkpoint({CHECKPOINT_KEY: {}, "x": torch.ones(2)}, path)
        assert WholeFiles().load_checkpoint(path)["x"].tolist() == [1, 1]
        assert [found.name for found in path.parent.iterdir()] == ["last.ckpt"]

    def test_failure_keeps_the_last_checkpoint(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(content: object, path: Path) -> None:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", broken)
        with pytest.raises(OSError, match="No space left"):
            WholeFiles().save_checkpoint({}, last_checkpoint(folder))
        assert [found.name for found in folder.iterdir()] == ["last.ckpt"]
        assert read_checkpoint(last_checkpoint(folder))["x"].tolist() == [0, 1, 2, 3]

    def test_code_is_not_run(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        torch.save({CHECKPOINT_KEY: {}, "x": Code()}, last_checkpoint(folder))
        with pytest.raises(WeightsError, match=r"last\.ckpt is damaged"):
            WholeFiles().load_checkpoint(last_checkpoint(folder), weights_only=False)
        assert not (folder / "ran").exists()


class TestToResume:
    def test_path_of_the_same_run(self, folder: Path) -> None:
        assert checkpoint_to_resume(folder, resume=True, identity={"lr": 1, "seed": 0}) == last_checkpoint(folder)

    def test_nothing_to_resume(self, tmp_path: Path) -> None:
        assert checkpoint_to_resume(None, resume=False, identity={}) is None
        assert checkpoint_to_resume(tmp_path / "no", resume=True, identity={}) is None
        assert list(tmp_path.iterdir()) == []

    def test_differences_are_named(self, folder: Path) -> None:
        with pytest.raises(
            OptionError, match=r"belongs to another run: lr was 1, now 2; patience was None, now 3\. Use"
        ):
            checkpoint_to_resume(folder, resume=True, identity={"lr": 2, "seed": 0, "patience": 3})

    @pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 not really"])
    def test_damaged_file(self, folder: Path, content: bytes) -> None:
        last_checkpoint(folder).write_bytes(content)
        with pytest.raises(WeightsError, match="damaged"):
            checkpoint_to_resume(folder, resume=True, identity={})


def test_callback_writes_where_the_resumed_run_looks(tmp_path: Path) -> None:
    callback = checkpoint_callback(tmp_path)
    assert callback.dirpath is not None
    assert Path(callback.dirpath) / f"{callback.filename}{callback.FILE_EXTENSION}" == last_checkpoint(tmp_path)
