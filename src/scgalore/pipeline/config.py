"""Complete configuration of a run, stored in ``config.json``."""

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
"""Value of ``kind`` in ``config.json``."""

FREE = ("out", "accelerator", "logger", "checkpoint_every")
"""Options that may change when a run is resumed."""

NOT_IN_RUNS = ("seed", "devices", "num_nodes", "strategy", "shard_optimizer", "steps_per_epoch")
"""Fields of :class:`~scgalore.train.TrainConfig` that are for several processes or streams, or have another name in a run."""


def training_options() -> tuple[Option, ...]:
    """Training options of a run, which uses a single process and ``rng`` as seed."""
    return tuple(option for option in options_of(TrainConfig) if option.name not in NOT_IN_RUNS)


@documented
@dataclass(frozen=True, init=False)
class RunConfig:
    """All options that determine the results of a run.

    Options are those below, the arguments of the task, and the fields of :class:`~scgalore.train.TrainConfig`, by
    name: ``RunConfig("cells.h5ad", "runs/types", labels_key="cell_type", max_epochs=5)``. ``None`` leaves a choice to
    the run, which records it in ``config.json`` in its folder.

    Parameters
    ----------
    data
        ``.h5ad`` file or ``.zarr`` folder: cells by genes, counts or log-normalised.
    out
        Folder to create.
    **options
        As above.

    Raises
    ------
    OptionError
        If an option does not exist, has a value out of range, or belongs to another task.

    See Also
    --------
    scgalore.pipeline.run : Run the pipeline.

    Examples
    --------
    >>> import scgalore as sg
    >>> config = sg.pipeline.RunConfig("cells.h5ad", "runs/types", labels_key="cell_type", max_epochs=5)
    >>> config.flat()["max_epochs"]
    5
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
        Name of registered weights (see: scgalore weights list), or folder of a checkpoint. ``"scgpt-mini"`` needs no
        network connection.
        """,
        default="scgpt",
    )
    layer: str | None = declare(TEXT, "Layer with the expression, instead of X.", column="layers")
    gene_symbols: str | None = declare(TEXT, "Column of var with gene names, instead of its index.", column="var")
    data_type: str | None = declare(
        DATA_TYPE, "Content of the matrix: counts or log1p.", shown_default="detected from the values"
    )
    depth_key: str | None = declare(
        TEXT,
        "Column of obs with the total counts of each cell, if the matrix does not contain all genes.",
        column="obs",
    )
    min_matched: float | None = declare(
        MATCHED, "Minimum fraction of the counts in genes of the vocabulary.", shown_default="0.05"
    )
    max_cells: int | str = declare(
        whole(1, others=("all",)),
        """
        Maximum number of cells to use, sampled within classes or perturbations, or ``"all"``.
        """,
        default=50_000,
    )
    split_key: str | None = declare(
        TEXT, "Column of obs with train, validation or test, to keep a split.", column="obs"
    )
    validation_size: float | None = declare(
        FRACTION,
        "Fraction of cells for selecting the best epoch. Not for perturbations, which are held out as a whole.",
        shown_default="0.1",
    )
    test_size: float | None = declare(
        FRACTION, "Fraction of the cells that are held out. Not for perturbations.", shown_default="0.1"
    )
    n_genes: int | None = declare(
        COUNT,
        "Number of genes to select; all expressed genes if there are fewer.",
        shown_default="3000",
        aliases=("genes",),
    )
    gene_strategy: str | None = declare(
        TEXT,
        "How genes are ranked: biological, hvg, perturbation or expressed. See :func:`scgalore.tl.select_genes`.",
        shown_default="set by the task",
    )
    batch_key: str | None = declare(
        TEXT, "Column of obs with batches, within which variable genes are ranked.", column="obs"
    )
    must_include: list[str] = declare(NAMES, "Genes to select regardless of their rank, as in SOX2,POU5F1.", default=())
    species: str = declare(SPECIES, "Species of the genes: human or mouse.", default="human")
    rng: int = declare(INDEX, "Random seed.", default=0, aliases=("seed",))
    logger: str | None = declare(
        choice("csv", "tensorboard"),
        "Logger for the loss of every tenth step: csv or tensorboard, in checkpoints/logs.",
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
                msg = f"A run has no option {name!r}.{suggestion(name, known)} The options are {', '.join(known)}."
                raise OptionError(msg)
        chosen = {name: option.check(options.get(name, option.default)) for name, option in own.items()}
        given = {name: value for name, value in options.items() if name in of_tasks and name not in own}
        task = choose_task(chosen["task"], given)
        if "batch_key" in {option.name for option in task.arguments}:
            given["batch_key"] = chosen["batch_key"]
        for name, value in given.items():
            if isinstance(value, AnnData):
                msg = f"{name}: expected the path of an .h5ad file, since a run uses files."
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
                    f"{name}={getattr(self, name)!r} is a fraction of cells, which task={task.name!r} does not hold out. Make your own "
                    "split and pass its column as split_key, or omit it."
                )
                raise OptionError(msg)

    @property
    def model_name(self) -> str:
        """Name of the weights, or of their folder."""
        return Path(self.model).name

    @property
    def name(self) -> str:
        """Name of the fitted model in tables."""
        return f"{self.model_name} + {self.training.get('optimizer', TrainConfig.optimizer)}"

    @property
    def reading(self) -> Reading:
        """How to read the cells after loading, when the layer of the file is in ``X``."""
        return replace(Reading.of(self.flat()), layer=None)

    def flat(self) -> dict[str, Any]:
        """All options by name, including those of the task and of training."""
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
            msg = f"{path} has no entry {missing[0]!r}."
            raise OptionError(msg)
        try:
            return cls(**content)
        except OptionError as error:
            msg = f"{path}: {error}"
            raise OptionError(msg) from error

    def differences(self, other: RunConfig) -> list[str]:
        """Differences of options that make another configuration a different run, as texts; more epochs do not.

        Parameters
        ----------
        other
            The requested configuration.
        """
        theirs = other.flat()
        mine = extended(self.flat(), theirs)
        # Options that are chosen after cells have been read.
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
        Kind of configuration.
    options
        Options by name.
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
        Expected kind of configuration.

    Raises
    ------
    OptionError
        If the file is not such a configuration.
    """
    path = Path(path).expanduser()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read as JSON: {error}. Pass the config.json of a run's folder."
        raise OptionError(msg) from error
    if not isinstance(content, dict) or content.pop("kind", None) != kind:
        msg = f'{path} is not a configuration of a run: it has no "kind": "{kind}".'
        raise OptionError(msg)
    return {name: math.inf if value == "inf" else value for name, value in content.items()}


def listed(value: Any) -> Any:
    """A value as read back from JSON, with lists instead of tuples."""
    if isinstance(value, dict):
        return {name: listed(part) for name, part in value.items()}
    return [listed(part) for part in value] if isinstance(value, list | tuple) else value


def absolute(name: str, path: Any) -> str:
    """Absolute path; raises :class:`~scgalore.errors.OptionError` if the value is not a path."""
    if not isinstance(path, str | Path) or not str(path):
        msg = f"{name}={path!r}: it must be a path."
        raise OptionError(msg)
    return str(Path(path).expanduser().absolute())
