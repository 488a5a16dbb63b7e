"""What a run is made of: one object, which ``config.json`` holds completely."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from anndata import AnnData

from scgalore._options import (
    COUNT,
    FRACTION,
    INDEX,
    NAMES,
    TEXT,
    choice,
    declare,
    documented,
    options_of,
    suggestion,
    whole,
)
from scgalore.data.reading import DATA_TYPE, MATCHED, SPECIES, Reading
from scgalore.errors import OptionError
from scgalore.tasks.registry import TASKS, argument_names, choose_task
from scgalore.train.config import TrainConfig
from scgalore.train.extension import GROWING, extended

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scgalore._options import Option
    from scgalore._typing import PathLike
    from scgalore.tasks.base import Task

__all__ = ["KIND", "RunConfig", "absolute", "config_text", "listed", "read_config", "training_options"]

KIND = "scgalore run"
"""Marks ``config.json`` as ours."""

FREE = ("out", "accelerator", "logger", "checkpoint_every")
"""Options in which a run that is continued may differ from the one that was begun."""

NOT_IN_RUNS = ("seed", "devices", "num_nodes", "strategy", "shard_optimizer", "steps_per_epoch")
"""Fields of :class:`~scgalore.train.TrainConfig` that are for several processes or for streams, or have another name in a run."""


def training_options() -> tuple[Option, ...]:
    """Options of training that a run has: it is made by one process, and its seed is ``rng``."""
    return tuple(option for option in options_of(TrainConfig) if option.name not in NOT_IN_RUNS)


@documented
@dataclass(frozen=True, init=False)
class RunConfig:
    """Everything that decides the numbers of a run.

    Options are those below, the arguments of the task, and the fields of :class:`~scgalore.train.TrainConfig`, all by their
    own names: ``RunConfig("cells.h5ad", "runs/types", labels_key="cell_type", max_epochs=5)``. ``None`` leaves a choice to
    the run; ``config.json`` in its folder then holds what was chosen.

    Parameters
    ----------
    data
        ``.h5ad`` file or ``.zarr`` folder: cells by genes, counts or log-normalised.
    out
        Folder to make.
    **options
        As above.

    Raises
    ------
    OptionError
        If an option does not exist, has a value out of range, or belongs to another task.
    """

    data: str
    out: str
    task: str | None = declare(
        TEXT,
        """
        What to train for, an entry of :data:`scgalore.tasks.TASKS`. By default the task whose key argument is given
        (``labels_key``, ``values_key``, ``pert_key``), else masked expression.
        """,
    )
    model: str = declare(
        TEXT,
        """
        Name of registered weights (see: scgalore weights list), or folder of a checkpoint. ``"scgpt-mini"`` needs no network
        connection.
        """,
        default="scgpt",
    )
    layer: str | None = declare(TEXT, "Layer that holds the expression, instead of X.", column="layers")
    gene_symbols: str | None = declare(TEXT, "Column of var with gene names, instead of its index.", column="var")
    data_type: str | None = declare(
        DATA_TYPE, "What the expression is: counts or log1p.", shown_default="decided by its values"
    )
    depth_key: str | None = declare(
        TEXT, "Column of obs with the counts of each cell over all of its genes.", column="obs"
    )
    min_matched: float | None = declare(
        MATCHED, "Share of the expressed counts that the vocabulary must know.", shown_default="the package's own"
    )
    max_cells: int | str = declare(
        whole(1, others=("all",)),
        """
        Maximum number of cells to work with, drawn within classes or perturbations, or ``"all"``.
        """,
        default=50_000,
    )
    split_key: str | None = declare(
        TEXT, "Column of obs with train, validation or test, to keep a split.", column="obs"
    )
    validation_size: float | None = declare(
        FRACTION,
        "Fraction of the cells that choose the best epoch. Not for perturbations, which are held out as a whole.",
        shown_default="0.1",
    )
    test_size: float | None = declare(
        FRACTION, "Fraction of the cells that are held out. Not for perturbations.", shown_default="0.1"
    )
    n_genes: int | None = declare(
        COUNT,
        "Number of genes to select; all that are expressed, if these are fewer.",
        shown_default="3000",
        aliases=("genes",),
    )
    gene_strategy: str | None = declare(
        TEXT,
        "How genes are ranked: biological, hvg, perturbation or expressed. See :func:`scgalore.tl.select_genes`.",
        shown_default="the task's own",
    )
    batch_key: str | None = declare(
        TEXT, "Column of obs with batches, within which variable genes are ranked.", column="obs"
    )
    must_include: list[str] = declare(NAMES, "Genes to select regardless of their rank, as in SOX2,POU5F1.", default=())
    species: str = declare(SPECIES, "Species of the genes: human or mouse.", default="human")
    rng: int = declare(INDEX, "Seed of everything random.", default=0, aliases=("seed",))
    logger: str | None = declare(
        choice("csv", "tensorboard"),
        "Where the loss of every tenth step is logged: csv or tensorboard, in checkpoints/logs.",
        shown_default="nowhere",
    )
    version: str | None = None
    data_sha256: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def __init__(self, data: PathLike, out: PathLike, **options: Any) -> None:
        own = {option.name: option for option in options_of(RunConfig)}
        of_training = {option.name: option for option in training_options()}
        of_tasks = argument_names()
        if isinstance(options.get("model"), Path):
            options["model"] = str(options["model"])
        recorded = {name: options.pop(name, None) for name in ("version", "data_sha256")}
        for name in options:
            if name not in {*own, *of_training, *of_tasks}:
                known = [*own, *of_tasks, *of_training]
                msg = f"There is no option {name!r} of a run.{suggestion(name, known)} The options are {', '.join(known)}."
                raise OptionError(msg)
        chosen = {name: option.check(options.get(name, option.default)) for name, option in own.items()}
        given = {name: value for name, value in options.items() if name in of_tasks and name not in own}
        task = choose_task(chosen["task"], given)
        if "batch_key" in {option.name for option in task.arguments}:
            given["batch_key"] = chosen["batch_key"]
        for name, value in given.items():
            if isinstance(value, AnnData):
                msg = f"{name}: a run is made of files. Pass the path of an .h5ad file."
                raise OptionError(msg)
        training = {name: options[name] for name in of_training if options.get(name) is not None}
        values = {
            **{"data": absolute("data", data), "out": absolute("out", out)},
            **{**chosen, "task": task.name},
            **recorded,
            "arguments": task.check(given),
            "training": {name: listed(of_training[name].check(value)) for name, value in training.items()},
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check_split(task)

    def _check_split(self, task: Task) -> None:
        for name in ("validation_size", "test_size"):
            if getattr(self, name) is not None and not task.splits_cells:
                msg = (
                    f"{name}={getattr(self, name)!r} is for cells, and task={task.name!r} holds out something else: make the "
                    "split yourself and pass its column as split_key, or leave it out."
                )
                raise OptionError(msg)

    @property
    def model_name(self) -> str:
        """Name of the weights, or of the folder that holds them."""
        return Path(self.model).name

    @property
    def name(self) -> str:
        """What tables call the fitted model."""
        return f"{self.model_name} + {self.training.get('optimizer', TrainConfig.optimizer)}"

    @property
    def reading(self) -> Reading:
        """How to read the cells once they have been read: the layer of the file is their ``X``."""
        return replace(Reading.of(self.flat()), layer=None)

    def flat(self) -> dict[str, Any]:
        """All options by name, those of the task and of training included."""
        own = {option.name: getattr(self, option.name) for option in options_of(RunConfig)}
        training = {option.name: self.training.get(option.name) for option in training_options()}
        last = {"version": self.version, "data_sha256": self.data_sha256}
        return {"data": self.data, "out": self.out, **own, **self.arguments, **training, **last}

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
            If the file is not a configuration of a run, has an option that does not exist, or a value of another type.
        """
        content = read_config(path, KIND)
        others = {task.key for task in TASKS.values() if task.name != content.get("task")}
        if "task" in changes or others & changes.keys():
            own = {option.name for option in options_of(cls)} - {"task"}
            of_task = {"task", *argument_names()} - own
            content = {name: value for name, value in content.items() if name not in of_task}
        content |= changes
        missing = [name for name in ("data", "out") if name not in content]
        if missing:
            msg = f"{path} lacks {missing[0]!r}."
            raise OptionError(msg)
        try:
            return cls(**content)
        except OptionError as error:
            msg = f"{path}: {error}"
            raise OptionError(msg) from error

    def differences(self, other: RunConfig) -> list[str]:
        """In which options another configuration is of another run, as texts; more epochs are no other run.

        Parameters
        ----------
        other
            What is wanted now.
        """
        theirs = other.flat()
        mine = extended(self.flat(), theirs)
        # What is left to the run until cells have been read.
        if theirs["n_genes"] is None:
            theirs["n_genes"] = mine["n_genes"]
        if theirs["max_epochs"] is None:
            theirs |= {name: theirs[name] or mine[name] for name in GROWING}
        if theirs["curriculum"] is True and mine["curriculum"]:
            theirs["curriculum"] = mine["curriculum"]
        return [
            f"{name} was {mine.get(name)!r}, now {theirs.get(name)!r}"
            for name in dict.fromkeys((*mine, *theirs))
            if name not in FREE and mine.get(name) != theirs.get(name)
        ]


