"""Selects a batch size that fits into the free memory, and warns if none does."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from scgalore import _logging as logg
from scgalore._words import format_bytes
from scgalore.errors import OptionError
from scgalore.train.config import DEFAULT_BATCH_SIZE, TrainConfig
from scgalore.train.curriculum import batch_plan
from scgalore.train.estimate import (
    Case,
    MemoryEstimate,
    count_case,
    estimate_training,
    training_device,
)
from scgalore.train.free import free_memory
from scgalore.train.processes import training_processes
from scgalore.train.trace import on_meta

if TYPE_CHECKING:
    from scgalore._typing import PathLike
    from scgalore.data.source import CellSource
    from scgalore.data.split import Split
    from scgalore.nn import CellNetwork
    from scgalore.objectives import Objective

__all__ = ["MemoryEstimate", "estimate_training", "fits_by_far", "settle_memory"]

MARGIN = 0.8
"""Fraction of the free memory used by ``batch_size="auto"``, since the requirement is an estimate."""


def settle_memory(
    network: CellNetwork,
    source: CellSource,
    split: Split | None,
    objective: Objective,
    config: TrainConfig,
    *,
    checkpoint_dir: PathLike | None = None,
    resume: bool = False,
) -> TrainConfig:
    """Select the batch size if it is ``"auto"``, and warn if a run may not fit into the free memory.

    Parameters
    ----------
    network
        As it is before training, on the CPU.
    source, split, objective, config
        As for :func:`scgalore.train.fit`; ``config.batch_size`` may be ``"auto"``; its ``max_epochs`` is a number.
    checkpoint_dir, resume
        A resumed run keeps its batch size.

    Returns
    -------
    The configuration with a number as ``batch_size``. ``"auto"`` starts at the default, which is halved until the
    estimate is at most 80 % of the free memory. ``accumulate`` is doubled each time to keep the number of cells per
    step, except with ``per_layer_update``, which does not support it.

    Raises
    ------
    OptionError
        If several processes train and the batch size is ``"auto"``: each would choose its own.
    """
    processes = training_processes(config)
    automatic = config.batch_size == "auto"
    if automatic and processes.size > 1:
        msg = f'batch_size="auto" does not support several processes, found {processes.size}. Pass the number of cells per process.'
        raise OptionError(msg)
    config, chosen = _begun(config, checkpoint_dir, resume=resume)
    device = training_device(config)
    free = free_memory(device)
    spent = sum(t.numel() * t.dtype.itemsize for t in (*network.parameters(), *network.buffers()))
    if device.type != "cuda":
        free = free * processes.num_nodes // processes.size + spent
    case = _case(network, source, split, objective, config, processes.size)
    if not automatic and fits_by_far(case, free):
        return config
    case = replace(case, network=on_meta(network))
    estimate = count_case(case)
    if automatic and not chosen and "batch_size" not in source.limits:
        while estimate.peak > MARGIN * free and isinstance(config.batch_size, int) and config.batch_size > 1:
            more = 1 if config.per_layer_update else 2
            config = replace(config, batch_size=config.batch_size // 2, accumulate=config.accumulate * more)
            case = _case(case.network, source, split, objective, config, 1)
            estimate = count_case(case)
        logg.info(
            f"    batch_size={config.batch_size}, accumulate={config.accumulate}: {format_bytes(estimate.peak)} of "
            f"{format_bytes(free)} free memory"
        )
    if estimate.peak > free:
        _warn(case, estimate, free)
    return config


def fits_by_far(case: Case, free: int) -> bool:
    """Whether a quarter of the free memory is more than any step of such layers takes, so that none need be traced.

    Each matrix is taken to keep four copies of its input and output per token, about three times what blocks of scGPT
    keep, and four rows of attention, as many as a network with some heads keeps that materialises it.
    """
    modules = list(case.network.modules())
    tables = {id(module.weight) for module in modules if isinstance(module, nn.Embedding)}
    matrices = [p for p in case.network.parameters() if p.ndim > 1 and id(p) not in tables]
    per_token = sum(sum(p.shape) + case.n_tokens for p in matrices)
    everything = 10 * sum(p.numel() for p in case.network.parameters())
    return 4 * (everything + 4 * per_token * case.n_cells * case.n_tokens) < free / 4


def _begun(config: TrainConfig, checkpoint_dir: PathLike | None, *, resume: bool) -> tuple[TrainConfig, bool]:
    """The batch size of the run that is continued, or the default to start from; and whether it is the former."""
    if config.batch_size != "auto":
        return config, False
    from scgalore.train.checkpoint import saved_run  # brings Lightning

    saved = saved_run(checkpoint_dir, resume=resume)
    if saved is not None and {"batch_size", "accumulate"} <= saved.keys():
        return replace(config, batch_size=saved["batch_size"], accumulate=saved["accumulate"]), True
    return replace(config, batch_size=DEFAULT_BATCH_SIZE), False


def _case(
    network: CellNetwork,
    source: CellSource,
    split: Split | None,
    objective: Objective,
    config: TrainConfig,
    n_processes: int,
) -> Case:
    rows = None if split is None else split.train
    n_cells, n_tokens = source.largest_batch(rows, batch_plan(config, source, rows))
    gpu = training_device(config).type != "cpu"
    return Case(network, objective, config, n_cells, n_tokens, len(source.tokens()), gpu, n_processes)


def _warn(case: Case, estimate: MemoryEstimate, free: int) -> None:
    advice = ""
    if estimate.helps:
        setting, saved = estimate.helps[0]
        left = estimate.peak - saved
        fits = "fits" if left <= free else "is still more than that"
        advice = f" {setting} would reduce it most, to {format_bytes(left)}, which {fits}."
    logg.warning(
        f"training may need {format_bytes(estimate.peak)} of memory, but only {format_bytes(free)} are free. A batch of "
        f"{case.n_cells} cells of {case.n_tokens:,} tokens keeps {format_bytes(estimate.activations)} for the backward "
        f"pass.{advice} See sg.estimate_memory for details."
    )
