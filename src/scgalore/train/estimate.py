"""Estimates the memory of a training run without allocating it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import pandas as pd
import torch

from scgalore._html import html_table
from scgalore._words import format_bytes
from scgalore.adapters import attach_adapter
from scgalore.nn.blank import on_meta_device
from scgalore.nn.embedding import embedding_mode
from scgalore.optim import OPTIMIZERS, build_optimizer
from scgalore.optim.expected import weights_of
from scgalore.optim.sharded import dealt
from scgalore.train.free import held_back
from scgalore.train.modes import dropping, recomputing
from scgalore.train.trace import HALF, Shape, on_meta, trace_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from torch import Tensor, nn

    from scgalore.nn import CellNetwork
    from scgalore.objectives import Objective
    from scgalore.train.config import TrainConfig

__all__ = ["Case", "MemoryEstimate", "alternatives", "count_case", "estimate_training", "training_device"]

SHORTER = (5000, 2500, 1200, 500)
"""Values of ``max_length`` that can be suggested."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimated memory of a training run in bytes; shown as a table when printed or in a notebook.

    Attributes
    ----------
    parameters
        Weights and buffers of the network, with the rows of the gene embedding used in training.
    gradients
        Gradients of trainable weights: all of them, or the largest one with ``per_layer_update``.
    optimizer_state
        Optimizer state after the first step; with ``shard_optimizer``, of the process with the largest part.
    activations
        Activations kept for the backward pass.
    workspace
        Maximum of all other memory during a step, including the batch; on a CPU also the memory that the allocator does
        not reuse.
    copies
        On a CPU: copies of the initial weights and of those of the best epoch, and the whole gene embedding in addition
        to the trained rows. 0 on a GPU.
    weigh
        Computes ``helps`` on request, since each setting requires a separate estimate.

    See Also
    --------
    scgalore.estimate_memory : Estimate the memory of fine-tuning.
    scgalore.pl.memory : Draw the memory of a run by component.

    Examples
    --------
    >>> import scgalore as sg
    >>> estimate = sg.estimate_memory("scgpt-mini", genes_per_cell=500, batch_size=8, accelerator="cuda")
    >>> estimate.peak == sum(estimate.parts().values())
    True
    """

    parameters: int
    gradients: int
    optimizer_state: int
    activations: int
    workspace: int
    copies: int = 0
    weigh: Callable[[], tuple[tuple[str, int], ...]] = field(default=tuple, repr=False, compare=False)

    @cached_property
    def helps(self) -> tuple[tuple[str, int], ...]:
        """Settings that would reduce the peak, with the bytes that each of them saves, in decreasing order."""
        return self.weigh()

    @property
    def peak(self) -> int:
        """Sum of the parts, all of which exist at the end of a forward pass."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Bytes of each part."""
        return {part.name: getattr(self, part.name) for part in fields(self) if part.compare}

    def to_frame(self) -> pd.DataFrame:
        """One row per part and one for the peak, with columns ``bytes`` and ``share`` (of the peak)."""
        table = pd.DataFrame({"bytes": {**self.parts(), "peak": self.peak}}).rename_axis("part")
        return table.assign(share=table["bytes"] / max(self.peak, 1))

    def __str__(self) -> str:
        lines = [f"{name:<16} {size:>10} {share:>6}" for name, size, share in self._rows()]
        return "\n".join([*lines, *self._advice()])

    def _repr_html_(self) -> str:
        return html_table(("part", "size", "share"), self._rows(), notes=self._advice())

    def _rows(self) -> list[tuple[str, str, str]]:
        sizes = {**self.parts(), "peak": self.peak}
        return [
            (name.replace("_", " "), format_bytes(size), f"{size / max(self.peak, 1):.0%}")
            for name, size in sizes.items()
        ]

    def _advice(self) -> list[str]:
        return [f"{setting} saves {format_bytes(saved)}" for setting, saved in self.helps]


def estimate_training(
    network: CellNetwork,
    objective: Objective,
    config: TrainConfig,
    *,
    n_cells: int,
    n_tokens: int,
    n_rows: int,
    gpu: bool | None = None,
    n_processes: int = 1,
) -> MemoryEstimate:
    """Estimate the memory of a run in bytes without allocating it.

    Parameters
    ----------
    network
        Network before training, with its heads, on any device, including the meta device. Weights that do not require
        gradients are not trained.
    objective
        Objective of the training.
    config
        Training settings; ``compile`` is ignored.
    n_cells
        Number of cells per batch.
    n_tokens
        Number of tokens of the longest cell, including ``<cls>``.
    n_rows
        Number of rows of the gene embedding used by batches, for ``embedding="rows"``.
    gpu
        Whether to train on a GPU; ``None`` uses ``config.accelerator``.
    n_processes
        Number of processes.

    Returns
    -------
    The estimate.

    See Also
    --------
    scgalore.estimate_memory : Estimate the memory of fine-tuning.

    Examples
    --------
    >>> import scgalore as sg
    >>> network = sg.model.load("scgpt-mini").network
    >>> objective, config = sg.objectives.MaskedExpression(), sg.train.TrainConfig()
    >>> sizes = {"n_cells": 8, "n_tokens": 501, "n_rows": 2000}
    >>> estimate = sg.train.estimate_training(network, objective, config, **sizes, gpu=True)
    """
    gpu = training_device(config).type != "cpu" if gpu is None else gpu
    return count_case(Case(network, objective, config, n_cells, n_tokens, n_rows, gpu, n_processes))


