"""How to train: every default in one place, checked before any work starts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Literal, Self, get_args

from scgalore.errors import OptionError

__all__ = ["Precision", "TrainConfig"]

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run.

    Attributes
    ----------
    max_epochs
        Passes over the training cells.
    batch_size
        Cells in a batch.
    optimizer, optimizer_options
        Entry of :data:`scgalore.optim.OPTIMIZERS` and what to pass to it.
    lr
        Peak learning rate; the optimizer's own default when ``None``.
    weight_decay
        Decoupled weight decay.
    warmup
        Share of all steps over which the learning rate rises linearly; it falls along a half cosine after that.
    clip_norm
        Largest norm of the gradient; infinity does not clip.
    accumulate
        Batches whose gradients are added up before a step.
    precision
        Lightning's name of the arithmetic: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
    patience
        Epochs without a better validation score before training stops; ``None`` never stops early.
    accelerator, devices
        Where to train, in Lightning's words.
    seed
        Seed of everything random in the run.
    """

    max_epochs: int = 10
    batch_size: int = 32
    optimizer: str = "galore"
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    lr: float | None = None
    weight_decay: float = 0.0
    warmup: float = 0.1
    clip_norm: float = 1.0
    accumulate: int = 1
    precision: Precision = "32-true"
    patience: int | None = None
    accelerator: str = "auto"
    devices: int | str | list[int] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_epochs", "batch_size", "accumulate", "patience"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                msg = f"{name}={value!r}: it must be a whole number, at least 1."
                raise OptionError(msg)
        if self.lr is not None and not 0 < self.lr < float("inf"):
            msg = f"lr={self.lr!r}: it must be a positive number, or None for the optimizer's default."
            raise OptionError(msg)
        if not self.clip_norm > 0:
            msg = f"clip_norm={self.clip_norm!r}: it must be positive; float('inf') does not clip."
            raise OptionError(msg)
        if not 0 <= self.warmup <= 1:
            msg = f"warmup={self.warmup!r}: it is a share of all steps and must lie in [0, 1]."
            raise OptionError(msg)
        if self.weight_decay < 0:
            msg = f"weight_decay={self.weight_decay!r}: it must not be negative."
            raise OptionError(msg)
        if self.precision not in get_args(Precision):
            msg = f"precision={self.precision!r}: choose one of {get_args(Precision)}."
            raise OptionError(msg)

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        """Build from keyword arguments where ``None`` means the default.

        Raises
        ------
        OptionError
            If an option does not exist or has a value out of range.
        """
        known = {option.name: option for option in fields(cls)}
        for name in options:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                msg = f"There is no training option {name!r}.{hint} The options are {sorted(known)}."
                raise OptionError(msg)
        return cls(**{name: value for name, value in options.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """Give the settings as a plain dict."""
        return asdict(self)
