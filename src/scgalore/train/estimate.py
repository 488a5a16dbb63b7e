"""Bytes that a training run takes, counted from sizes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import pandas as pd
import torch

from scgalore.adapters import ADAPTERS, attach_adapter
from scgalore.nn import SCGPTNetwork
from scgalore.optim import OPTIMIZERS, build_optimizer
from scgalore.optim.expected import weights_of
from scgalore.optim.memory import format_bytes
from scgalore.optim.sharded import dealt
from scgalore.train.activations import FP32, Step, count_activations

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from typing import Any

    from scgalore.nn import SCGPTConfig
    from scgalore.train.config import TrainConfig

__all__ = ["Case", "MemoryEstimate", "alternatives", "count_case", "estimate_training", "readable", "training_device"]

SHORTER = (5000, 2500, 1200, 500)
"""Lengths of cells that an advice may name."""

UNREACHED = {
    "classification": ("decoder.", "mvc_decoder.", "batch_encoder.", "grad_reverse_discriminator."),
    "masked_expression": ("cls_decoder.", "grad_reverse_discriminator."),
    "perturbation": ("cls_decoder.", "mvc_decoder.", "batch_encoder.", "grad_reverse_discriminator."),
}
"""First parts of the names of parameters that a loss does not depend on: they get neither gradient nor state."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a training run; ``str()`` of it is a table.

    Attributes
    ----------
    parameters
        Weights and buffers of the network as it is trained, with the rows of the gene embedding that it then has.
    gradients
        Gradients of what is trained: all of them, or the largest one with ``per_layer_update``.
    optimizer_state
        State of the optimizer after its first step; of several processes with ``shard_optimizer``, of that with most.
    activations
        What the forward pass keeps for the backward pass.
    workspace
        Most that exists beside these at any moment of a step, the batch included; on a CPU also the memory that the
        allocator holds back.
    copies
        On a CPU: the weights of the start and of the best epoch, which a run can go back to, and the whole gene embedding
        beside the rows that are trained. A GPU has none of them.
    helps
        Settings that would lower the peak, the one that lowers it most first, each with the bytes it saves alone.
    """

    parameters: int
    gradients: int
    optimizer_state: int
    activations: int
    workspace: int
    copies: int = 0
    helps: tuple[tuple[str, int], ...] = ()

    @property
    def peak(self) -> int:
        """Sum of the parts, which exist together at the end of a forward pass."""
        return sum(self._parts().values())

    def _parts(self) -> dict[str, int]:
        return {part.name: getattr(self, part.name) for part in fields(self) if part.name != "helps"}

    def to_frame(self) -> pd.DataFrame:
        """One row a part and one for the peak, with columns ``bytes`` and ``share`` (of the peak)."""
        table = pd.DataFrame({"bytes": {**self._parts(), "peak": self.peak}}).rename_axis("part")
        return table.assign(share=table["bytes"] / max(self.peak, 1))

    def __str__(self) -> str:
        rows = [(name.replace("_", " "), size) for name, size in {**self._parts(), "peak": self.peak}.items()]
        lines = [f"{name:<16} {readable(size):>10} {size / max(self.peak, 1):>6.0%}" for name, size in rows]
        lines += [f"{setting} saves {readable(saved)}" for setting, saved in self.helps]
        return "\n".join(lines)


def estimate_training(
    network_config: SCGPTConfig,
    config: TrainConfig,
    *,
    n_tokens: int,
    n_rows: int,
    batch_size: int,
    objective: str,
    on_cpu: bool | None = None,
    n_processes: int = 1,
    frozen: Collection[str] = (),
) -> MemoryEstimate:
    """Count the bytes of a run, from sizes alone.

    Parameters
    ----------
    network_config
        The network, with the classes it is to have.
    config
        How to train. ``compile`` is not looked at.
    n_tokens
        Tokens of the longest cell, ``<cls>`` included.
    n_rows
        Rows of the gene embedding that batches may hold, for ``embedding="rows"``.
    batch_size
        Cells of a batch.
    objective
        ``"classification"``, ``"masked_expression"`` or ``"perturbation"``; any other name counts as masked expression.
    on_cpu
        Whether a CPU trains; as ``config.accelerator`` says when left out.
    n_processes
        Processes that train together.
    frozen
        Names of parameters that are not trained.

    Returns
    -------
    The estimate, with the settings that would lower it.
    """
    on_cpu = training_device(config).type == "cpu" if on_cpu is None else on_cpu
    case = Case(network_config, config, n_tokens, n_rows, batch_size, objective, on_cpu, n_processes, tuple(frozen))
    estimate = count_case(case)
    saved = {label: estimate.peak - count_case(other).peak for label, other in alternatives(case)}
    helps = sorted(((label, size) for label, size in saved.items() if size > 0), key=lambda help_: -help_[1])
    return replace(estimate, helps=tuple(helps))


def training_device(config: TrainConfig) -> torch.device:
    """Device that ``config.accelerator`` names on this machine."""
    if config.accelerator in ("cuda", "gpu") or (config.accelerator == "auto" and torch.cuda.is_available()):
        return torch.device("cuda")
    on_mps = config.accelerator == "mps" or (config.accelerator == "auto" and torch.backends.mps.is_available())
    return torch.device("mps" if on_mps else "cpu")


@dataclass(frozen=True)
class Case:
    """A run, as far as its bytes hang on it; the attributes are the parameters of :func:`estimate_training`."""

    network: SCGPTConfig
    config: TrainConfig
    n_tokens: int
    n_rows: int
    batch_size: int
    objective: str
    on_cpu: bool
    n_processes: int = 1
    frozen: tuple[str, ...] = ()


def count_case(case: Case) -> MemoryEstimate:
    """Estimate without the settings that would lower it."""
    config = case.config
    network = _meta_network(case)
    reached = _reached(case, network)
    parameters = sum(t.numel() * t.dtype.itemsize for t in (*network.parameters(), *network.buffers()))
    sizes = [param.numel() * param.dtype.itemsize for param in reached]
    gradients = max(sizes, default=0) if config.per_layer_update else sum(sizes)
    state, work = _optimizer_bytes(case, network, reached)
    step = count_activations(_step(case, network))
    # The optimizer steps when the activations are gone. DDP sends copies of the gradients.
    workspace = max(step.transient, work - step.kept) + step.held + gradients * (case.n_processes > 1)
    copies = 0
    if case.on_cpu:
        table = case.network.n_tokens * case.network.d_model * FP32
        copies = 2 * parameters + table * (config.embedding == "rows")
    return MemoryEstimate(parameters, gradients, state, step.kept, workspace, copies)


def _meta_network(case: Case) -> SCGPTNetwork:
    """The network as :func:`scgalore.model.training.trainable` makes it, without memory."""
    config, sizes = case.config, case.network
    if config.embedding == "rows":
        n_rows = min(case.n_rows, sizes.n_tokens)
        sizes = sizes.replace(n_tokens=n_rows, pad_id=n_rows - 1)
    with torch.device("meta"):
        network = SCGPTNetwork(sizes)
        for name, param in network.named_parameters():
            param.requires_grad = name not in case.frozen
        if config.embedding == "frozen":
            network.encoder.embedding.weight.requires_grad = False
        if config.adapter is not None:
            attach_adapter(config.adapter, network, **config.adapter_options)
    return network


def _reached(case: Case, network: SCGPTNetwork) -> set[torch.nn.Parameter]:
    """Parameters that get a gradient."""
    idle = UNREACHED.get(case.objective, ())  # of an objective of the user's own, nothing is known
    found = {param for name, param in network.named_parameters() if param.requires_grad and not name.startswith(idle)}
    if case.objective == "perturbation":
        found -= {param for name, param in network.named_parameters() if ".zero_logit." in name}
    return found


def _optimizer_bytes(case: Case, network: SCGPTNetwork, reached: set[torch.nn.Parameter]) -> tuple[int, int]:
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
    owners = dealt([param for param, _ in weights_of(built)], case.n_processes)
    shares = [[pair for pair in weights if owners[pair[0]] == rank] for rank in range(case.n_processes)]
    return max(spec.count_state(share, options) for share in shares), work


def _step(case: Case, network: SCGPTNetwork) -> Step:
    config, sizes = case.config, case.network
    entry = (network.encoder, network.value_encoder, network.pert_encoder, network.bn)
    factors = 0
    if config.adapter is not None:
        n_layers = sum(name.endswith((".lora_A", ".A")) or ".lora_A." in name for name, _ in network.named_parameters())
        options = {**ADAPTERS[config.adapter].options, **config.adapter_options}
        per_layer = options["rank"] * (2 if config.adapter == "lte" else 1)
        factors = per_layer * n_layers // sizes.n_layers
        # Query, key and value are layers of their own, and autocast casts the input for each.
        factors += 2 * sizes.d_model * (config.precision != "32-true")
    return Step(
        sizes,
        case.objective,
        case.batch_size,
        case.n_tokens,
        half=config.precision != "32-true",
        checkpointing=config.gradient_checkpointing,
        dropout=sizes.dropout if config.dropout is None else config.dropout,
        on_cpu=case.on_cpu,
        padded=case.batch_size > 1,
        frozen_input=not any(p.requires_grad for part in entry if part is not None for p in part.parameters()),
        trains_table=network.encoder.embedding.weight.requires_grad,
        factors=factors,
    )


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
    if case.batch_size > 1:
        half = case.batch_size // 2
        more = "" if config.per_layer_update else f", accumulate={2 * config.accumulate}"
        by_tokens = config.batch_tokens is not None or config.curriculum is not None
        cap = f"batch_tokens={half * case.n_tokens}" if by_tokens else f"batch_size={half}"
        yield cap + more, replace(case, batch_size=half)
    shorter = next((length for length in SHORTER if length < 0.8 * case.n_tokens), None)
    if shorter is not None:
        yield f"max_length={shorter}", replace(case, n_tokens=shorter)


def readable(size: int) -> str:
    """Millions or billions of bytes, in words."""
    return f"{size / 1e9:.2f} GB" if abs(size) >= 1e9 else format_bytes(size)
