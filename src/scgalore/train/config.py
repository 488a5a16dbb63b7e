"""Training settings with their defaults, checked before any work starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from inspect import signature
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Self, get_args, overload

import torch

from scgalore._options import (
    COUNT,
    INDEX,
    MAPPING,
    POSITIVE,
    SWITCH,
    TEXT,
    Kind,
    as_json,
    choice,
    comma_separated,
    declare,
    documented,
    is_whole,
    number,
    options_of,
    suggestion,
    whole,
)
from scgalore._settings import settings
from scgalore._words import seconds_of
from scgalore.adapters import ADAPTERS, check_adapter
from scgalore.errors import OptionError
from scgalore.nn.embedding import EMBEDDINGS
from scgalore.optim import OPTIMIZERS, build_optimizer
from scgalore.optim.registry import check_options, first_with
from scgalore.train.modes import check_compiler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "DEFAULT_GENES",
    "Accelerator",
    "Precision",
    "Strategy",
    "TrainConfig",
    "check_curriculum",
]

DEFAULT_BATCH_SIZE = 32

ALL = 2**31 - 1
"""Stands for all genes; more than any data set has."""

DEFAULT_GENES = (500, 1200, 2500, ALL)
"""Number of genes of each phase for ``curriculum=True``."""

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Strategy = Literal["auto", "ddp", "ddp_find_unused_parameters_true"]


def _are_devices(value: Any) -> bool:
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        return value in ("auto", "-1") or (all(map(str.isdigit, parts)) and parts != ["0"])
    if isinstance(value, list):
        return len(value) > 0 and all(is_whole(number, 0) for number in value)
    return is_whole(value, -1) and value != 0


def _plain_devices(value: Any) -> Any:
    if isinstance(value, str):
        return value
    return [int(number) for number in value] if isinstance(value, list) else int(value)


_SHORT = {"progressive": True, "standard": False}
"""Short names of curricula on the command line."""


def _read_curriculum(text: str) -> Any:
    if text in _SHORT:
        return _SHORT[text]
    parts = comma_separated(text)
    return [as_json(part) for part in parts] if len(parts) > 1 and "{" not in text else as_json(text)


def _are_digits(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(n, str) and n.isdigit() for n in value)


CURRICULUM = Kind(
    "expected True, increasing numbers of genes such as [500, 1200], or a dict from numbers of genes to epochs",
    lambda value: True,
    _read_curriculum,
    # JSON keys are strings.
    lambda value: {int(n): epochs for n, epochs in value.items()} if _are_digits(value) else value,
)
DEVICES = Kind(
    "expected a number of devices, a list of their indices, -1 for all, or 'auto'",
    _are_devices,
    as_json,
    _plain_devices,
)
OFTEN = Kind(
    "expected a number of steps, or a time such as '30 min' or '2 h'",
    lambda value: seconds_of(value) is not None if isinstance(value, str) else is_whole(value, 1),
    as_json,
    lambda value: value if isinstance(value, str) else int(value),
)
OPTIMIZER = Kind("it must be the name of an optimizer", lambda value: isinstance(value, str))


@documented
@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run."""

    max_epochs: int | None = declare(
        COUNT,
        """
        Number of epochs. ``None`` uses as many as needed for 500 optimizer steps, at least 10 and at most 100, and sets
        ``patience`` to 5; for a stream, whose cells are not counted, it is 10. A resumed run keeps its value.
        """,
        shown_default="as needed for 500 steps, 10 to 100",
        aliases=("epochs",),
    )
    steps_per_epoch: int | None = declare(
        COUNT,
        """
        Number of optimizer steps per epoch, for a stream of files whose passes take hours: after each epoch, the model
        is validated and a checkpoint is written, and the next epoch continues in the same pass. ``None`` is a pass over
        all cells.
        """,
        shown_default="a pass over all cells",
    )
    checkpoint_every: int | str | None = declare(
        OFTEN,
        """
        Interval between checkpoints within an epoch, as a number of optimizer steps, such as ``500``, or a time, such
        as ``"30 min"``. Requires ``checkpoint_dir``. ``None`` writes checkpoints only after each epoch.
        """,
        shown_default="after each epoch",
    )
    batch_size: int | Literal["auto"] = declare(
        whole(1, others=("auto",)),
        """
        Maximum number of cells per batch of each process. ``"auto"`` starts with the default and halves it (doubling
        ``accumulate``) until the estimate of :func:`scgalore.estimate_memory` fits into the free memory; a resumed run
        keeps its value. ``"auto"`` does not support several processes.
        """,
        default=DEFAULT_BATCH_SIZE,
    )
    batch_tokens: int | None = declare(
        COUNT,
        """
        Maximum number of tokens per batch, including padding: batches of short cells then contain more cells, and all
        steps take about the same time and memory. A longer cell is a batch by itself. ``batch_size`` still applies;
        increase it so that only tokens limit batches. ``None`` sets no limit.
        """,
    )
    curriculum: bool | Sequence[int] | Mapping[int, int] | None = declare(
        CURRICULUM,
        """
        Train on the best-ranked genes first and on more genes in each phase; on the command line, ``progressive`` or
        numbers such as ``500,1200``, and ``standard`` for all genes from the start. ``True`` is 500, 1,200, 2,500 and
        then all genes; a list of increasing numbers divides the epochs evenly; a dict maps numbers of genes to epochs.
        A phase with at least as many genes as are ranked uses all genes; make this the last phase. In every phase,
        batches have about as many tokens as ``batch_size`` cells have with all genes, or ``batch_tokens``. At the start
        of a phase, the learning rate is warmed up again over the fraction ``warmup`` of the phase, and GaLore computes
        new subspaces. Validation uses all genes in every phase, and ``patience`` only counts epochs of the last one.
        """,
        shown_default="all genes from the start",
        aliases=("strategy",),
    )
    max_length: int | None = declare(
        whole(2),
        """
        Maximum number of tokens per training cell, including ``<cls>``; longer cells are resampled every epoch, which
        saves time and reduces overfitting on small data sets. ``None`` uses the maximum of the model. Validation and
        all later predictions use the maximum of the model.
        """,
    )
    optimizer: str = declare(
        OPTIMIZER,
        """
        Name of an optimizer in :data:`scgalore.optim.OPTIMIZERS`, such as ``"galore"`` or ``"adamw"``.
        """,
        default="galore",
    )
    optimizer_options: dict[str, Any] = declare(
        MAPPING,
        """
        Options of the optimizer, such as ``{"rank": 64}``.
        """,
        default={},
    )
    adapter: str | None = declare(
        TEXT,
        """
        Name of an adapter in :data:`scgalore.adapters.ADAPTERS`, whose low-rank factors are trained instead of the
        weights they are attached to; ``None`` trains the weights.
        """,
    )
    adapter_options: dict[str, Any] = declare(
        MAPPING,
        """
        Options of the adapter, such as ``{"targets": "attention"}``.
        """,
        default={},
    )
    embedding: str = declare(
        choice(*EMBEDDINGS),
        """
        Trainable part of the gene embedding (:data:`scgalore.nn.EMBEDDINGS`): ``"rows"`` for the genes in the data,
        ``"full"`` for the whole table, ``"frozen"`` for none.
        """,
        default="rows",
    )
    lr: float | None = declare(
        POSITIVE,
        "Peak learning rate; ``None`` is the default of the optimizer, times the factor of the adapter.",
        shown_default="the default of the optimizer",
    )
    weight_decay: float = declare(
        number("it must be a non-negative number", lambda decay: 0 <= decay < math.inf),
        "Decoupled weight decay.",
        default=0.0,
    )
    dropout: float | None = declare(
        number("it is a probability and must lie in [0, 1)", lambda p: 0 <= p < 1),
        "Dropout probability during training; ``None`` is the default of the network.",
        shown_default="the default of the network",
    )
    warmup: float = declare(
        number("it is a fraction of all steps and must lie in [0, 1]", lambda part: 0 <= part <= 1),
        "Fraction of the steps over which the learning rate increases linearly.",
        default=0.1,
    )
    lr_schedule: Literal["cosine", "constant", "cooldown"] = declare(
        choice("cosine", "constant", "cooldown"),
        """
        Learning rate schedule after the warm-up: ``"cosine"`` decays to 1 % of the peak at the last step;
        ``"constant"`` does not decay, so that a run does not depend on the number of epochs; ``"cooldown"`` is constant
        and decays linearly to 1 % over the last fifth of the steps.
        """,
        default="cosine",
    )
    clip_norm: float = declare(
        number("it must be a positive number; float('inf') disables clipping", lambda norm: norm > 0),
        "Maximum norm of the gradient; infinity disables clipping.",
        default=1.0,
    )
    accumulate: int = declare(
        COUNT,
        """
        Number of batches per optimizer step. The gradient is that of the mean over all predictions of the step,
        independent of how cells are divided into batches.
        """,
        default=1,
    )
    accumulate_tokens: int | None = declare(
        COUNT,
        """
        Approximate number of tokens per optimizer step, over all processes and without padding. Each step uses the
        number of batches that is closest, so this excludes ``accumulate``. The expected number of batches per step, on
        which the learning rate schedule is based, is estimated from the first batches, so the number of steps can
        differ slightly.
        """,
        shown_default="no target",
    )
    gradient_checkpointing: bool = declare(
        SWITCH,
        """
        Whether to recompute activations of the transformer's blocks in the backward pass (gradient checkpointing): only
        the input of each block is kept, which reduces the memory for activations (to a sixth for the whole-human
        model), and a step took 10 to 20 % longer on the CPU used for the measurement.
        """,
        default=False,
    )
    per_layer_update: bool = declare(
        SWITCH,
        """
        Whether to update each weight in the backward pass as soon as its gradient is computed, so that all gradients
        never exist at the same time. Requires ``clip_norm=float("inf")``, ``accumulate=1``, one device and a precision
        other than ``"16-mixed"``.
        """,
        default=False,
    )
    precision: Precision = declare(
        choice(*get_args(Precision)),
        """
        Precision, as in Lightning: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        """,
        default="32-true",
    )
    compile: bool = declare(
        SWITCH,
        """
        Whether to compile the transformer's blocks with :func:`torch.compile`. This takes about a minute, requires a
        C++ compiler, and changes results by rounding errors; measure whether it is faster on your machine.
        """,
        default=False,
    )
    deterministic: bool = declare(
        SWITCH,
        """
        Whether to use only deterministic algorithms of torch. On GPUs, some sums are otherwise computed in varying
        order; CPU runs are reproducible without it. Slower; raises an error for operations without a deterministic
        algorithm.
        """,
        default=False,
    )
    num_workers: int = declare(
        INDEX,
        """
        Number of worker processes that prepare batches; 0 prepares them in the main process, which is sufficient for
        large networks. Does not change the results.
        """,
        default=0,
    )
    patience: int | None = declare(
        COUNT,
        """
        Number of epochs without improvement of the validation score before training stops. Requires validation cells.
        ``None`` is 5 if ``max_epochs`` is ``None`` and there are validation cells; otherwise, all epochs are trained.
        A patience of ``max_epochs`` trains all epochs.
        """,
        shown_default="5, or all epochs if --max-epochs is given",
    )
    accelerator: Accelerator = declare(
        choice(*get_args(Accelerator)),
        """
        Accelerator, as in Lightning: ``"cpu"``, ``"gpu"``, ``"cuda"``, ``"mps"`` or ``"auto"``.
        """,
        default="auto",
        aliases=("device",),
    )
    devices: int | str | list[int] = declare(
        DEVICES,
        """
        Number or list of devices per machine, as in Lightning, with one process per device. ``"auto"`` uses one device
        per process started by torchrun or SLURM, otherwise one. See :doc:`/distributed`.
        """,
        default="auto",
    )
    num_nodes: int = declare(COUNT, "Number of machines.", default=1)
    strategy: Strategy = declare(
        choice(*get_args(Strategy)),
        """
        Distributed strategy: ``"auto"`` (DDP that searches for unused weights only if there are some), ``"ddp"`` or
        ``"ddp_find_unused_parameters_true"``.
        """,
        default="auto",
    )
    shard_optimizer: bool = declare(
        SWITCH,
        """
        Whether to divide the optimizer state among processes (ZeRO stage 1). Does not change the weights. Requires
        several processes.
        """,
        default=False,
    )
    seed: int = declare(
        INDEX,
        """
        Random seed of the run. The same seed gives bitwise identical weights on the same machine with the same number
        of threads; another number of threads changes the order of sums, and small differences grow.
        """,
        default=0,
    )

    def __post_init__(self) -> None:
        for option in options_of(type(self)):
            self._set(option.name, option.check(getattr(self, option.name)))
        self._set("curriculum", check_curriculum(self.curriculum, self.max_epochs))
        if self.max_epochs is None and isinstance(self.curriculum, Mapping):
            self._set("max_epochs", sum(self.curriculum.values()))
        check_options(self.optimizer, self.optimizer_options)
        if self.adapter is not None:
            check_adapter(self.adapter, self.adapter_options)
        elif self.adapter_options:
            msg = f"adapter_options={self.adapter_options!r} without an adapter; choose one of {', '.join(ADAPTERS)}."
            raise OptionError(msg)
        if self.compile:
            check_compiler()
        _build_for_show(self.optimizer, self.optimizer_options)
        if self.shard_optimizer and not OPTIMIZERS[self.optimizer].shardable:
            msg = (
                f"shard_optimizer=True does not support optimizer={self.optimizer!r}, which needs all weights at once. "
                f"Set optimizer={first_with('shardable')!r}."
            )
            raise OptionError(msg)
        if self.per_layer_update:
            self._check_per_layer()

    def _check_per_layer(self) -> None:
        all_at_once = not OPTIMIZERS[self.optimizer].per_layer
        excluded = {
            "clip_norm": (math.isfinite(self.clip_norm), "the norm of all gradients is not known", "float('inf')"),
            "accumulate": (self.accumulate > 1, "gradients are not kept", "1"),
            "accumulate_tokens": (bool(self.accumulate_tokens), "gradients are not kept", "None"),
            "precision": (self.precision == "16-mixed", "all gradients are unscaled together", "'bf16-mixed'"),
            "devices": (_several(self.devices), "gradients are averaged over devices too late", "1"),
            "num_nodes": (self.num_nodes > 1, "gradients are averaged over machines too late", "1"),
            "optimizer": (all_at_once, "it needs all weights at once", repr(first_with("per_layer"))),
        }
        for name, (is_so, why, instead) in excluded.items():
            if is_so:
                msg = f"per_layer_update=True does not support {name}={getattr(self, name)!r}: {why}. Set {name}={instead}."
                raise OptionError(msg)

    @property
    def peak_lr(self) -> float:
        """Peak learning rate: ``lr`` or the default of the optimizer."""
        if self.lr is not None:
            return self.lr
        factor = 1.0 if self.adapter is None else ADAPTERS[self.adapter].lr_factor
        return OPTIMIZERS[self.optimizer].lr * factor

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        """Create from keyword arguments, with ``None`` for defaults.

        Raises
        ------
        OptionError
            If an option does not exist or has a value out of range.
        """
        _refuse_unknown(options, others=())
        return cls(**_given(options))

    @classmethod
    def from_call(cls, options: Mapping[str, Any], *, seed: int, function: Callable[..., Any]) -> Self:
        """Create from the additional keyword arguments of a public function.

        Consistency with the number of processes is checked by ``scgalore.train.processes.training_processes``, which
        such a function calls before it reads anything.

        Parameters
        ----------
        options
            Fields of this class; ``accelerator`` defaults to ``sg.settings.accelerator``.
        seed
            Seed of the run, from the function's ``rng``.
        function
            Public function, whose parameters are suggested for misspelt options.

        Raises
        ------
        OptionError
            If an option does not exist or has a value out of range.
        """
        if "seed" in options:
            msg = f"seed={options['seed']!r}: pass rng={options['seed']!r} instead."
            raise OptionError(msg)
        _refuse_unknown(options, others=signature(function).parameters)
        return cls(**{"accelerator": settings.accelerator, **_given(options), "seed": seed})

    def to_dict(self) -> dict[str, Any]:
        """Settings as a plain dict."""
        return asdict(self)


