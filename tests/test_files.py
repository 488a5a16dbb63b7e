import hashlib
import os
from pathlib import Path

import pytest

from scgalore._files import file_digest, whole_file


def test_hash_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"", b"one", b"two"):
        path.write_bytes(content)
        assert file_digest(path) == hashlib.sha256(content).hexdigest()
        assert file_digest(path, "md5") == hashlib.md5(content).hexdigest()


def test_replaced_file_of_the_same_age_and_size_is_read_again(tmp_path: Path) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_bytes(b"one")
    first = file_digest(path)
    other.write_bytes(b"two")
    times = path.stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)
    assert file_digest(path) != first


def test_file_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.h5ad"
    with whole_file(target) as draft:
        draft.write_text("half")
        assert not target.exists()
        assert draft.suffix == ".h5ad"
        draft.write_text("whole")
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def fail_halfway(target: Path, error: BaseException) -> None:
    with whole_file(target) as draft:
        draft.write_text("half")
        raise error


def test_failure_leaves_no_file_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fail_halfway(tmp_path / "new" / "file", KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []


def test_failure_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError):
        fail_halfway(target, ZeroDivisionError())
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