def config_text(kind: str, options: Mapping[str, Any]) -> str:
    """Text of a ``config.json``.

    Parameters
    ----------
    kind
        What it is a configuration of.
    options
        By name.
    """
    # JSON has no infinity, which clip_norm may be.
    content = {name: str(x) if isinstance(x, float) and math.isinf(x) else x for name, x in options.items()}
    return json.dumps({"kind": kind, **content}, indent=2, ensure_ascii=False) + "\n"


def read_config(path: PathLike, kind: str) -> dict[str, Any]:
    """Options in a ``config.json``.

    Parameters
    ----------
    path
        The file.
    kind
        What it must be a configuration of.

    Raises
    ------
    OptionError
        If it is none.
    """
    path = Path(path).expanduser()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read as JSON: {error}. Pass the config.json of a run's folder."
        raise OptionError(msg) from error
    if not isinstance(content, dict) or content.pop("kind", None) != kind:
        msg = f'{path} is not a configuration of a run: it lacks "kind": "{kind}".'
        raise OptionError(msg)
    return {name: math.inf if value == "inf" else value for name, value in content.items()}


def listed(value: Any) -> Any:
    """A value as it comes back from a file, in which there are no tuples."""
    if isinstance(value, dict):
        return {name: listed(part) for name, part in value.items()}
    return [listed(part) for part in value] if isinstance(value, list | tuple) else value


def absolute(name: str, path: Any) -> str:
    """A path as it is from anywhere; raise :class:`~scgalore.errors.OptionError` if it is none."""
    if not isinstance(path, str | Path) or not str(path):
        msg = f"{name}={path!r}: it must be a path."
        raise OptionError(msg)
    return str(Path(path).expanduser().absolute())
