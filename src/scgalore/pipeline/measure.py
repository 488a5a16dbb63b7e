"""Time, memory and circumstances of a run."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

from scgalore._world import current_world

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Stopwatch", "circumstances", "peak_memory", "versions"]

PACKAGES = ("scgalore", "torch", "scvi-tools", "scanpy", "anndata", "scikit-learn", "numpy")


class Stopwatch:
    """Seconds by part of the work.

    Attributes
    ----------
    seconds
        Sum of the times of each part, in the order in which they were first timed.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add the time that the block takes to a part."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started


def peak_memory() -> int | None:
    """Most bytes that this process has held in memory so far; ``None`` where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """What the numbers depend on: Python, the machine's kind and the packages that compute."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = f"{platform.system()} {platform.machine()}, {cores} cores"
    return {"python": platform.python_version(), "machine": machine, **{name: version(name) for name in PACKAGES}}


def circumstances(what: str) -> str:
    """Describe when, where and by which command something was begun: one block of ``environment.txt``.

    Parameters
    ----------
    what
        ``"begun"`` or ``"resumed"``.
    """
    import torch

    facts = {
        what: datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "working directory": os.getcwd(),  # noqa: PTH109 -- Path.cwd() is the same call, and no path is wanted
        **versions(),
        "processes": str(current_world().size),
        "threads of torch": str(torch.get_num_threads()),
        "processor": platform.processor() or platform.machine(),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
    width = max(map(len, facts))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()) + "\n"
