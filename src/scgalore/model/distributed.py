"""Distribution of cells over processes, and gathering of results."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import distributed

from scgalore._world import World, current_world, launched_world
from scgalore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

__all__ = ["World", "by_first", "current_world", "gather", "process_group", "refuse_devices", "share"]

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)

# Keys of an earlier group may still be in the launcher's store, so each group has a unique name. All processes start
# their groups in the same order.
_numbers = count()


@contextmanager
def process_group() -> Iterator[World]:
    """Processes that share the work of the block.

    Uses torch's process group, if training or the user has started one. Otherwise, if torchrun or SLURM
    started several processes, a group (gloo, since data are exchanged in host memory) is created for the block.
    A single process is ``World()``. All processes must enter.
    """
    if distributed.is_available() and distributed.is_initialized():
        yield current_world()
        return
    world = launched_world()
    if world.size == 1:
        yield world
        return
    distributed.init_process_group("gloo", store=_store(world), rank=world.rank, world_size=world.size, timeout=TIMEOUT)
    try:
        yield world
    finally:
        distributed.destroy_process_group()


def by_first(work: Callable[[], T]) -> T:
    """Run a function in the first of several processes, and return its result, or raise its error, in all of them.

    All processes must call this, and wait until it is finished.

    Parameters
    ----------
    work
        Function to run, such as writing a file. Its result is pickled if there are other processes.
    """
    with process_group() as world:
        if world.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if world.rank == 0:
            try:
                outcome[0] = work()
            except Exception as error:  # noqa: BLE001 -- whatever it is, the others must hear of it
                outcome[1] = error
        distributed.broadcast_object_list(outcome, src=0)
        result, raised = outcome
        if raised is not None:
            raise raised
        done: T = result
        return done


def share(n_obs: int, world: World) -> slice:
    """Consecutive rows of this process; numbers of rows of processes differ by at most one.

    Parameters
    ----------
    n_obs
        Number of rows.
    world
        Result of :func:`process_group`.
    """
    return slice(world.rank * n_obs // world.size, (world.rank + 1) * n_obs // world.size)


def gather(array: NDArray[np.float32], world: World) -> NDArray[np.float32]:
    """Gather the rows of all processes, in order and bit-identical, in every process.

    Parameters
    ----------
    array
        Rows of this process, float32; other processes may have other numbers of rows, also none.
    world
        Result of :func:`process_group`.
    """
    if world.size == 1:
        return array
    # nccl does not support host memory.
    device = torch.device("cuda", world.local_rank) if distributed.get_backend() == "nccl" else torch.device("cpu")
    n = torch.tensor([len(array)], device=device)
    counts = [torch.empty_like(n) for _ in range(world.size)]
    distributed.all_gather(counts, n)
    sizes = [int(count) for count in counts]
    padded = torch.zeros((max(sizes), *array.shape[1:]), dtype=torch.float32, device=device)
    padded[: len(array)] = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    parts = [torch.empty_like(padded) for _ in range(world.size)]
    distributed.all_gather(parts, padded)
    return np.concatenate([part[:size].cpu().numpy() for part, size in zip(parts, sizes, strict=True)])


def refuse_devices(devices: object) -> None:
    """Raise an error if ``devices`` differs from the number of processes, for calls that start no processes.

    Lightning starts additional processes by running the script again from its first line. Training does that once, and
    its processes remain for later calls; embedding would repeat everything before it for a few seconds of work.

    Parameters
    ----------
    devices
        Requested number of devices.

    Raises
    ------
    OptionError
        If it differs from the number of processes.
    """
    world = current_world()
    if devices in ("auto", None, world.size, world.local_size):
        return
    msg = (
        f"devices={devices!r}, but the number of processes is {world.size}, and embedding does not start any. Put the call into a script "
        f"and run python -m torch.distributed.run --standalone --nproc_per_node={devices} script.py; each process then embeds some "
        "of the cells."
    )
    raise OptionError(msg)


def _store(world: World) -> distributed.Store:
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        store, _, _ = next(distributed.rendezvous("env://", world.rank, world.size, timeout=TIMEOUT))
    else:
        # As in Lightning for SLURM: the first machine, and a port that all processes can compute.
        host = env.get("MASTER_ADDR") or _first_node(env.get("SLURM_NODELIST", "127.0.0.1"))
        port = int(env.get("MASTER_PORT") or 15000 + int(env.get("SLURM_JOB_ID", "0")[-4:]))
        store = distributed.TCPStore(host, port, world.size, world.rank == 0, timeout=TIMEOUT)
    return distributed.PrefixStore(f"scgalore/{next(_numbers)}", store)


def _first_node(nodes: str) -> str:
    """First name in SLURM's list: ``"node[03-05,9],other"`` starts with ``"node03"``."""
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes, count=1).split(",")[0]
