"""Number of training processes, determined before any work starts."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from scgalore._progress import in_notebook
from scgalore._world import launched_world
from scgalore.errors import OptionError

if TYPE_CHECKING:
    from scgalore.train.config import TrainConfig

__all__ = ["Processes", "training_processes"]

TORCHRUN = "python -m torch.distributed.run --standalone --nproc_per_node={} script.py"


@dataclass(frozen=True)
class Processes:
    """The processes of a training run.

    Attributes
    ----------
    devices
        Value passed to Lightning.
    num_nodes
        Number of machines.
    size
        Number of processes on all machines.
    """

    devices: int | str | list[int]
    num_nodes: int = 1
    size: int = 1


def training_processes(config: TrainConfig) -> Processes:
    """Determine the number of processes from the configuration and the launcher.

    Parameters
    ----------
    config
        ``devices`` and ``num_nodes`` must agree with torchrun or SLURM, or be left at their defaults.

    Raises
    ------
    OptionError
        If they do not agree, if processes cannot be started from here, or if an option does not support the number of
        processes.
    """
    world = launched_world()
    if world.size > 1:
        processes = _of_launcher(config, world.local_size, world.n_nodes)
    else:
        n_devices = _n_devices(config)
        processes = Processes(_devices(config, n_devices), config.num_nodes, n_devices * config.num_nodes)
        if processes.size > 1 and "LOCAL_RANK" not in os.environ:
            _check_script(config, n_devices)
    _check_options(config, processes.size)
    return processes


def _of_launcher(config: TrainConfig, n_devices: int, num_nodes: int) -> Processes:
    chosen = config.devices not in ("auto", "-1", -1)
    if (chosen and _n_devices(config) != n_devices) or config.num_nodes not in (1, num_nodes):
        msg = (
            f"devices={config.devices!r}, num_nodes={config.num_nodes}: the launcher has started {n_devices} processes on "
            f"each of {num_nodes} machines. Omit both, or pass these numbers."
        )
        raise OptionError(msg)
    devices = _devices(config, n_devices) if isinstance(config.devices, list) else n_devices
    return Processes(devices, num_nodes, n_devices * num_nodes)


def _on_cuda(config: TrainConfig) -> bool:
    return config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def _devices(config: TrainConfig, n_devices: int) -> int | list[int] | str:
    """What Lightning is asked for: outside CUDA devices have no numbers, and ``-1`` and lists of them are refused there."""
    return config.devices if config.devices == "auto" or _on_cuda(config) else n_devices


def _n_devices(config: TrainConfig) -> int:
    devices = config.devices
    if isinstance(devices, str) and devices not in ("auto", "-1"):
        return len([part for part in devices.split(",") if part.strip()]) if "," in devices else int(devices)
    if isinstance(devices, list):
        return len(devices)
    if devices in ("-1", -1):
        return torch.cuda.device_count() if _on_cuda(config) else 1
    return devices if isinstance(devices, int) else 1


def _check_script(config: TrainConfig, n_devices: int) -> None:
    """Refuse what Lightning cannot start by running the script once more for each further process."""
    what = f"devices={config.devices!r}, num_nodes={config.num_nodes}"
    command = TORCHRUN.format(n_devices)
    if config.num_nodes > 1 and not {"MASTER_ADDR", "NODE_RANK"} <= os.environ.keys():
        msg = (
            f"{what}: several machines need a launcher. Run srun with --ntasks-per-node={n_devices} under SLURM, or on "
            f"each machine torchrun with --nnodes={config.num_nodes} --nproc_per_node={n_devices} --rdzv-backend=c10d "
            "--rdzv-endpoint=HOST:PORT script.py."
        )
        raise OptionError(msg)
    if hasattr(sys, "ps1") or in_notebook() or not Path(sys.argv[0]).is_file():
        msg = (
            f"{what}: several processes can only be started from a script, not from a notebook or a prompt. Save the "
            f"code in a script and run {command}, or set devices=1."
        )
        raise OptionError(msg)


def _check_options(config: TrainConfig, size: int) -> None:
    if size == 1:
        if config.shard_optimizer:
            msg = (
                "shard_optimizer=True requires several processes, found one. Start "
                f"more, for example with {TORCHRUN.format(2)}, or set shard_optimizer=False."
            )
            raise OptionError(msg)
        return
    if config.per_layer_update:
        msg = f"per_layer_update=True does not support several processes, found {size}: gradients would be used before they are averaged."
        raise OptionError(msg)
    if config.accelerator == "mps":
        msg = f"accelerator='mps' does not support several processes, found {size}. Set accelerator='cpu' or devices=1."
        raise OptionError(msg)
