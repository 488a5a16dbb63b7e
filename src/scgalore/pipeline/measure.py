"""Time, memory and environment of a run."""

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
    """Seconds by stage.

    Attributes
    ----------
    seconds
        Total time of each stage, in the order of first use.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add the duration of the block to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started


def peak_memory() -> int | None:
    """Peak memory of this process in bytes; ``None`` if unavailable on this system."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """Versions that results depend on: Python, platform and numerical packages."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = f"{platform.system()} {platform.machine()}, {cores} cores"
    return {"python": platform.python_version(), "machine": machine, **{name: version(name) for name in PACKAGES}}


def circumstances(what: str) -> str:
    """Describe time, place and command of the start of a run: one block of ``environment.txt``.

    Parameters
    ----------
    what
        ``"begun"`` or ``"resumed"``.
    """
    import torch

    facts = {
        what: datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "working directory": os.getcwd(),  # noqa: PTH109 -- Path.cwd() is the same call, but a string is needed
        **versions(),
        "processes": str(current_world().size),
        "threads of torch": str(torch.get_num_threads()),
        "processor": platform.processor() or platform.machine(),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
    width = max(map(len, facts))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()) + "\n"
