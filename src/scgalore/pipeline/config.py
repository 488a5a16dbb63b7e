"""What a run is made of: one object, which ``config.json`` holds completely."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from scgalore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from scgalore._typing import PathLike

__all__ = ["KIND", "STRATEGIES", "TRAINING", "RunConfig"]

KIND = "scgalore run"
"""Marks ``config.json`` as ours."""

STRATEGIES = ("progressive", "plain")

TRAINING = {
    "epochs": "max_epochs",
    "optimizer": "optimizer",
    "batch_size": "batch_size",
    "precision": "precision",
    "device": "accelerator",
}
"""Fields that are options of training, by the name they have in :class:`scgalore.train.TrainConfig`."""

FREE = ("out", "device")
"""Fields in which a run that is continued may differ from the one that was begun."""

CHOSEN_LATE = ("genes", "phases")
"""Fields that are left to the run until cells have been read."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the numbers of a run.

    ``None`` leaves a choice to the run; ``config.json`` in its folder then says what was chosen.

    Attributes
    ----------
    data
        ``.h5ad`` file or ``.zarr`` folder: cells by genes, counts or log-normalised.
    out
        Folder to make.
    labels_key
        Column of ``obs`` with classes to learn. Without it and ``pert_key``, the run goes on with masked expression.
    pert_key
        Column of ``obs`` with the perturbation of each cell, to learn effects of perturbations.
    control
        Label of control in that column.
    context_key
        Column of ``obs`` with the cell type or line, within which cells are compared with control.
    batch_key
        Column of ``obs`` with the batch: genes are ranked within batches, and perturbed cells paired with control cells of
        their own.
    separator
        What stands between the genes of a perturbation's label.
    split_key
        Column of ``obs`` with ``"train"``, ``"validation"`` or ``"test"``, which is kept; ``None`` makes a split.
    validation_size, test_size
        Shares of the cells that choose the best epoch and that are held out. Perturbations are split by
        :func:`scgalore.pp.split_perturbations` instead.
    layer
        Layer that holds the expression.
    gene_symbols
        Column of ``var`` with gene names.
    model
        Name of registered weights, or folder of a checkpoint.
    genes
        How many genes to select; ``None`` is 3,000, or all where there are fewer.
    gene_strategy
        How they are ranked, see :func:`scgalore.tl.select_genes`; ``None`` is ``"perturbation"`` with ``pert_key``, else
        ``"biological"``.
    must_include
        Genes that are selected whatever their rank.
    species
        Whose gene sets are used.
    strategy
        ``"progressive"`` trains on the best-ranked genes first and on more in each phase, ``"plain"`` on all of them from
        the start.
    phases
        Genes of each phase; ``None`` is 500, 1,200 and 2,500 as far as there are more, then all.
    max_cells
        Most cells to work with, drawn at random within classes or perturbations; ``None`` takes all.
    epochs
        Passes over the training cells.
    optimizer, batch_size, precision
        Options of :class:`scgalore.train.TrainConfig`.
    device
        Where to compute, in Lightning's words: ``"cpu"``, ``"gpu"``, ``"auto"``.
    seed
        Seed of everything random.
    train_options
        Further fields of :class:`scgalore.train.TrainConfig`.
    version
        Version of scgalore that wrote the file.
    data_sha256
        Hash of the data; a run from a ``config.json`` refuses other data.
    """

    data: PathLike
    out: PathLike
    labels_key: str | None = None
    pert_key: str | None = None
    control: str | None = None
    context_key: str | None = None
    batch_key: str | None = None
    separator: str | None = None
    split_key: str | None = None
    validation_size: float | None = None
    test_size: float | None = None
    layer: str | None = None
    gene_symbols: str | None = None
    model: str = "scgpt"
    genes: int | None = None
    gene_strategy: str | None = None
    must_include: tuple[str, ...] = ()
    species: str = "human"
    strategy: str = "progressive"
    phases: tuple[int, ...] | None = None
    max_cells: int | None = 50_000
    epochs: int | None = None
    optimizer: str | None = None
    batch_size: int | str | None = None
    precision: str | None = None
    device: str | None = None
    seed: int = 0
    train_options: dict[str, Any] = field(default_factory=dict)
    version: str | None = None
    data_sha256: str | None = None

    def __post_init__(self) -> None:
        for name in ("data", "out"):
            self._set(name, _absolute(name, getattr(self, name)))
        if isinstance(self.model, Path):
            self._set("model", str(self.model))
        for name, (is_one, expected) in CHECKS.items():
            value = getattr(self, name)
            if value is None and name in OPTIONAL:
                continue
            if not is_one(value):
                msg = f"{name}={value!r}: it must be {expected}{', or None' if name in OPTIONAL else ''}."
                raise OptionError(msg)
        self._set("must_include", tuple(self.must_include))
        # As they come back from a file, in which there are no tuples.
        self._set("train_options", json.loads(json.dumps(dict(self.train_options))))
        if self.phases is not None:
            self._set("phases", tuple(self.phases))
        self._check_together()

    def _check_together(self) -> None:
        if self.labels_key is not None and self.pert_key is not None:
            msg = f"labels_key={self.labels_key!r} and pert_key={self.pert_key!r}: a run learns one of them. Leave one out."
            raise OptionError(msg)
        if self.strategy not in STRATEGIES:
            msg = f"strategy={self.strategy!r}: choose one of {', '.join(map(repr, STRATEGIES))}."
            raise OptionError(msg)
        if self.strategy == "plain" and self.phases is not None:
            msg = f"phases={list(self.phases)} belong to strategy='progressive'. Leave them out, or choose that."
            raise OptionError(msg)
        needless = (
            {"control", "context_key", "separator"} if self.pert_key is None else {"validation_size", "test_size"}
        )
        for name in sorted(needless):
            if getattr(self, name) is not None:
                what = (
                    "belongs to perturbations: pass pert_key"
                    if self.pert_key is None
                    else (
                        "is for cells, and perturbations are held out as a whole: make a split with "
                        "sg.pp.split_perturbations and pass its column as split_key"
                    )
                )
                msg = f"{name}={getattr(self, name)!r} {what}, or leave it out."
                raise OptionError(msg)
        for name, theirs in {**TRAINING, "seed": "seed", "strategy": "curriculum"}.items():
            if theirs in self.train_options:
                msg = f"train_options[{theirs!r}]={self.train_options[theirs]!r}: pass {name} instead."
                raise OptionError(msg)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def task(self) -> str:
        """``"classes"``, ``"perturbation"`` or ``"expression"``."""
        if self.labels_key is not None:
            return "classes"
        return "expression" if self.pert_key is None else "perturbation"

    @property
    def model_name(self) -> str:
        """Name of the weights, or of the folder they lie in."""
        return Path(self.model).name

    def train_config(self) -> dict[str, Any]:
        """Options of training that were chosen, by the names of :class:`scgalore.train.TrainConfig`."""
        own = {theirs: getattr(self, name) for name, theirs in TRAINING.items()}
        return {**{name: value for name, value in own.items() if value is not None}, **self.train_options}

    def to_json(self) -> str:
        """Text of ``config.json``, from which :meth:`from_json` makes the same object."""
        content = {"kind": KIND, **asdict(self)}
        # JSON has no infinity, which clip_norm may be.
        content["train_options"] = {
            name: str(value) if isinstance(value, float) and math.isinf(value) else value
            for name, value in self.train_options.items()
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, path: PathLike, **changes: Any) -> Self:
        """Read a ``config.json``.

        Parameters
        ----------
        path
            The file.
        **changes
            Fields that shall have other values.

        Raises
        ------
        OptionError
            If the file is no configuration of a run, has a field that does not exist, or a value of another type.
        """
        path = Path(path).expanduser()
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            msg = f"{path} cannot be read as JSON: {error}. Pass the config.json of a run's folder."
            raise OptionError(msg) from error
        if not isinstance(content, dict) or content.pop("kind", None) != KIND:
            msg = f'{path} is no configuration of a run: it lacks "kind": "{KIND}".'
            raise OptionError(msg)
        content |= changes
        known = [option.name for option in fields(cls)]
        for name in content:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                msg = f"{path} has the field {name!r}, which does not exist.{hint} The fields are {', '.join(known)}."
                raise OptionError(msg)
        missing = [name for name in ("data", "out") if name not in content]
        if missing:
            msg = f"{path} lacks {missing[0]!r}."
            raise OptionError(msg)
        options = content.get("train_options")
        if isinstance(options, dict):
            content["train_options"] = {name: math.inf if value == "inf" else value for name, value in options.items()}
        try:
            return cls(**content)
        except OptionError as error:
            msg = f"{path}: {error}"
            raise OptionError(msg) from error

    def differences(self, other: RunConfig) -> list[str]:
        """Say in which fields another configuration is of another run.

        Parameters
        ----------
        other
            What is wanted now.
        """
        mine, theirs = _flat(self), _flat(other)
        left = {name for name in CHOSEN_LATE if theirs[name] is None}
        return [
            f"{name} was {mine.get(name)!r}, now {theirs.get(name)!r}"
            for name in dict.fromkeys((*mine, *theirs))
            if name not in {*FREE, *left} and mine.get(name) != theirs.get(name)
        ]


def _flat(config: RunConfig) -> dict[str, Any]:
    content = asdict(config)
    options = content.pop("train_options")
    return {**content, **{f"train_options[{name!r}]": value for name, value in options.items()}}


def _absolute(name: str, path: Any) -> str:
    if not isinstance(path, str | Path) or not str(path):
        msg = f"{name}={path!r}: it must be a path."
        raise OptionError(msg)
    return str(Path(path).expanduser().absolute())


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _is_share(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < 1


def _are(is_one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Sequence) and not isinstance(value, str) and all(map(is_one, value))


_TEXT = (_is_text, "a text")
_COUNT = (_is_whole(1), "a whole number, at least 1")
_SHARE = (_is_share, "a share of the cells in [0, 1)")
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("labels_key", "pert_key", "control", "context_key", "batch_key", "separator", "split_key"), _TEXT),
    **dict.fromkeys(("layer", "gene_symbols", "model", "gene_strategy", "species", "strategy"), _TEXT),
    **dict.fromkeys(("optimizer", "precision", "device", "version", "data_sha256"), _TEXT),
    **dict.fromkeys(("genes", "max_cells", "epochs"), _COUNT),
    **dict.fromkeys(("validation_size", "test_size"), _SHARE),
    "batch_size": (lambda value: value == "auto" or _is_whole(1)(value), "a whole number, at least 1, or 'auto'"),
    "seed": (_is_whole(0), "a whole number, at least 0"),
    "must_include": (_are(_is_text), "a list of gene names"),
    "phases": (_are(_is_whole(1)), "a list of whole numbers, such as [500, 1200]"),
    "train_options": (
        lambda value: isinstance(value, Mapping) and all(map(_is_text, value)),
        "a dict of options of training",
    ),
}
OPTIONAL = {option.name for option in fields(RunConfig) if option.default is None or option.name == "max_cells"}
