import hashlib
import os
from pathlib import Path

from scgalore.weights.digest import file_sha256


def test_hash_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"", b"one", b"two"):
        path.write_bytes(content)
        assert file_sha256(path) == hashlib.sha256(content).hexdigest()


def test_replaced_file_of_the_same_age_and_size_is_read_again(tmp_path: Path) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_bytes(b"one")
    first = file_sha256(path)
    other.write_bytes(b"two")
    times = path.stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)
    assert file_sha256(path) != first