def training_device(config: TrainConfig) -> torch.device:
    """Device that ``config.accelerator`` names on this machine."""
    if config.accelerator in ("cuda", "gpu") or (config.accelerator == "auto" and torch.cuda.is_available()):
        return torch.device("cuda")
    on_mps = config.accelerator == "mps" or (config.accelerator == "auto" and torch.backends.mps.is_available())
    return torch.device("mps" if on_mps else "cpu")


@dataclass(frozen=True)
class Case:
    """A run; the attributes are the parameters of :func:`estimate_training`."""

    network: CellNetwork
    objective: Objective
    config: TrainConfig
    n_cells: int
    n_tokens: int
    n_rows: int
    gpu: bool
    n_processes: int = 1


def count_case(case: Case) -> MemoryEstimate:
    """Estimate a run: exact counts of what has a shape before training, and the trace of a step."""
    config = case.config
    shape = Shape(case.n_cells, case.n_tokens, config.precision, case.gpu)
    with _as_trained(case) as (network, whole_table):
        step = trace_step(network, case.objective, shape)
        held = 0 if case.gpu else held_back(_kept_anew(network, case.objective, shape), half=config.precision in HALF)
        reached = {param for name, param in network.named_parameters() if name in step.reached}
        parameters = _bytes((*network.parameters(), *network.buffers()))
        gradients = (
            max((_bytes([param]) for param in reached), default=0) if config.per_layer_update else _bytes(reached)
        )
        state, work = _optimizer_bytes(case, network, reached)
    # The optimizer steps when the activations are gone. DDP sends copies of the gradients.
    workspace = max(step.transient, work - step.kept) + held + gradients * (case.n_processes > 1)
    copies = 0 if case.gpu else 2 * parameters + whole_table
    return MemoryEstimate(parameters, gradients, state, step.kept, workspace, copies, partial(_savings, case))


@contextmanager
def _as_trained(case: Case) -> Iterator[tuple[CellNetwork, int]]:
    """The network as it is trained, without memory, and the bytes of the table whose rows it holds."""
    config, network = case.config, on_meta(case.network).train()
    before = set(network.parameters())
    tokens = torch.arange(min(case.n_rows, network.config.n_tokens))
    with (
        embedding_mode(config.embedding).applied(network, tokens),
        dropping(network, p=config.dropout),
        recomputing(network, wanted=config.gradient_checkpointing),
    ):
        table = _bytes(before - set(network.parameters()))
        if config.adapter is not None:
            with on_meta_device():
                attach_adapter(config.adapter, network, **config.adapter_options)
        yield network, table


def _kept_anew(network: CellNetwork, objective: Objective, shape: Shape) -> tuple[int, ...]:
    """Tensors that are kept for the backward pass, be it until a block is computed again."""
    with recomputing(network, wanted=False):
        return trace_step(network, objective, shape).saved


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors)


def _optimizer_bytes(case: Case, network: CellNetwork, reached: set[nn.Parameter]) -> tuple[int, int]:
    if not reached:
        return 0, 0
    config = case.config
    spec = OPTIMIZERS[config.optimizer]
    options = {**spec.options, **config.optimizer_options}
    built = build_optimizer(config.optimizer, network, weight_decay=config.weight_decay, **config.optimizer_options)
    weights = [pair for pair in weights_of(built) if pair[0] in reached]
    work = spec.count_work(weights[:1] if config.per_layer_update else weights, options)
    if not (config.shard_optimizer and case.n_processes > 1):
        return spec.count_state(weights, options), work
    owners = dealt(weights_of(built), case.n_processes, spec.counter(config.optimizer_options))
    shares = [[pair for pair in weights if owners[pair[0]] == rank] for rank in range(case.n_processes)]
    return max(spec.count_state(share, options) for share in shares), work


def _savings(case: Case) -> tuple[tuple[str, int], ...]:
    peak = count_case(case).peak
    saved = {label: peak - count_case(other).peak for label, other in alternatives(case)}
    return tuple(sorted(((label, size) for label, size in saved.items() if size > 0), key=lambda help_: -help_[1]))


def alternatives(case: Case) -> Iterator[tuple[str, Case]]:
    """One setting changed at a time."""
    config = case.config

    def turned(**changes: Any) -> Case:
        return replace(case, config=replace(config, **changes))

    if not config.gradient_checkpointing:
        yield "gradient_checkpointing=True", turned(gradient_checkpointing=True)
    if config.precision == "32-true":
        yield 'precision="bf16-mixed"', turned(precision="bf16-mixed")
    if config.optimizer != "galore":
        yield 'optimizer="galore"', turned(optimizer="galore", optimizer_options={})
    if config.embedding == "full":
        yield 'embedding="rows"', turned(embedding="rows")
    if case.n_cells > 1:
        half = case.n_cells // 2
        own = config.per_layer_update or config.accumulate_tokens is not None  # smaller batches make the same steps
        more = "" if own else f", accumulate={2 * config.accumulate}"
        by_tokens = config.batch_tokens is not None or config.curriculum is not None
        cap = f"batch_tokens={half * case.n_tokens}" if by_tokens else f"batch_size={half}"
        yield cap + more, replace(case, n_cells=half)
    shorter = next((length for length in SHORTER if length < 0.8 * case.n_tokens), None)
    if shorter is not None:
        yield f"max_length={shorter}", replace(case, n_tokens=shorter)
