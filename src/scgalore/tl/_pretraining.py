"""Options of a pre-training run, declared once for Python and the command line."""

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
"""Options for the length of training; a run has exactly one."""


_PAIRS = re.compile(r"\s*(.+?)\s*=\s*([^=,]+?)\s*(?:,|$)")


def _by_name(text: str) -> Any:
    """Parse ``blood=0.7,pancreas=0.3``, JSON, or a single word from a command line; names may contain ``,`` and ``=``."""
    if text.lstrip().startswith("{") or "".join(found.group() for found in _PAIRS.finditer(text)) != text:
        return as_json(text)
    return {name: as_json(value) for name, value in _PAIRS.findall(text)}


def _are_shares(value: Any) -> bool:
    return isinstance(value, Mapping) and all(POSITIVE.fits(share) for share in value.values()) and len(value) > 0


def _are_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and all(WEIGHT.fits(weight) for weight in value.values()) and len(value) > 0


WEIGHT = number("it must be a non-negative number", lambda weight: 0 <= weight < math.inf)
WEIGHTS = Kind(
    "give a non-negative number for some values of the column, as in {'T cell': 2}",
    _are_weights,
    _by_name,
    lambda value: {str(text_of(label)): float(weight) for label, weight in value.items()},
)
SHARES = Kind("give a positive number for each named source, as in {'blood': 0.7}", _are_shares, _by_name, dict)


def of_each(kind: Kind) -> Kind:
    """One value for all sources, or one per named source."""
    return Kind(
        f"{kind.expected}, or a dict with one per named source",
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
    """Options of :func:`scgalore.tl.pretrain`, in addition to those of training."""

    objective: str | None = _of_task("objective")
    mask_ratio: Any = _of_task("mask_ratio")
    from_cell_prompt: bool | None = _of_task("from_cell_prompt")
    max_steps: int | None = declare(
        COUNT,
        "Number of optimizer steps. The budget of a run is given in steps, cells or hours.",
        shown_default=f"{MAX_STEPS}",
    )
    max_cells: int | None = declare(COUNT, "Number of cells to train on, counting repeated cells.")
    max_hours: float | None = declare(
        POSITIVE, "Training time in hours; converted to steps once, after timing some steps on this machine."
    )
    validation_cells: int = declare(
        whole(0),
        "Number of cells to hold out for selecting the best epoch, at most a tenth of all.",
        default=2000,
    )
    keep_best: int | None = declare(
        COUNT,
        """
        Number of models to keep, those with the lowest loss on held-out cells: each is saved to
        ``best/epoch-<number>`` in ``checkpoint_dir``, for :func:`scgalore.model.load`. ``None`` saves none; the
        returned model always has the weights of the best epoch.
        """,
        shown_default="none",
    )
    where: Any = declare(
        WHERE,
        "Query of obs that selects the cells of each file: \"is_primary_data and disease == 'normal'\".",
        shown_default="all",
    )
    shares: dict[str, float] | None = declare(
        SHARES,
        "Fraction of training cells from each named source, as in blood=0.7,pancreas=0.3. Cells are then drawn with replacement.",
        shown_default="proportional to their numbers of cells",
    )
    weights_key: str | None = declare(
        TEXT,
        "Column of obs whose values are drawn equally often, such as cell_type. Cells are then drawn with replacement.",
        column="obs",
    )
    weights: dict[Any, float] | None = declare(
        WEIGHTS,
        """
        Relative frequency of values of that column, as in "T cell=2,B cell=0.5"; 1 for values that are not listed, and
        0 to exclude a value.
        """,
        shown_default="1 for each value",
    )
    layer: Any = declare(of_each(TEXT), "Layer to read, raw for raw.X, or auto to find the counts.", default="auto")
    gene_symbols: Any = declare(
        of_each(TEXT),
        "Column of var with the gene names.",
        shown_default="the names that match best",
        column="var",
    )
    data_type: Any = declare(
        of_each(DATA_TYPE), "Content of the matrix: counts or log1p.", shown_default="detected from the values"
    )
    species: Any = declare(
        of_each(SPECIES),
        "Species of the genes: human, or mouse, whose genes are mapped to human orthologs.",
        shown_default="detected from Ensembl ids and the column organism, else human",
    )
    min_matched: float | None = declare(
        MATCHED, "Minimum fraction of the counts in genes of the vocabulary.", shown_default="0.05"
    )
    block_size: int = declare(COUNT, "Number of consecutive cells that are read together.", default=256)
    buffer_size: int = declare(COUNT, "Number of cells in memory that are shuffled together.", default=8192)

    def __post_init__(self) -> None:
        for option in options_of(type(self)):
            object.__setattr__(self, option.name, option.check(getattr(self, option.name)))
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            shown = " and ".join(f"{name}={getattr(self, name)!r}" for name in given)
            msg = f"{shown}: a run has exactly one budget. Omit the others."
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
