"""How to train: every default in one place, checked before any work starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from inspect import signature
from itertools import pairwise
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import torch

from scgalore._settings import settings
from scgalore.adapters import ADAPTERS, check_adapter
from scgalore.errors import OptionError
from scgalore.nn.embedding import embedding_mode
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
"""More genes than any data have."""

DEFAULT_GENES = (500, 1200, 2500, ALL)
"""Genes of each phase for ``curriculum=True``."""

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Strategy = Literal["auto", "ddp", "ddp_find_unused_parameters_true"]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run.

    Attributes
    ----------
    max_epochs
        Passes over the training cells.
    batch_size
        Most cells in a batch, of each process where there are several. ``"auto"`` begins with the default and halves it until
        the estimate of :func:`scgalore.estimate_memory` fits into the memory that is free, with ``accumulate`` doubled
        each time; a resumed run goes on as it began. Not for several processes.
    batch_tokens
        Most tokens in a batch, padding included, so that batches of short cells hold more cells than those of long ones and
        a step takes about the same time and memory; a longer cell is a batch by itself. ``batch_size`` is a cap beside
        it: raise that to let tokens decide. ``None`` sets no cap.
    curriculum
        Train on the best-ranked genes first and on more of them in each phase: ``True`` for 500, 1,200, 2,500 and then all
        genes, a list of rising numbers, which share the epochs out evenly, or a dict of numbers of genes and their epochs. A
        phase of as many genes as are ranked, or more, trains on all; let the last one be such. Batches have about as many tokens in every phase as
        ``batch_size`` cells have with all genes, or ``batch_tokens``; the learning rate rises anew after a switch, over the
        share ``warmup`` of the phase, and GaLore finds new subspaces. Validation uses all genes in every phase, and
        ``patience`` counts epochs of the last one.
    max_length
        Most tokens of a training cell, ``<cls>`` included; longer cells are sampled anew every epoch, which saves time and
        keeps a small data set from being learnt by heart. ``None`` trains on all that the model reads. Whatever is
        measured or written afterwards uses all of them.
    optimizer
        Entry of :data:`scgalore.optim.OPTIMIZERS`.
    optimizer_options
        What to pass to it, such as ``{"rank": 64}``.
    adapter
        Entry of :data:`scgalore.adapters.ADAPTERS`, whose low-rank factors are trained in place of the weights they are
        attached to; ``None`` trains the weights themselves.
    adapter_options
        What to pass to it, such as ``{"targets": "attention"}``.
    embedding
        Entry of :data:`scgalore.nn.EMBEDDINGS`: ``"rows"`` trains the gene embeddings of the genes at hand, ``"full"``
        the whole table, ``"frozen"`` none of it.
    lr
        Peak learning rate; when ``None`` the optimizer's own default, times the adapter's factor.
    weight_decay
        Decoupled weight decay.
    dropout
        Probability of dropout while training; ``None`` is the network's own.
    warmup
        Share of all steps over which the learning rate rises linearly; it falls along a half cosine after that.
    clip_norm
        Largest norm of the gradient; infinity does not clip.
    accumulate
        Batches whose gradients are added up before a step.
    gradient_checkpointing
        Whether the transformer's blocks keep their inputs alone and compute the rest once more in the backward pass: memory
        for activations falls from all of a block's to one tensor a block (of a whole-human network to a sixth), and a step
        took a tenth to a fifth longer on the CPU it was measured on.
    per_layer_update
        Whether each weight is updated as soon as its gradient is there, in the backward pass, so that gradients never exist
        together. Needs ``clip_norm=float("inf")``, ``accumulate=1``, one device and a precision other than
        ``"16-mixed"``.
    precision
        Lightning's name of the arithmetic: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
    compile
        Whether :func:`torch.compile` makes kernels for the transformer's blocks. That takes a minute or so, needs a C++
        compiler, and changes the last bits of the numbers; whether it wins has to be measured on the machine.
    deterministic
        Whether torch may use deterministic algorithms only, which matters on GPUs: some sums there are added up in any
        order otherwise. Slower; an operation that has none raises. On CPU runs repeat without it.
    num_workers
        Processes that make batches beside the network; 0 makes them in between, which costs little where the network is
        large. It does not change the results.
    patience
        Epochs without a better validation score before training stops; ``None`` never stops early. Needs validation cells.
    accelerator
        Where to train, in Lightning's words.
    devices
        How many devices on each machine, or which, in Lightning's words; each has a process of its own. ``"auto"`` takes as
        many as torchrun or SLURM has started processes, else one. See :doc:`/distributed`.
    num_nodes
        Number of machines.
    strategy
        How processes work together: ``"auto"``, which is DDP that looks for unused weights where there are some, ``"ddp"``
        or ``"ddp_find_unused_parameters_true"``.
    shard_optimizer
        Whether each process keeps the optimizer's state of its share of the weights only (ZeRO stage 1). The weights are
        those of the run without it. Needs several processes.
    seed
        Seed of everything random in the run. The same seed gives the same weights, bit for bit, on the same machine with the
        same number of threads; other numbers of threads add up in another order, and small differences grow.
    """

    max_epochs: int = 10
    batch_size: int | Literal["auto"] = DEFAULT_BATCH_SIZE
    batch_tokens: int | None = None
    curriculum: bool | Sequence[int] | Mapping[int, int] | None = None
    max_length: int | None = None
    optimizer: str = "galore"
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    adapter: str | None = None
    adapter_options: dict[str, Any] = field(default_factory=dict)
    embedding: str = "rows"
    lr: float | None = None
    weight_decay: float = 0.0
    dropout: float | None = None
    warmup: float = 0.1
    clip_norm: float = 1.0
    accumulate: int = 1
    gradient_checkpointing: bool = False
    per_layer_update: bool = False
    precision: Precision = "32-true"
    compile: bool = False
    deterministic: bool = False
    num_workers: int = 0
    patience: int | None = None
    accelerator: Accelerator = "auto"
    devices: int | str | list[int] = "auto"
    num_nodes: int = 1
    strategy: Strategy = "auto"
    shard_optimizer: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        least_of = {"max_epochs": 1, "accumulate": 1, "num_workers": 0, "num_nodes": 1, "seed": 0}
        for name, least in least_of.items():
            self._set(name, _whole(name, getattr(self, name), least))
        if self.batch_size != "auto":
            self._set("batch_size", _whole("batch_size", self.batch_size, 1, others=", or 'auto'"))
        for name, least in (("batch_tokens", 1), ("max_length", 2), ("patience", 1)):
            self._set(name, _whole(name, getattr(self, name), least, optional=True))
        self._set("curriculum", check_curriculum(self.curriculum, self.max_epochs))
        number = "it must be a positive number"
        self._check("lr", lambda lr: 0 < lr < math.inf, f"{number}, or None for the optimizer's default", optional=True)
        self._check("clip_norm", lambda norm: norm > 0, f"{number}; float('inf') does not clip")
        self._check("dropout", lambda p: 0 <= p < 1, "it is a probability and must lie in [0, 1)", optional=True)
        self._check("warmup", lambda share: 0 <= share <= 1, "it is a share of all steps and must lie in [0, 1]")
        self._check("weight_decay", lambda decay: 0 <= decay < math.inf, "it must be a number that is not negative")
        for name, choices in (("precision", Precision), ("accelerator", Accelerator), ("strategy", Strategy)):
            if getattr(self, name) not in get_args(choices):
                msg = f"{name}={getattr(self, name)!r}: choose one of {', '.join(map(repr, get_args(choices)))}."
                raise OptionError(msg)
        self._check_switches()
        if not isinstance(self.optimizer, str) or not isinstance(self.optimizer_options, Mapping):
            msg = (
                f"optimizer={self.optimizer!r}, optimizer_options={self.optimizer_options!r}: expected a name and a "
                "dict of its options, for example optimizer='galore', optimizer_options={'rank': 64}."
            )
            raise OptionError(msg)
        if not (self.adapter is None or isinstance(self.adapter, str)) or not isinstance(self.adapter_options, Mapping):
            msg = (
                f"adapter={self.adapter!r}, adapter_options={self.adapter_options!r}: expected a name or None, and a dict "
                "of its options, for example adapter='lora', adapter_options={'rank': 8}."
            )
            raise OptionError(msg)
        if self.adapter is None and self.adapter_options:
            msg = f"adapter_options={self.adapter_options!r} without an adapter; choose one of {', '.join(ADAPTERS)}."
            raise OptionError(msg)
        embedding_mode(self.embedding)
        if self.adapter is not None:
            check_adapter(self.adapter, self.adapter_options)
        _build_for_show(self.optimizer, self.optimizer_options)
        if self.shard_optimizer and not OPTIMIZERS[self.optimizer].shardable:
            msg = (
                f"shard_optimizer=True excludes optimizer={self.optimizer!r}, which works on all weights at once. "
                f"Set optimizer={first_with('shardable')!r}."
            )
            raise OptionError(msg)
        if self.per_layer_update:
            self._check_per_layer()

    def _check_switches(self) -> None:
        names = ("gradient_checkpointing", "per_layer_update", "compile", "deterministic", "shard_optimizer")
        for name in names:
            if not isinstance(getattr(self, name), bool):
                msg = f"{name}={getattr(self, name)!r}: it is True or False."
                raise OptionError(msg)
        _check_devices(self.devices)
        if self.compile:
            check_compiler()

    def _check_per_layer(self) -> None:
        all_at_once = not OPTIMIZERS[self.optimizer].per_layer
        excluded = {
            "clip_norm": (math.isfinite(self.clip_norm), "the norm of all gradients is never known", "float('inf')"),
            "accumulate": (self.accumulate > 1, "a gradient is used up as soon as it is there", "1"),
            "precision": (self.precision == "16-mixed", "gradients are unscaled all together", "'bf16-mixed'"),
            "devices": (_several(self.devices), "gradients are averaged over devices too late", "1"),
            "num_nodes": (self.num_nodes > 1, "gradients are averaged over machines too late", "1"),
            "optimizer": (all_at_once, "it works on all weights at once", repr(first_with("per_layer"))),
        }
        for name, (is_so, why, instead) in excluded.items():
            if is_so:
                msg = f"per_layer_update=True excludes {name}={getattr(self, name)!r}: {why}. Set {name}={instead}."
                raise OptionError(msg)

    @property
    def peak_lr(self) -> float:
        """Learning rate at its peak, chosen or the default."""
        if self.lr is not None:
            return self.lr
        factor = 1.0 if self.adapter is None else ADAPTERS[self.adapter].lr_factor
        return OPTIMIZERS[self.optimizer].lr * factor

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check(self, name: str, fits: Callable[[float], bool], expected: str, *, optional: bool = False) -> None:
        value = getattr(self, name)
        if optional and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, Real) or not fits(float(value)):
            msg = f"{name}={value!r}: {expected}."
            raise OptionError(msg)
        self._set(name, float(value))

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        """Build from keyword arguments where ``None`` means the default.

        Raises
        ------
        OptionError
            If an option does not exist or has a value out of range.
        """
        _refuse_unknown(options, others=())
        return cls(**{name: value for name, value in options.items() if value is not None})

    @classmethod
    def from_call(cls, options: Mapping[str, Any], *, seed: int, function: Callable[..., Any]) -> Self:
        """Build from the further keyword arguments of a user's function.

        Whether the options go with the processes there are is for :func:`~scgalore.train.processes.training_processes` to
        say, which such a function calls before it reads anything.

        Parameters
        ----------
        options
            Fields of this class; where to compute is ``sg.settings.accelerator`` unless it is among them.
        seed
            Seed of the run, from the function's own ``rng``.
        function
            Its parameters may be what a misspelt option was meant to be.

        Raises
        ------
        OptionError
            If an option does not exist or has a value out of range.
        """
        if "seed" in options:
            msg = f"seed={options['seed']!r}: pass rng={options['seed']!r} instead, which is the seed of everything random."
            raise OptionError(msg)
        _refuse_unknown(options, others=signature(function).parameters)
        given = {name: value for name, value in options.items() if value is not None}
        return cls(**{"accelerator": settings.accelerator, **given, "seed": seed})

    def to_dict(self) -> dict[str, Any]:
        """Give the settings as a plain dict."""
        return asdict(self)


