"""One side of a comparison: a process that does what it is asked, one request at a time, and says what it cost.

Needs nothing but the standard library and torch, since the original program runs in an environment of its own.
Requests and answers are lines of JSON on standard input and output; whatever else the process prints goes to standard
error.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

THREADS_VARIABLE = "BENCHMARK_THREADS"


def serve(handlers: Mapping[str, Callable[..., Any]]) -> None:
    """Answer requests until the input ends.

    Parameters
    ----------
    handlers
        What can be asked for; arguments and results are what JSON can hold.
    """
    torch.set_num_threads(int(os.environ.get(THREADS_VARIABLE, "1")))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # prints of either program must not end up between the answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = measured(handlers[request.pop("do")], **request)
        except Exception:  # noqa: BLE001 (the other process raises it)
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")


def measured(function: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
    """Call a function and measure it.

    Returns
    -------
    ``value``, ``wall`` and ``cpu`` in seconds (that of finished child processes included), ``rss`` before the call and
    ``peak`` during it, in bytes, of this process alone. Garbage is collected and free memory is given back to the
    system beforehand, so that no call profits from what the one before left.
    """
    gc.collect()
    _give_memory_back()
    reset_peak()
    before = memory()[0]
    wall, cpu = time.perf_counter(), _cpu_seconds()
    value = function(**arguments)
    wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
    return {"value": value, "wall": wall, "cpu": cpu, "rss": before, "peak": memory()[1]}


def memory() -> tuple[int, int]:
    """Resident bytes of this process: now, and the most since :func:`reset_peak` (since its start where there is none)."""
    status = Path("/proc/self/status")
    if not status.exists():
        factor = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * factor
        return peak, peak
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    now, peak = (1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    return now, peak


def reset_peak() -> bool:
    """Let the peak start anew; ``False`` where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _cpu_seconds() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def _give_memory_back() -> None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # only glibc has it
        return


def saved_for_backward(forward: Callable[[], Any], parameters: Mapping[int, Any]) -> int:
    """Bytes that a forward pass keeps for the backward pass, each storage once, without those of ``parameters``.

    Parameters
    ----------
    forward
        The pass; what it returns is kept alive until all is counted.
    parameters
        Storages that are there anyway, by address.
    """
    storages: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = forward()
    total = sum(storages.values())
    del kept
    return total


def storages_of(module: torch.nn.Module) -> dict[int, Any]:
    """Storages of a module's parameters and buffers, by address."""
    return {tensor.untyped_storage().data_ptr(): None for tensor in (*module.parameters(), *module.buffers())}
