"""Rank of this process among several, read from the launcher's environment variables, without starting anything."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

__all__ = ["World", "current_world", "is_first_process", "launched_world"]


@dataclass(frozen=True)
class World:
    """Processes that work together.

    Attributes
    ----------
    rank
        Rank of this process among all, from 0.
    size
        Number of processes.
    local_rank
        Rank of this process on its machine, from 0; also the index of its GPU.
    local_size
        Number of processes on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def n_nodes(self) -> int:
        """Number of machines."""
        return self.size // self.local_size


def launched_world() -> World:
    """Processes started by torchrun or SLURM's srun; a single one if neither was used.

    The variables are those that Lightning reads. Processes that Lightning itself started as copies of a script do not
    count: until the script reaches the training that started them, each works on its own.
    """
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return World(*(int(env[name]) for name in names))
    # A batch script without srun also has the number of tasks set, but is a single process.
    if "SLURM_STEP_ID" in env and "SLURM_NTASKS" in env and env.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        size = int(env["SLURM_NTASKS"])
        local_size = int(env.get("SLURM_NTASKS_PER_NODE", size))
        return World(int(env["SLURM_PROCID"]), size, int(env["SLURM_LOCALID"]), local_size)
    return World()


def current_world() -> World:
    """Processes of torch's process group if it is initialised, else :func:`launched_world`."""
    world = launched_world()
    # Not imported for this: a process group exists only if torch.distributed has been imported.
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return world
    rank, size = distributed.get_rank(), distributed.get_world_size()
    if world.size == size:
        return world
    return World(rank, size, int(os.environ.get("LOCAL_RANK", rank)), size)


def is_first_process() -> bool:
    """Whether this process writes files and logs messages for all."""
    world = current_world()
    if world.size > 1:
        return world.rank == 0
    # Copies of a script started by Lightning.
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK"))