def check_curriculum(curriculum: Any, max_epochs: int) -> dict[int, int] | None:
    """Say how many epochs each number of genes gets.

    Parameters
    ----------
    curriculum
        ``None`` or ``False``: none. ``True``: :data:`DEFAULT_GENES`. Increasing numbers of genes, which share the epochs out
        evenly, the last ones taking what is left over. Or a mapping of numbers of genes to epochs.
    max_epochs
        Epochs of the run.

    Raises
    ------
    OptionError
        If the numbers do not rise, or there are more phases than epochs, or the epochs do not add up.
    """
    if curriculum is None or curriculum is False:
        return None
    shown = f"curriculum={curriculum!r}"
    if curriculum is True:
        curriculum = DEFAULT_GENES
    if isinstance(curriculum, str) or not isinstance(curriculum, Sequence | Mapping) or not curriculum:
        msg = f"{shown}: give True, rising numbers of genes such as [500, 1200], or a dict of their epochs."
        raise OptionError(msg)
    if not all(_is_whole(n) for n in curriculum) or any(a >= b for a, b in pairwise(curriculum)):
        msg = f"{shown}: numbers of genes must be whole, at least 1, and rise from phase to phase."
        raise OptionError(msg)
    if not isinstance(curriculum, Mapping):
        if len(curriculum) > max_epochs:
            msg = f"{shown} has {len(curriculum)} phases, and max_epochs={max_epochs}. Each phase needs an epoch."
            raise OptionError(msg)
        each, more = divmod(max_epochs, len(curriculum))
        n_short = len(curriculum) - more
        return {int(n): each + (place >= n_short) for place, n in enumerate(curriculum)}
    if not all(_is_whole(n) for n in curriculum.values()) or sum(curriculum.values()) != max_epochs:
        msg = f"{shown}: epochs must be whole, at least 1 each, and add up to max_epochs={max_epochs}."
        raise OptionError(msg)
    return {int(n): int(epochs) for n, epochs in curriculum.items()}


