"""Free memory, and memory that the allocator does not reuse."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["cgroup_room", "free_memory", "held_back", "memory_now"]

_UNLIMITED = 2**60
"""Limits from here on stand for none: version 1 writes the largest multiple of a page."""


# glibc does not use freed aligned blocks again for blocks of the same size (its bug 14581), unless they were so large
# that they were given back: shares of a step's tensors that stay, in float32 and half precision, measured with glibc
# 2.36 over lengths from 500 to 5,000.
_LARGEST_HELD = 2**25
_HELD = {False: 0.77, True: 0.42}


def free_memory(device: torch.device) -> int:
    """Free memory of a device in bytes.

    Parameters
    ----------
    device
        For CUDA devices, as reported by the driver; otherwise, the available system memory, limited by the control
        group (of a container or a batch system).
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    room = cgroup_room()
    available = int(psutil.virtual_memory().available)
    return available if room is None else min(available, room)


def memory_now(device: torch.device) -> int:
    """Memory of this process in bytes: on a CUDA device the peak so far, otherwise resident memory.

    Parameters
    ----------
    device
        Device of the network.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def cgroup_room(mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes up to the tightest memory limit of this process's control groups, of version 1 or 2.

    Page cache that the kernel can drop counts as free.

    Parameters
    ----------
    mount
        Mount point of the control groups.
    own
        File with the control groups of this process.

    Returns
    -------
    ``None`` where there is no limit.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    rooms: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            rooms += _rooms(mount, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            rooms += _rooms(mount / "memory", path, *names)
    return min(rooms, default=None)


def _rooms(root: Path, path: str, limit_file: str, usage_file: str, cache_field: str) -> Iterator[int]:
    folder = root / path.strip("/")
    # Inside a container the path is that of the host, and the own group is mounted as the root.
    while folder != root.parent:
        limit, usage = _number(folder / limit_file), _number(folder / usage_file)
        if limit is not None and usage is not None and limit < _UNLIMITED:
            yield max(0, limit - usage + _field(folder / "memory.stat", cache_field))
        folder = folder.parent


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # ValueError: the word "max"
        return None


def _field(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)


def held_back(saved: Iterable[int], *, half: bool) -> int:
    """Bytes of freed tensors that the allocator of a CPU does not use again.

    Parameters
    ----------
    saved
        Bytes of each tensor that is kept for a backward pass.
    half
        Whether products are in half precision.
    """
    if not _keeps_freed_blocks():
        return 0
    return int(_HELD[half] * sum(size for size in saved if size < _LARGEST_HELD))


def _keeps_freed_blocks() -> bool:
    """Whether memory of the CPU is glibc's with its own settings."""
    other = any(name in os.environ.get("LD_PRELOAD", "") for name in ("jemalloc", "tcmalloc", "mimalloc"))
    return platform.libc_ver()[0] == "glibc" and "MALLOC_MMAP_THRESHOLD_" not in os.environ and not other
