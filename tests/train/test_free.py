from pathlib import Path

import psutil
import pytest
import torch

from scgalore.train.free import cgroup_room, free_memory, held_back

GB = 10**9


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def own(folder: Path, text: str) -> Path:
    path = folder / "own"
    path.write_text(text)
    return path


class TestVersion2:
    def test_room_is_what_the_limit_leaves(self, tmp_path: Path) -> None:
        write(tmp_path / "job", memory__max=8 * GB, memory__current=3 * GB, memory__stat="anon 5\ninactive_file 0")
        assert cgroup_room(tmp_path, own(tmp_path, "0::/job\n")) == 5 * GB

    def test_page_cache_counts_as_free(self, tmp_path: Path) -> None:
        write(tmp_path / "job", memory__max=8 * GB, memory__current=3 * GB, memory__stat=f"inactive_file {2 * GB}")
        assert cgroup_room(tmp_path, own(tmp_path, "0::/job\n")) == 7 * GB

    def test_the_tightest_group_above_counts(self, tmp_path: Path) -> None:
        write(tmp_path / "user", memory__max=4 * GB, memory__current=3 * GB)
        write(tmp_path / "user" / "job", memory__max=8 * GB, memory__current=1 * GB)
        assert cgroup_room(tmp_path, own(tmp_path, "0::/user/job\n")) == 1 * GB

    def test_a_container_has_its_group_as_the_root(self, tmp_path: Path) -> None:
        write(tmp_path, memory__max=6 * GB, memory__current=GB)
        assert cgroup_room(tmp_path, own(tmp_path, "0::/host/path/that/is/not/here\n")) == 5 * GB

    def test_no_limit_is_no_room_to_speak_of(self, tmp_path: Path) -> None:
        write(tmp_path / "job", memory__max="max", memory__current=GB)
        assert cgroup_room(tmp_path, own(tmp_path, "0::/job\n")) is None

    def test_more_than_the_limit_leaves_nothing(self, tmp_path: Path) -> None:
        write(tmp_path / "job", memory__max=GB, memory__current=2 * GB)
        assert cgroup_room(tmp_path, own(tmp_path, "0::/job\n")) == 0


class TestVersion1:
    TEXT = "12:cpuset:/job\n5:memory:/slurm/job\n0::/\n"

    def test_room_is_what_the_limit_leaves(self, tmp_path: Path) -> None:
        folder = tmp_path / "memory" / "slurm" / "job"
        stat = f"inactive_file 7\ntotal_inactive_file {GB}"
        write(folder, memory__limit_in_bytes=8 * GB, memory__usage_in_bytes=3 * GB, memory__stat=stat)
        assert cgroup_room(tmp_path, own(tmp_path, self.TEXT)) == 6 * GB

    def test_its_word_for_no_limit_is_a_large_number(self, tmp_path: Path) -> None:
        folder = tmp_path / "memory" / "slurm" / "job"
        write(folder, memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=3 * GB)
        assert cgroup_room(tmp_path, own(tmp_path, self.TEXT)) is None


def test_systems_without_control_groups_have_no_limit(tmp_path: Path) -> None:
    assert cgroup_room(tmp_path, tmp_path / "missing") is None


def test_the_smaller_of_system_and_group_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    total = psutil.virtual_memory().total
    assert 0 < free_memory(torch.device("cpu")) <= total
    monkeypatch.setattr("scgalore.train.free.cgroup_room", lambda: 12345)
    assert free_memory(torch.device("cpu")) == 12345


def test_memory_held_back_depends_on_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    def held() -> int:
        return held_back((2**20, 2**26), half=False)

    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    assert 0 < held_back((2**20,), half=True) < held() < 2**20  # what is large is given back
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    assert held() == 0
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_")
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")
    assert held() == 0
    monkeypatch.delenv("LD_PRELOAD")
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert held() == 0