@overload
def check_curriculum(curriculum: Any, max_epochs: int) -> dict[int, int] | None: ...
@overload
def check_curriculum(curriculum: Any, max_epochs: int | None) -> dict[int, int] | list[int] | None: ...
def check_curriculum(curriculum: Any, max_epochs: int | None) -> dict[int, int] | list[int] | None:
    """Number of epochs for each number of genes.

    Parameters
    ----------
    curriculum
        ``None`` or ``False`` for no curriculum; ``True`` for :data:`DEFAULT_GENES`; increasing numbers of genes, which
        divide the epochs evenly, with any remaining epochs for the last phases; or a mapping of numbers of genes to
        epochs.
    max_epochs
        Number of epochs; if ``None``, increasing numbers are returned as a list, and a mapping can have any epochs.

    Raises
    ------
    OptionError
        If the numbers do not increase, there are more phases than epochs, or the epochs do not add up to
        ``max_epochs``.
    """
    if curriculum is None or curriculum is False:
        return None
    shown = f"curriculum={curriculum!r}"
    if curriculum is True:
        curriculum = DEFAULT_GENES
    if isinstance(curriculum, str) or not isinstance(curriculum, Sequence | Mapping) or not curriculum:
        msg = f"{shown}: expected True, increasing numbers of genes such as [500, 1200], or a dict from numbers of genes to epochs."
        raise OptionError(msg)
    if not all(is_whole(n, 1) for n in curriculum) or any(a >= b for a, b in pairwise(curriculum)):
        msg = f"{shown}: numbers of genes must be integers of at least 1 that increase from phase to phase."
        raise OptionError(msg)
    if not isinstance(curriculum, Mapping):
        if max_epochs is None:
            return [int(n) for n in curriculum]
        if len(curriculum) > max_epochs:
            msg = f"{shown} has {len(curriculum)} phases, but max_epochs={max_epochs}. Each phase needs at least one epoch."
            raise OptionError(msg)
        each, more = divmod(max_epochs, len(curriculum))
        n_short = len(curriculum) - more
        return {int(n): each + (place >= n_short) for place, n in enumerate(curriculum)}
    whole_epochs = all(is_whole(n, 1) for n in curriculum.values())
    if not whole_epochs or max_epochs not in (None, sum(curriculum.values())):
        total = "" if max_epochs is None else f" and add up to max_epochs={max_epochs}"
        msg = f"{shown}: epochs must be integers of at least 1{total}."
        raise OptionError(msg)
    return {int(n): int(epochs) for n, epochs in curriculum.items()}


