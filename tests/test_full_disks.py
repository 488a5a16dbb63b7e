"""A disk that takes no more: an error of ours, what was there stays, and nothing is left behind."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.weights.test_save import TENSORS, VOCAB

from scgalore import _folders
from scgalore._files import whole_file
from scgalore._folders import recover_folder, writing
from scgalore.errors import DiskError, OptionError
from scgalore.weights import export_scgpt, read_scgpt, write_checkpoint


def fail_halfway(target: Path, error: OSError) -> None:
    with whole_file(target) as draft:
        draft.write_text("half")
        raise error


FINITE = {name: tensor for name, tensor in TENSORS.items() if not name.endswith("enc_norm.bias")}


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("full")
    script = [sys.executable, str(Path(__file__).with_name("full_disks.py")), str(folder)]
    found: dict[str, Any] = json.loads(
        subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    )
    found["left"] = sorted(path.name for path in folder.iterdir())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("what", ["save", "overwrite", "export", "adapter", "checkpoint", "file", "reference"])
def test_everything_stays_as_it_was(attempts: dict[str, Any], what: str) -> None:
    error, message, unchanged = attempts[what]
    assert error == "DiskError"
    assert "could not be written" in message
    assert "bytes free" in message
    assert unchanged


@pytest.mark.slow
def test_nothing_is_left_behind_and_no_model_has_changed(attempts: dict[str, Any]) -> None:
    assert set(attempts["left"]) <= {"adapter", "old", "theirs", "run"}
    assert attempts["same weights"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_what_the_system_says(tmp_path: Path, code: int) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(DiskError, match=os.strerror(code)):
        fail_halfway(tmp_path / "file", OSError(code, os.strerror(code)))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "old"}


def test_it_is_caught_as_an_option_and_as_the_system_s() -> None:
    assert issubclass(DiskError, OptionError)
    assert issubclass(DiskError, OSError)


def test_other_errors_are_not_ours(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing(tmp_path / "x"):
        (tmp_path / "none").read_text()
    with pytest.raises(RuntimeError, match="of the program"), writing(tmp_path / "x"):
        raise RuntimeError("of the program")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_is_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OptionError, match="Cannot create the folder"):
        write_checkpoint(tmp_path / "a", config={}, vocab=VOCAB, tensors=FINITE)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where nobody can write")
def test_place_where_nobody_can_write() -> None:
    with pytest.raises(OptionError, match="Cannot create the folder"):
        export_scgpt("/proc/none/model", args={}, vocab=VOCAB, tensors=FINITE)


# Killed between the two renames --------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from scgalore.weights import write_checkpoint

rename, content = Path.rename, dict(vocab={"<pad>": 0}, tensors={"w": torch.zeros(3)}, overwrite=True)

def write(folder, at):
    calls = []
    def dying(self, target):
        calls.append(target)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)
    Path.rename = dying
    write_checkpoint(folder, config={"new": 1}, **content)
    os._exit(0)

for at, folder in enumerate(sys.argv[1:], start=1):
    write_checkpoint(folder, config={"old": 1}, **content)
    child = os.fork()
    if child == 0:
        write(folder, at)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_killed_overwriting_loses_nothing(tmp_path: Path) -> None:
    """Killed at its first rename, at its second, and never."""
    folders = [tmp_path / "first", tmp_path / "second", tmp_path / "never"]
    script = [sys.executable, "-c", KILLED, *map(str, folders)]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(-signal.SIGKILL), str(-signal.SIGKILL), "0"]
    assert [folder.exists() for folder in folders] == [True, False, True]
    # The new one was whole when the old one went.
    assert [read_scgpt(folder).args for folder in folders] == [{"old": 1}, {"new": 1}, {"new": 1}]
    assert all(folder.is_dir() for folder in folders)


class TestRecovery:
    def between(self, folder: Path, *, draft: bool = True) -> Path:
        """What is there between the two renames."""
        for age, state in (("old", "old"), ("new", "draft")) if draft else (("old", "old"),):
            write_checkpoint(folder.with_name(age), config={age: 1}, vocab=VOCAB, tensors=FINITE)
            folder.with_name(age).rename(folder.with_name(f".{folder.name}.0123abcd.{state}"))
        return folder

    @pytest.mark.parametrize("name", ["model", "my model [1]*", "model.v2", "ünï", ".hidden"])
    @pytest.mark.parametrize("draft", [True, False])
    def test_folder_is_found_again(self, tmp_path: Path, name: str, draft: bool) -> None:
        folder = self.between(tmp_path / name, draft=draft)
        assert read_scgpt(folder).args == ({"new": 1} if draft else {"old": 1})
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_by_a_name_that_leads_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = self.between(tmp_path / "model")
        (tmp_path / "link").symlink_to(folder)
        monkeypatch.chdir(tmp_path)
        assert read_scgpt("link").args == {"new": 1}

    def test_saving_again_finds_it_too(self, tmp_path: Path) -> None:
        folder = self.between(tmp_path / "model")
        with pytest.raises(OptionError, match="overwrite=True"):
            write_checkpoint(folder, config={}, vocab=VOCAB, tensors=FINITE)
        write_checkpoint(folder, config={"third": 1}, vocab=VOCAB, tensors=FINITE, overwrite=True)
        assert read_scgpt(folder).args == {"third": 1}
        assert [path.name for path in tmp_path.iterdir()] == ["model"]

    def test_old_one_that_was_left_is_removed(self, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        self.between(folder, draft=False)
        write_checkpoint(tmp_path / "other", config={"new": 1}, vocab=VOCAB, tensors=FINITE)
        (tmp_path / "other").rename(folder)
        assert read_scgpt(folder).args == {"new": 1}
        write_checkpoint(folder, config={"third": 1}, vocab=VOCAB, tensors=FINITE, overwrite=True)
        assert [path.name for path in tmp_path.iterdir()] == ["model"]

    def test_other_folders_are_left_alone(self, tmp_path: Path) -> None:
        names = [".model2.0123abcd.old", ".model.0123abcd.draft", ".model.xyz.old", "model.0123abcd.old"]
        for name in names:
            (tmp_path / name).mkdir()
        recover_folder(tmp_path / "model")
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)

    def test_links_in_a_circle(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to(tmp_path / "a")
        _folders.recover_folder(tmp_path / "a")
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
