"""Complete configuration of a pre-training run, stored in ``config.json``."""

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
"""Value of ``kind`` in ``config.json``."""

FREE = ("sources", "out", "accelerator", "logger", "num_workers", "checkpoint_every", "shard_optimizer")
"""Options that may change when a run is resumed; moved files are compared by their content."""

CHANGES: dict[str, dict[str, Any]] = {
    "steps_per_epoch": {"default": 500, "shown_default": None},
    "optimizer": {"default": "adamw", "shown_default": None},
    "patience": {"shown_default": "all epochs"},
}
"""Training options with another default or another description of it in pre-training."""

SIZES = Kind(
    "give network sizes by name, such as {'d_model': 256, 'n_layers': 6}",
    lambda value: isinstance(value, Mapping) and len(value) > 0,
    lambda text: {name: as_json(value) for name, value in (part.split("=", 1) for part in comma_separated(text))},
    dict,
)

OWN = (
    Option(
        "model",
        TEXT,
        "Name of registered weights (see: scgalore weights list), or folder of a checkpoint; with sizes, the model family.",
        default="scgpt-mini",
    ),
    Option(
        "sizes",
        SIZES,
        "Train a new network of these sizes, such as d_model=256,n_layers=6,n_heads=8,d_hid=512, with a vocabulary of the genes in the files.",
    ),
    Option(
        "labels_key",
        TEXT,
        "Column of obs for scoring embeddings of held-out cells before and after training, compared with principal components.",
        column="obs",
    ),
    Option("logger", choice("csv", "tensorboard"), "Logger for the losses: csv or tensorboard.", shown_default="none"),
    Option("rng", INDEX, "Random seed.", default=0, aliases=("seed",)),
)


def pretrain_options() -> tuple[tuple[Option, str], ...]:
    """All options of a pre-training run, with their heading in the help."""
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
    """All options that determine the results of a pre-training run.

    Options are those of :func:`scgalore.tl.pretrain` and the fields of :class:`~scgalore.train.TrainConfig`, and
    ``sizes`` (for a network with random weights of the family ``model``), ``labels_key``, ``logger`` and ``rng``.

    Parameters
    ----------
    sources
        Files and folders of files, or a dict of named lists of them.
    out
        Folder to create.
    **options
        As above.

    Raises
    ------
    OptionError
        If an option does not exist or has a value out of range.

    See Also
    --------
    scgalore.pipeline.pretrain : Pre-train from files to a report.

    Examples
    --------
    >>> import scgalore as sg
    >>> config = sg.pipeline.PretrainConfig("cells/", "runs/blood", model="scgpt-mini", max_hours=4)
    >>> config.changed(max_hours=8).flat()["max_hours"]
    8.0
    """

    sources: Any
    out: str
    options: dict[str, Any]
    version: str | None = None

    def __init__(self, sources: Any, out: PathLike, *, version: str | None = None, **options: Any) -> None:
        declared = {option.name: option for option, _ in pretrain_options()}
        for name in options:
            if name not in declared:
                msg = f"Pre-training has no option {name!r}.{suggestion(name, declared)} The options are {', '.join(declared)}."
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
        """All options by name."""
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
            If the file is not a configuration of pre-training, or has an option that does not exist or a value of
            another type.
        """
        try:
            return cls(**{**read_config(path, KIND), **changes})
        except (OptionError, TypeError) as error:
            msg = f"{path}: {error}"
            raise OptionError(msg) from error

    def differences(self, other: PretrainConfig) -> list[str]:
        """Differences of options that make another configuration a different run, as texts.

        Parameters
        ----------
        other
            The requested configuration.
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
