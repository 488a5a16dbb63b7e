"""Cells shared out among processes, and their results brought together again."""

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

# Keys of an earlier group may still be in the launcher's store, so each group has a name of its own. All processes start
# their groups in the same order.
_numbers = count()


@contextmanager
def process_group() -> Iterator[World]:
    """Processes that share the work of the block.

    They are those of torch's process group, if training or the user has started one. Otherwise, where torchrun or SLURM
    has started several, a group (gloo: what is exchanged lies in host memory) is started for the block and ended after it.
    A process alone is ``World()``. All processes must enter.
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
    """Let the first of several processes do something, and give all of them its result, or the error it raised.

    All processes must call this, and go on only when it is done.

    Parameters
    ----------
    work
        What to do, such as writing a file. Its result is pickled where there are other processes.
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
    """Rows of this process: consecutive, and as many as the others have or one more.

    Parameters
    ----------
    n_obs
        Number of rows.
    world
        From :func:`process_group`.
    """
    return slice(world.rank * n_obs // world.size, (world.rank + 1) * n_obs // world.size)


def gather(array: NDArray[np.float32], world: World) -> NDArray[np.float32]:
    """Rows of all processes, in order, on every process, with the bits that their owners have.

    Parameters
    ----------
    array
        Rows of this process, float32; the other processes may have more or fewer, or none, of the same shape.
    world
        From :func:`process_group`.
    """
    if world.size == 1:
        return array
    # nccl knows no host memory.
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
    """Refuse a number of devices for a call that starts no processes itself.

    Lightning starts further processes by running the script once more from its first line. Training does that once, and
    its processes stay for what follows; a call that embeds would run everything before it again for a few seconds of work.

    Parameters
    ----------
    devices
        What the user asked for.

    Raises
    ------
    OptionError
        If it is another number than there are processes.
    """
    world = current_world()
    if devices in ("auto", None, world.size, world.local_size):
        return
    msg = (
        f"devices={devices!r}: embedding starts no processes itself, and there is {world.size}. Put the call into a script "
        f"and run python -m torch.distributed.run --standalone --nproc_per_node={devices} script.py; every process then embeds a share "
        "of the cells."
    )
    raise OptionError(msg)


def _store(world: World) -> distributed.Store:
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        store, _, _ = next(distributed.rendezvous("env://", world.rank, world.size, timeout=TIMEOUT))
    else:
        # As Lightning does for SLURM: the first machine, and a port that all processes know without asking.
        host = env.get("MASTER_ADDR") or _first_node(env.get("SLURM_NODELIST", "127.0.0.1"))
        port = int(env.get("MASTER_PORT") or 15000 + int(env.get("SLURM_JOB_ID", "0")[-4:]))
        store = distributed.TCPStore(host, port, world.size, world.rank == 0, timeout=TIMEOUT)
    return distributed.PrefixStore(f"scgalore/{next(_numbers)}", store)


def _first_node(nodes: str) -> str:
    """First name in SLURM's list: ``"node[03-05,9],other"`` begins with ``"node03"``."""
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes, count=1).split(",")[0]
