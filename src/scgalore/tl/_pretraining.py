"""What a pre-training run is asked for, declared once for Python and the command line."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from scgalore._options import COUNT, POSITIVE, TEXT, Kind, as_json, declare, number, options_of, whole
from scgalore.data.reading import DATA_TYPE, MATCHED, SPECIES
from scgalore.data.texts import text_of
from scgalore.errors import OptionError
from scgalore.tasks.expression import Expression

__all__ = ["BUDGETS", "MAX_STEPS", "PretrainingOptions"]

MAX_STEPS = 10_000
BUDGETS = ("max_steps", "max_cells", "max_hours")
"""Options that say how long to train, of which a run has one."""


_PAIRS = re.compile(r"\s*(.+?)\s*=\s*([^=,]+?)\s*(?:,|$)")


def _by_name(text: str) -> Any:
    """Read ``blood=0.7,pancreas=0.3`` from a command line, or JSON, or one word; names may have ``,`` and ``=`` in them."""
    if text.lstrip().startswith("{") or "".join(found.group() for found in _PAIRS.finditer(text)) != text:
        return as_json(text)
    return {name: as_json(value) for name, value in _PAIRS.findall(text)}


def _are_shares(value: Any) -> bool:
    return isinstance(value, Mapping) and all(POSITIVE.fits(share) for share in value.values()) and len(value) > 0


def _are_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and all(WEIGHT.fits(weight) for weight in value.values()) and len(value) > 0


WEIGHT = number("it must be a number that is not negative", lambda weight: 0 <= weight < math.inf)
WEIGHTS = Kind(
    "give a number, 0 or more, for some values of the column, as in {'T cell': 2}",
    _are_weights,
    _by_name,
    lambda value: {str(text_of(label)): float(weight) for label, weight in value.items()},
)
SHARES = Kind("give a positive number for each named source, as in {'blood': 0.7}", _are_shares, _by_name, dict)


def of_each(kind: Kind) -> Kind:
    """One value for all sources, or one of each named source."""
    return Kind(
        f"{kind.expected}, or give one of these for each named source",
        lambda value: all(map(kind.fits, value.values() if isinstance(value, Mapping) else [value])),
        _by_name,
        lambda value: dict(value) if isinstance(value, Mapping) else value,
    )


WHERE = replace(of_each(TEXT), read=str)  # "=" and "," are part of a query


def _of_task(name: str) -> Any:
    """Declare an argument of the task of masked expression."""
    option = next(option for option in Expression.arguments if option.name == name)
    return declare(option.kind, option.help, shown_default=option.shown_default)


@dataclass(frozen=True)
class PretrainingOptions:
    """Options of :func:`scgalore.tl.pretrain` besides those of training."""

    objective: str | None = _of_task("objective")
    mask_ratio: Any = _of_task("mask_ratio")
    from_cell_prompt: bool | None = _of_task("from_cell_prompt")
    max_steps: int | None = declare(
        COUNT,
        "Steps of the optimizer. The budget of a run is this, or cells, or hours.",
        shown_default=f"{MAX_STEPS}",
    )
    max_cells: int | None = declare(COUNT, "Cells to train on, counted each time that they are seen.")
    max_hours: float | None = declare(
        POSITIVE, "Hours to train, which are turned into steps once, after some steps were timed on this machine."
    )
    validation_cells: int = declare(
        whole(0),
        "Number of cells to hold out, at most a tenth of all; they choose the weights that are kept.",
        default=2000,
    )
    keep_best: int | None = declare(
        COUNT,
        """
        Number of models to keep in the folder of the checkpoint, those with the lowest loss on the held-out cells: each is in
        ``best/epoch-<number>`` in ``checkpoint_dir``, for :func:`scgalore.model.load`. ``None`` keeps none, and the weights of the best
        epoch are those of the model in the end.
        """,
        shown_default="none",
    )
    where: Any = declare(
        WHERE,
        "Which cells of each file to take, as a query of its obs: \"is_primary_data and disease == 'normal'\".",
        shown_default="all",
    )
    shares: dict[str, float] | None = declare(
        SHARES,
        "Share of each named source in what is trained on, as in blood=0.7,pancreas=0.3. Cells are then drawn with replacement.",
        shown_default="as many as there are",
    )
    weights_key: str | None = declare(
        TEXT,
        "Column of obs whose values are drawn equally often, such as cell_type. Cells are then drawn with replacement.",
        column="obs",
    )
    weights: dict[Any, float] | None = declare(
        WEIGHTS,
        """
        How often values of that column are drawn, relative to each other, as in "T cell=2,B cell=0.5"; 1 for those that are left out, and 0
        for those that are not to come at all.
        """,
        shown_default="1 for each value",
    )
    layer: Any = declare(
        of_each(TEXT), "Layer to read, raw for raw.X, or auto for the counts wherever they are.", default="auto"
    )
    gene_symbols: Any = declare(
        of_each(TEXT),
        "Column of var with the names of the genes.",
        shown_default="the names that match best",
        column="var",
    )
    data_type: Any = declare(
        of_each(DATA_TYPE), "What the expression is: counts or log1p.", shown_default="decided by its values"
    )
    species: Any = declare(
        of_each(SPECIES),
        "Species of the genes: human, or mouse, which are read as their human orthologs.",
        shown_default="what Ensembl ids and the column organism say, else human",
    )
    min_matched: float | None = declare(
        MATCHED, "Share of the expressed counts that the vocabulary must know.", shown_default="the package's own"
    )
    block_size: int = declare(COUNT, "Neighbouring cells that are read together.", default=256)
    buffer_size: int = declare(COUNT, "Cells in memory that are shuffled together.", default=8192)

    def __post_init__(self) -> None:
        for option in options_of(type(self)):
            object.__setattr__(self, option.name, option.check(getattr(self, option.name)))
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            shown = " and ".join(f"{name}={getattr(self, name)!r}" for name in given)
            msg = f"{shown}: a run has one budget. Leave the others out."
            raise OptionError(msg)
        if not given:
            object.__setattr__(self, "max_steps", MAX_STEPS)

    @property
    def of_task(self) -> dict[str, Any]:
        """Arguments of :class:`~scgalore.tasks.expression.Expression`."""
        return {option.name: getattr(self, option.name) for option in Expression.arguments}

    @property
    def of_stream(self) -> dict[str, Any]:
        """Arguments of :func:`scgalore.data.stream` that all of its sources share."""
        names = ("where", "layer", "gene_symbols", "data_type", "species", "min_matched", "block_size", "buffer_size")
        return {name: getattr(self, name) for name in names}
