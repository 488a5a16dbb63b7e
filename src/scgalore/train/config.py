"""How to train: every default in one place, checked before any work starts."""

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
"""More genes than any data have."""

DEFAULT_GENES = (500, 1200, 2500, ALL)
"""Genes of each phase for ``curriculum=True``."""

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
    "give True, rising numbers of genes such as [500, 1200], or a dict of their epochs",
    lambda value: True,
    _read_curriculum,
    # JSON has no numbers as names.
    lambda value: {int(n): epochs for n, epochs in value.items()} if _are_digits(value) else value,
)
DEVICES = Kind(
    "give a number of devices, a list of their numbers, -1 for all, or 'auto'", _are_devices, as_json, _plain_devices
)
OFTEN = Kind(
    "give a number of steps, or a time such as '30 min' or '2 h'",
    lambda value: seconds_of(value) is not None if isinstance(value, str) else is_whole(value, 1),
    as_json,
    lambda value: value if isinstance(value, str) else int(value),
)
OPTIMIZER = Kind("it must be the name of an optimizer", lambda value: isinstance(value, str))


@documented
@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run."""

    max_epochs: int | None = declare(
        COUNT,
        """
        Passes over the training cells. ``None`` takes as many as give at least 500 steps of the optimizer, 10 at least and 100
        at most, and sets ``patience`` to 5; a stream, whose cells are not counted, is passed over 10 times. A run that is
        continued keeps its own.
        """,
        shown_default="as many as give 500 steps, 10 to 100",
        aliases=("epochs",),
    )
    steps_per_epoch: int | None = declare(
        COUNT,
        """
        Steps of the optimizer that count as an epoch, for a stream of files whose passes take hours: after so many of them it is
        validated and a checkpoint is written, and the next epoch goes on where the last has ended. ``None`` passes over all cells.
        """,
        shown_default="a pass over all cells",
    )
    checkpoint_every: int | str | None = declare(
        OFTEN,
        """
        Steps of the optimizer, such as ``500``, or a time, such as ``"30 min"``, after which a checkpoint is written inside an epoch
        too. A run that is continued goes on from there. Needs ``checkpoint_dir``. ``None`` writes one after each epoch only.
        """,
        shown_default="after each epoch",
    )
    batch_size: int | Literal["auto"] = declare(
        whole(1, others=("auto",)),
        """
        Maximum number of cells per batch, of each process where there are several. ``"auto"`` begins with the default and halves it until
        the estimate of :func:`scgalore.estimate_memory` fits into the memory that is free, with ``accumulate`` doubled
        each time; a resumed run keeps its own. Not for several processes.
        """,
        default=DEFAULT_BATCH_SIZE,
    )
    batch_tokens: int | None = declare(
        COUNT,
        """
        Maximum number of tokens per batch, padding included, so that batches of short cells hold more cells than those of long ones and
        a step takes about the same time and memory; a longer cell is a batch by itself. ``batch_size`` is a further cap: raise that to let tokens decide. ``None`` sets no cap.
        """,
    )
    curriculum: bool | Sequence[int] | Mapping[int, int] | None = declare(
        CURRICULUM,
        """
        Train on the best-ranked genes first and on more of them in each phase; on the command line, ``progressive`` or numbers
        such as ``500,1200``, and ``standard`` for all genes from the start. ``True`` is 500, 1,200, 2,500 and then all genes;
        a list of rising numbers shares the epochs out evenly; a dict has numbers of genes and their epochs. A
        phase of as many genes as are ranked, or more, trains on all; let the last one be such. Batches have about as many tokens in every phase as
        ``batch_size`` cells have with all genes, or ``batch_tokens``; the learning rate rises anew after a switch, over the
        share ``warmup`` of the phase, and GaLore finds new subspaces. Validation uses all genes in every phase, and
        ``patience`` counts epochs of the last one.
        """,
        shown_default="all genes from the start",
        aliases=("strategy",),
    )
    max_length: int | None = declare(
        whole(2),
        """
        Maximum number of tokens per training cell, ``<cls>`` included; longer cells are sampled anew every epoch, which saves time and
        reduces overfitting on small data sets. ``None`` trains on all that the model reads. Whatever is
        measured or written afterwards uses all of them.
        """,
    )
    optimizer: str = declare(
        OPTIMIZER,
        """
        Entry of :data:`scgalore.optim.OPTIMIZERS`, such as ``"galore"`` or ``"adamw"``.
        """,
        default="galore",
    )
    optimizer_options: dict[str, Any] = declare(
        MAPPING,
        """
        What to pass to it, such as ``{"rank": 64}``.
        """,
        default={},
    )
    adapter: str | None = declare(
        TEXT,
        """
        Entry of :data:`scgalore.adapters.ADAPTERS`, whose low-rank factors are trained in place of the weights they are
        attached to; ``None`` trains the weights themselves.
        """,
    )
    adapter_options: dict[str, Any] = declare(
        MAPPING,
        """
        What to pass to it, such as ``{"targets": "attention"}``.
        """,
        default={},
    )
    embedding: str = declare(
        choice(*EMBEDDINGS),
        """
        Entry of :data:`scgalore.nn.EMBEDDINGS`: ``"rows"`` trains the gene embeddings of the genes in the data, ``"full"``
        the whole table, ``"frozen"`` none of it.
        """,
        default="rows",
    )
    lr: float | None = declare(
        POSITIVE,
        "Peak learning rate; when ``None`` the optimizer's own default, times the adapter's factor.",
        shown_default="the optimizer's own",
    )
    weight_decay: float = declare(
        number("it must be a number that is not negative", lambda decay: 0 <= decay < math.inf),
        "Decoupled weight decay.",
        default=0.0,
    )
    dropout: float | None = declare(
        number("it is a probability and must lie in [0, 1)", lambda p: 0 <= p < 1),
        "Probability of dropout while training; ``None`` is the network's own.",
        shown_default="the network's own",
    )
    warmup: float = declare(
        number("it is a fraction of all steps and must lie in [0, 1]", lambda part: 0 <= part <= 1),
        "Share of all steps over which the learning rate rises linearly.",
        default=0.1,
    )
    lr_schedule: Literal["cosine", "constant", "cooldown"] = declare(
        choice("cosine", "constant", "cooldown"),
        """
        How the learning rate goes on after the warm-up: ``"cosine"`` falls along a half cosine to a hundredth of the peak in
        the last step, ``"constant"`` stays, so that a run does not depend on how many epochs follow, ``"cooldown"`` stays and
        falls linearly to a hundredth over the last fifth of the steps.
        """,
        default="cosine",
    )
    clip_norm: float = declare(
        number("it must be a positive number; float('inf') does not clip", lambda norm: norm > 0),
        "Largest norm of the gradient; infinity does not clip.",
        default=1.0,
    )
    accumulate: int = declare(
        COUNT,
        """
        Batches of a step of the optimizer. Its gradient is that of the mean over all that is predicted in them, wherever batches
        are cut.
        """,
        default=1,
    )
    accumulate_tokens: int | None = declare(
        COUNT,
        """
        Tokens that a step of the optimizer has about, of all processes and without padding, in place of a number of batches. It takes
        as many batches as come nearest, so it excludes ``accumulate``. How many a step is expected to have, by which epochs and the
        schedule of the learning rate are counted, is found out from the first batches. So a run may take some steps more or
        fewer than were asked for.
        """,
        shown_default="any number",
    )
    gradient_checkpointing: bool = declare(
        SWITCH,
        """
        Whether the transformer's blocks keep their inputs alone and compute the rest once more in the backward pass: memory
        for activations falls from all of a block's to one tensor a block (of a whole-human network to a sixth), and a step
        took a tenth to a fifth longer on the CPU it was measured on.
        """,
        default=False,
    )
    per_layer_update: bool = declare(
        SWITCH,
        """
        Whether each weight is updated as soon as its gradient is there, in the backward pass, so that gradients never exist
        together. Needs ``clip_norm=float("inf")``, ``accumulate=1``, one device and a precision other than
        ``"16-mixed"``.
        """,
        default=False,
    )
    precision: Precision = declare(
        choice(*get_args(Precision)),
        """
        Lightning's name of the arithmetic: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        """,
        default="32-true",
    )
    compile: bool = declare(
        SWITCH,
        """
        Whether :func:`torch.compile` makes kernels for the transformer's blocks. That takes a minute or so, needs a C++
        compiler, and changes the last bits of the numbers; whether it wins has to be measured on the machine.
        """,
        default=False,
    )
    deterministic: bool = declare(
        SWITCH,
        """
        Whether torch may use deterministic algorithms only, which matters on GPUs: some sums there are added up in any
        order otherwise. Slower; an operation that has none raises. On CPU runs repeat without it.
        """,
        default=False,
    )
    num_workers: int = declare(
        INDEX,
        """
        Processes that make batches beside the network; 0 makes them in between, which costs little where the network is
        large. It does not change the results.
        """,
        default=0,
    )
    patience: int | None = declare(
        COUNT,
        """
        Epochs without a better validation score before training stops. Needs validation cells. ``None`` is 5 where
        ``max_epochs`` is left open and there are such cells, and else trains all epochs. As many as ``max_epochs`` train all epochs.
        """,
        shown_default="5, or all epochs where --max-epochs is given",
    )
    accelerator: Accelerator = declare(
        choice(*get_args(Accelerator)),
        """
        Where to train, in Lightning's words: ``"cpu"``, ``"gpu"``, ``"cuda"``, ``"mps"`` or ``"auto"``.
        """,
        default="auto",
        aliases=("device",),
    )
    devices: int | str | list[int] = declare(
        DEVICES,
        """
        How many devices on each machine, or which, in Lightning's words; each has a process of its own. ``"auto"`` takes as
        many as torchrun or SLURM has started processes, else one. See :doc:`/distributed`.
        """,
        default="auto",
    )
    num_nodes: int = declare(COUNT, "Number of machines.", default=1)
    strategy: Strategy = declare(
        choice(*get_args(Strategy)),
        """
        How processes work together: ``"auto"``, which is DDP that looks for unused weights where there are some, ``"ddp"``
        or ``"ddp_find_unused_parameters_true"``.
        """,
        default="auto",
    )
    shard_optimizer: bool = declare(
        SWITCH,
        """
        Whether each process keeps the optimizer's state of its share of the weights only (ZeRO stage 1). The weights are
        those of the run without it. Needs several processes.
        """,
        default=False,
    )
    seed: int = declare(
        INDEX,
        """
        Seed of everything random in the run. The same seed gives the same weights, bit for bit, on the same machine with the
        same number of threads; other numbers of threads add up in another order, and small differences grow.
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
                f"shard_optimizer=True excludes optimizer={self.optimizer!r}, which works on all weights at once. "
                f"Set optimizer={first_with('shardable')!r}."
            )
            raise OptionError(msg)
        if self.per_layer_update:
            self._check_per_layer()

    def _check_per_layer(self) -> None:
        all_at_once = not OPTIMIZERS[self.optimizer].per_layer
        excluded = {
            "clip_norm": (math.isfinite(self.clip_norm), "the norm of all gradients is never known", "float('inf')"),
            "accumulate": (self.accumulate > 1, "a gradient is used up as soon as it is there", "1"),
            "accumulate_tokens": (bool(self.accumulate_tokens), "a gradient is used up as soon as it is there", "None"),
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

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        """Build from keyword arguments where ``None`` means the default.

        Raises
        ------
        OptionError
            If an option does not exist or has a value out of range.
        """
        _refuse_unknown(options, others=())
        return cls(**_given(options))

    @classmethod
    def from_call(cls, options: Mapping[str, Any], *, seed: int, function: Callable[..., Any]) -> Self:
        """Build from the further keyword arguments of a user's function.

        Whether the options go with the processes there are is for ``scgalore.train.processes.training_processes`` to
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
        return cls(**{"accelerator": settings.accelerator, **_given(options), "seed": seed})

    def to_dict(self) -> dict[str, Any]:
        """Give the settings as a plain dict."""
        return asdict(self)


@overload
def check_curriculum(curriculum: Any, max_epochs: int) -> dict[int, int] | None: ...
@overload
def check_curriculum(curriculum: Any, max_epochs: int | None) -> dict[int, int] | list[int] | None: ...
def check_curriculum(curriculum: Any, max_epochs: int | None) -> dict[int, int] | list[int] | None:
    """Say how many epochs each number of genes gets.

    Parameters
    ----------
    curriculum
        ``None`` or ``False``: none. ``True``: :data:`DEFAULT_GENES`. Increasing numbers of genes, which share the epochs out
        evenly, the last ones taking what is left over. Or a mapping of numbers of genes to epochs.
    max_epochs
        Epochs of the run; while they are open, rising numbers stay a list, and a mapping may have any epochs.

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
    if not all(is_whole(n, 1) for n in curriculum) or any(a >= b for a, b in pairwise(curriculum)):
        msg = f"{shown}: numbers of genes must be whole, at least 1, and rise from phase to phase."
        raise OptionError(msg)
    if not isinstance(curriculum, Mapping):
        if max_epochs is None:
            return [int(n) for n in curriculum]
        if len(curriculum) > max_epochs:
            msg = f"{shown} has {len(curriculum)} phases, and max_epochs={max_epochs}. Each phase needs an epoch."
            raise OptionError(msg)
        each, more = divmod(max_epochs, len(curriculum))
        n_short = len(curriculum) - more
        return {int(n): each + (place >= n_short) for place, n in enumerate(curriculum)}
    whole_epochs = all(is_whole(n, 1) for n in curriculum.values())
    if not whole_epochs or max_epochs not in (None, sum(curriculum.values())):
        total = "" if max_epochs is None else f", and add up to max_epochs={max_epochs}"
        msg = f"{shown}: epochs must be whole, at least 1 each{total}."
        raise OptionError(msg)
    return {int(n): int(epochs) for n, epochs in curriculum.items()}


def _build_for_show(optimizer: str, options: Mapping[str, Any]) -> None:
    """Let an optimizer refuse its options before weights are loaded: it is built for a layer without memory."""
    layer = torch.nn.Linear(3 * 4096, 4096, device="meta")  # larger than any sensible rank
    # Overrides name parameters of the network, which this layer has not.
    build_optimizer(optimizer, layer, **{key: value for key, value in options.items() if key != "overrides"})


def _several(devices: int | str | list[int]) -> bool:
    return len(devices) > 1 if isinstance(devices, list) else isinstance(devices, int) and devices > 1


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that were set. Of those of a step there is one; a settled configuration has the number of batches besides."""
    given = {name: value for name, value in options.items() if value is not None}
    batches, tokens = given.get("accumulate", 1), given.get("accumulate_tokens")
    if batches != 1 and tokens is not None:
        msg = (
            f"accumulate={batches!r} and accumulate_tokens={tokens!r}: the tokens of a step come in place of a number of batches. "
            "Leave one of them out."
        )
        raise OptionError(msg)
    return given


def _refuse_unknown(options: Mapping[str, Any], *, others: Iterable[str]) -> None:
    known = [option.name for option in fields(TrainConfig)]
    for name in options:
        if name not in known:
            msg = f"There is no training option {name!r}.{suggestion(name, [*known, *others])} The options are {', '.join(sorted(known))}."
            raise OptionError(msg)
