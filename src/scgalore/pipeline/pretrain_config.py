"""What a pre-training run is made of: one object, which ``config.json`` holds completely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

from scgalore._options import INDEX, TEXT, Kind, Option, as_json, choice, comma_separated, options_of, suggestion
from scgalore.errors import OptionError
from scgalore.pipeline.config import NOT_IN_RUNS, absolute, config_text, listed, read_config
from scgalore.tl._pretraining import PretrainingOptions
from scgalore.train.config import TrainConfig

if TYPE_CHECKING:
    from scgalore._typing import PathLike

__all__ = ["PretrainConfig", "pretrain_options"]

KIND = "scgalore pretrain"
"""Marks ``config.json`` as ours."""

FREE = ("sources", "out", "accelerator", "logger", "num_workers", "checkpoint_every", "shard_optimizer")
"""Options in which a run that is continued may differ from the one that was begun; moved files are compared by their content."""

CHANGES: dict[str, dict[str, Any]] = {
    "steps_per_epoch": {"default": 500, "shown_default": None},
    "optimizer": {"default": "adamw", "shown_default": None},
    "patience": {"shown_default": "all epochs"},
}
"""Options of training whose default is another one in pre-training, or has other words."""

SIZES = Kind(
    "give sizes of a network by name, such as {'d_model': 256, 'n_layers': 6}",
    lambda value: isinstance(value, Mapping) and len(value) > 0,
    lambda text: {name: as_json(value) for name, value in (part.split("=", 1) for part in comma_separated(text))},
    dict,
)

OWN = (
    Option(
        "model",
        TEXT,
        "Name of registered weights (see: scgalore weights list), or folder of a checkpoint; with sizes, the family of the network.",
        default="scgpt-mini",
    ),
    Option(
        "sizes",
        SIZES,
        "Start from random weights of these sizes, such as d_model=256,n_layers=6,n_heads=8,d_hid=512, with a vocabulary of the genes in the files.",
    ),
    Option(
        "labels_key",
        TEXT,
        "Column of obs by which embeddings of held-out cells are scored before and after, next to principal components.",
        column="obs",
    ),
    Option(
        "logger", choice("csv", "tensorboard"), "Where losses are logged: csv or tensorboard.", shown_default="nowhere"
    ),
    Option("rng", INDEX, "Seed of everything random.", default=0, aliases=("seed",)),
)


def pretrain_options() -> tuple[tuple[Option, str], ...]:
    """Every option of a pre-training run, each with its heading in the help."""
    left = {"max_epochs", "curriculum", "batch_tokens", *NOT_IN_RUNS} - {"steps_per_epoch", "shard_optimizer"}
    training = [
        replace(option, **CHANGES.get(option.name, {})) for option in options_of(TrainConfig) if option.name not in left
    ]
    return (
        *((option, "Model and scores") for option in OWN),
        *((option, "Cells and budget") for option in options_of(PretrainingOptions)),
        *((option, "Training") for option in training),
    )


@dataclass(frozen=True, init=False)
class PretrainConfig:
    """Everything that decides the numbers of a pre-training run.

    Options are those of :func:`scgalore.tl.pretrain` and the fields of :class:`~scgalore.train.TrainConfig`, and ``sizes``, which
    makes a network with random weights of the family that ``model`` names, ``labels_key``, ``logger`` and ``rng``.

    Parameters
    ----------
    sources
        Files and folders of files, or a dict of named lists of them.
    out
        Folder to make.
    **options
        As above.

    Raises
    ------
    OptionError
        If an option does not exist or has a value out of range.
    """

    sources: Any
    out: str
    options: dict[str, Any]
    version: str | None = None

    def __init__(self, sources: Any, out: PathLike, *, version: str | None = None, **options: Any) -> None:
        declared = {option.name: option for option, _ in pretrain_options()}
        for name in options:
            if name not in declared:
                msg = f"There is no option {name!r} of pre-training.{suggestion(name, declared)} The options are {', '.join(declared)}."
                raise OptionError(msg)
        chosen = {
            name: listed(option.check(option.default if options.get(name) is None else options[name]))
            for name, option in declared.items()
        }
        PretrainingOptions(**{field.name: chosen[field.name] for field in fields(PretrainingOptions)})  # one budget
        values = {"sources": _paths(sources), "out": absolute("out", out), "options": chosen, "version": version}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def flat(self) -> dict[str, Any]:
        """All of it by name."""
        return {"sources": self.sources, "out": self.out, **self.options, "version": self.version}

    def changed(self, **changes: Any) -> Self:
        """Copy with other values of some options."""
        return type(self)(**{**self.flat(), **changes})

    def to_json(self) -> str:
        """Text of ``config.json``, from which :meth:`from_json` makes the same object."""
        return config_text(KIND, self.flat())

    @classmethod
    def from_json(cls, path: PathLike, **changes: Any) -> Self:
        """Read a ``config.json``.

        Parameters
        ----------
        path
            The file.
        **changes
            Options with other values.

        Raises
        ------
        OptionError
            If the file is not a configuration of pre-training, or has an option that does not exist or a value of another type.
        """
        try:
            return cls(**{**read_config(path, KIND), **changes})
        except (OptionError, TypeError) as error:
            msg = f"{path}: {error}"
            raise OptionError(msg) from error

    def differences(self, other: PretrainConfig) -> list[str]:
        """In which options another configuration is of another run, as texts.

        Parameters
        ----------
        other
            What is wanted now.
        """
        mine, theirs = self.flat(), other.flat()
        return [
            f"{name} was {mine[name]!r}, now {theirs[name]!r}"
            for name in mine
            if name not in (*FREE, "version") and mine[name] != theirs[name]
        ]


def _paths(sources: Any) -> Any:
    if isinstance(sources, Mapping):
        return {str(name): _paths(of_name) for name, of_name in sources.items()}
    listed_paths = [sources] if isinstance(sources, str) or hasattr(sources, "__fspath__") else list(sources)
    return [absolute("sources", path) for path in listed_paths]