def _build_for_show(optimizer: str, options: Mapping[str, Any]) -> None:
    """Let an optimizer refuse its options before weights are loaded: it is built for a layer without memory."""
    check_options(optimizer, options)
    layer = torch.nn.Linear(3 * 4096, 4096, device="meta")  # larger than any sensible rank
    # Overrides name parameters of the network, which this layer has not.
    build_optimizer(optimizer, layer, **{key: value for key, value in options.items() if key != "overrides"})


def _several(devices: int | str | list[int]) -> bool:
    return len(devices) > 1 if isinstance(devices, list) else isinstance(devices, int) and devices > 1


def _check_devices(devices: Any) -> None:
    if isinstance(devices, str):
        fits = devices == "auto" or all(part.strip().removeprefix("-").isdigit() for part in devices.split(","))
    elif isinstance(devices, list):
        fits = len(devices) > 0 and all(isinstance(number, int) and number >= 0 for number in devices)
    else:
        fits = isinstance(devices, int) and not isinstance(devices, bool) and (devices >= 1 or devices == -1)
    if not fits:
        msg = f"devices={devices!r}: give a number of devices, a list of their numbers, -1 for all, or 'auto'."
        raise OptionError(msg)


def _whole(name: str, value: Any, least: int, *, optional: bool = False, others: str = "") -> int | None:
    if optional and value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        msg = f"{name}={value!r}: it must be a whole number, at least {least}{others}."
        raise OptionError(msg)
    return int(value)


def _refuse_unknown(options: Mapping[str, Any], *, others: Iterable[str]) -> None:
    known = [option.name for option in fields(TrainConfig)]
    for name in options:
        if name not in known:
            close = get_close_matches(name, [*known, *others], n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            msg = f"There is no training option {name!r}.{hint} The options are {', '.join(sorted(known))}."
            raise OptionError(msg)


def _is_whole(number: Any) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool) and int(number) >= 1