def _build_for_show(optimizer: str, options: Mapping[str, Any]) -> None:
    """Check the options of an optimizer before weights are loaded, by creating it for a layer on the meta device."""
    layer = torch.nn.Linear(3 * 4096, 4096, device="meta")  # larger than any reasonable rank
    # Overrides refer to parameters of the network, which this layer does not have.
    build_optimizer(optimizer, layer, **{key: value for key, value in options.items() if key != "overrides"})


def _several(devices: int | str | list[int]) -> bool:
    return len(devices) > 1 if isinstance(devices, list) else isinstance(devices, int) and devices > 1


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that are not ``None``, with only one of ``accumulate`` and ``accumulate_tokens``."""
    given = {name: value for name, value in options.items() if value is not None}
    batches, tokens = given.get("accumulate", 1), given.get("accumulate_tokens")
    if batches != 1 and tokens is not None:
        msg = (
            f"accumulate={batches!r} and accumulate_tokens={tokens!r}: the size of a step is given either in batches or in tokens. "
            "Omit one of them."
        )
        raise OptionError(msg)
    return given


def _refuse_unknown(options: Mapping[str, Any], *, others: Iterable[str]) -> None:
    known = [option.name for option in fields(TrainConfig)]
    for name in options:
        if name not in known:
            msg = f"Unknown training option {name!r}.{suggestion(name, [*known, *others])} Choose from {', '.join(sorted(known))}."
            raise OptionError(msg)
