"""Split perturbations into training, validation and test."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from scgalore.data.split import PARTS, Split
from scgalore.data.texts import text_of
from scgalore.errors import DataError, OptionError
from scgalore.perturb.labels.control import CONTROL
from scgalore.perturb.labels.parsing import agents_of, subject_of
from scgalore.perturb.labels.reading import PERT_KINDS
from scgalore.perturb.splits.cells import rows_at_random, rows_by_context
from scgalore.perturb.splits.compounds import COMPOUND_GROUPS, parts_by_compound, parts_by_dose
from scgalore.perturb.splits.custom import parts_by_name
from scgalore.perturb.splits.gears import (
    GROUPS,
    Partition,
    check_labels,
    split_by_genes,
    split_by_hits,
    split_by_labels,
    split_singles_by_genes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from scgalore.perturb.labels.conditions import Conditions

__all__ = ["KINDS", "PerturbationSplit", "default_kind", "split_conditions"]


@dataclass(frozen=True)
class PerturbationSplit:
    """Split of each perturbation.

    Attributes
    ----------
    train, validation, test
        Canonical names, in order of first occurrence in the data, without control. A name is in a single split, unless
        cells are split (``by_cell``): then it is in each split with cells of it.
    dropped
        Names that are in no split.
    groups
        Test perturbations by what was seen of them in training; see :data:`~scgalore.perturb.splits.gears.GROUPS`, and
        :data:`~scgalore.perturb.splits.compounds.COMPOUND_GROUPS` for compounds.
    by_cell
        Rows of each split if cells instead of perturbations are split; cells without a label are in none.
    moved
        Names with several spellings that were drawn into different splits; they are held out.
    options
        Options of the kind, as used.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    by_cell: Split | None = field(default=None, repr=False)
    moved: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def cell_labels(self, conditions: Conditions) -> NDArray[np.object_]:
        """Split of each cell, ``(n_obs,)``; None for dropped cells and those without a label. Control cells are in training.

        Parameters
        ----------
        conditions
            Conditions that were split.
        """
        if self.by_cell is not None:
            labels = np.full(len(conditions.codes), None, dtype=object)
            for part in PARTS:
                labels[getattr(self.by_cell, part)] = part
            return labels
        of_name = dict.fromkeys(self.dropped) | {name: part for part in PARTS for name in getattr(self, part)}
        of_name[CONTROL] = "train"
        return np.array([*(of_name[name] for name in conditions.names), None], dtype=object)[conditions.codes]

    def partners_in_validation(self) -> tuple[str, ...]:
        """Test perturbations of several genes, one of which is a single perturbation in the validation split."""
        agents = {name: agents_of(name) for name in self.test}
        return tuple(
            name for name in self.test if len(agents[name]) > 1 and not set(self.validation).isdisjoint(agents[name])
        )


def split_conditions(
    conditions: Conditions, kind: str | None = None, *, seed: int, contexts: Sequence[str] | None = None, **options: Any
) -> PerturbationSplit:
    """Split perturbations.

    Parameters
    ----------
    conditions
        Perturbation of each cell.
    kind
        One of :data:`KINDS`; ``None`` is ``"simulation"`` for genes and ``"compound"`` for compounds.
    seed
        Random seed.
    contexts
        Cell type or line of each cell, for the kinds that split cells.
    options
        Options of the kind; ``None`` is the default.

    Raises
    ------
    OptionError
        If the kind does not exist or is not available for genes or compounds, or an option is out of range or belongs
        to other kinds.
    DataError
        If there are no perturbations, or none remain for training.
    MissingKeyError
        If ``parts`` names a perturbation that does not exist.
    """
    kind = default_kind(conditions) if kind is None else kind
    offered = _offered(conditions)
    if kind not in offered:
        of = "genes" if conditions.kind == "gene" else "compounds"
        msg = f"kind={kind!r}; expected one of {', '.join(map(repr, offered))}, the kinds for {of}."
        raise OptionError(msg)
    if not conditions.perturbations:
        msg = f"All cells are control ({conditions.control!r}); there are no perturbations to split."
        raise DataError(msg)
    how = KINDS[kind]
    used = _checked(kind, how.options, {name: value for name, value in options.items() if value is not None})
    if how.needs_contexts and contexts is None:
        msg = f"kind={kind!r} holds out cell types or lines. Pass their column as context_key=."
        raise OptionError(msg)
    seen_by = {"contexts": contexts} if how.of_cells else {}
    split = how.split(conditions, seed=seed, **seen_by, **used)
    if not split.train and kind != "no_split":
        msg = f"None of {len(conditions.perturbations)} perturbations remain for training. Use kind='cell', or hold out fewer."
        raise DataError(msg)
    return replace(split, options=used, groups=split.groups or _groups(split, conditions))


def default_kind(conditions: Conditions) -> str:
    """Default kind of split: the first one available for genes or compounds."""
    return _offered(conditions)[0]


def _offered(conditions: Conditions) -> list[str]:
    return [name for name, how in KINDS.items() if conditions.kind in how.pert_kinds]


def _checked(kind: str, defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    foreign = sorted(given.keys() - defaults.keys())
    if foreign:
        takes = ", ".join(defaults) or "no options"
        msg = f"{', '.join(foreign)} cannot be used with kind={kind!r}, which takes {takes}."
        raise OptionError(msg)
    used = defaults | given
    for name, value in used.items():
        if isinstance(defaults[name], float) and not (isinstance(value, int | float | np.number) and 0 <= value <= 1):
            msg = f"{name}={value!r}: expected a fraction from 0 to 1."
            raise OptionError(msg)
        if isinstance(defaults[name], tuple):
            used[name] = _names(name, value)
    return used


def _names(option: str, given: Any) -> tuple[str, ...]:
    several = isinstance(given, Iterable) and not isinstance(given, str | bytes)
    texts = [text_of(name) for name in given] if several else [None]
    names = tuple(text for text in texts if text is not None)
    if len(names) < len(texts):
        msg = f"{option}={given!r}: expected a list of names."
        raise OptionError(msg)
    return names


def _groups(split: PerturbationSplit, conditions: Conditions) -> dict[str, tuple[str, ...]]:
    """Groups of test perturbations that are in no other split; a gene is seen if it is perturbed in another split."""
    elsewhere = {*split.train, *split.validation}
    if conditions.kind == "compound":
        measured = {subject_of(agent) for name in elsewhere for agent in agents_of(name)}
        held_out = [name for name in split.test if name not in elsewhere]
        return {
            group: tuple(name for name in held_out if (subject_of(name) in measured) == seen)
            for group, seen in zip(COMPOUND_GROUPS, (False, True), strict=True)
        }
    genes = dict(zip(conditions.names, conditions.genes, strict=True))
    seen = {gene for name in elsewhere for gene in genes[name]}
    groups: dict[str, tuple[str, ...]] = dict.fromkeys(GROUPS, ())
    for name in split.test:
        if name not in elsewhere and len(genes[name]) <= 2:
            single = len(genes[name]) == 1
            groups[GROUPS[3 if single else sum(gene in seen for gene in genes[name])]] += (name,)
    return groups


def _of_labels(
    algorithm: Callable[..., Partition], conditions: Conditions, *, seed: int, **options: Any
) -> PerturbationSplit:
    """Split label by label, as GEARS does, and merge the labels of each perturbation."""
    perturbed = [i for i, genes in enumerate(conditions.written) if genes]
    genes = [conditions.written[i] for i in perturbed]
    check_labels(genes)
    if "test_perts" in options:
        options["test_perts"] = _test_genes(options, conditions)
    partition = algorithm(genes, seed=seed, **options)
    names = [conditions.names[conditions.index(conditions.labels[i])] for i in perturbed]
    part_of: dict[str, str] = {}
    moved = set()
    # Strictest split first: a perturbation is held out if one of its spellings is.
    for part in ("test", "validation", "train", "dropped"):
        for position in sorted(getattr(partition, part)):
            if part_of.setdefault(names[position], part) != part:
                moved.add(names[position])
    groups: dict[str, tuple[str, ...]] = dict.fromkeys(GROUPS, ()) if partition.groups else {}
    for position, group in sorted(partition.groups.items()):
        groups[group] = tuple(dict.fromkeys((*groups[group], names[position])))
    return replace(
        _from_names(conditions, part_of), groups=groups, moved=tuple(n for n in conditions.names if n in moved)
    )


def _test_genes(options: dict[str, Any], conditions: Conditions) -> tuple[str, ...]:
    """Genes of ``test_perts``, by the names in the data."""
    drawn = {conditions.name_of(gene): gene for of_label in conditions.written for gene in of_label}
    named = {gene: drawn.get(conditions.name_of(gene)) for gene in options["test_perts"]}
    unknown = sorted(gene for gene, found in named.items() if found is None)
    if unknown:
        msg = f"test_perts contains {', '.join(unknown)}, which no perturbation in the data has; pass single genes."
        raise OptionError(msg)
    if options.get("only_test_set_perts") and not options["test_perts"]:
        msg = "only_test_set_perts=True holds out only the genes of test_perts. Pass test_perts=[...]."
        raise OptionError(msg)
    return tuple(gene for gene in named.values() if gene is not None)


def _from_names(conditions: Conditions, part_of: Mapping[str, str]) -> PerturbationSplit:
    def names(part: str) -> tuple[str, ...]:
        return tuple(name for name in conditions.perturbations if part_of[name] == part)

    return PerturbationSplit(names("train"), names("validation"), names("test"), names("dropped"))


def _of_cells(
    rows_of: Callable[..., dict[str, NDArray[np.int64]]], conditions: Conditions, **how: Any
) -> PerturbationSplit:
    rows = rows_of(conditions, **how)

    def names(part: str) -> tuple[str, ...]:
        return tuple(conditions.names[code] for code in np.unique(conditions.codes[rows[part]]))

    train = np.sort(np.concatenate([rows["train"], np.flatnonzero(conditions.codes == 0)]))
    by_cell = Split(train, rows["validation"], rows["test"])
    return PerturbationSplit(names("train"), names("validation"), names("test"), by_cell=by_cell)


def _custom(conditions: Conditions, *, seed: int, parts: Mapping[str, Any] | None) -> PerturbationSplit:
    return _from_names(conditions, parts_by_name(conditions, parts))


def _of_compounds(parts_of: Callable[..., dict[str, str]], conditions: Conditions, **how: Any) -> PerturbationSplit:
    return _from_names(conditions, parts_of(conditions.perturbations, **how))


def _everything_is_test(conditions: Conditions, *, seed: int) -> PerturbationSplit:
    return _from_names(conditions, dict.fromkeys(conditions.perturbations, "test"))


@dataclass(frozen=True)
class _Kind:
    split: Callable[..., PerturbationSplit]
    options: dict[str, Any]
    of_cells: bool = False
    needs_contexts: bool = False
    pert_kinds: tuple[str, ...] = PERT_KINDS


_SHARES = {"validation_size": 0.1, "test_size": 0.1}

KINDS: dict[str, _Kind] = {
    "simulation": _Kind(
        partial(_of_labels, split_by_genes),
        {
            "train_gene_set_size": 0.75,
            "combo_seen2_train_frac": 0.75,
            "validation_size": 0.1,
            "test_perts": (),
            "only_test_set_perts": False,
        },
        pert_kinds=("gene",),
    ),
    "simulation_single": _Kind(
        partial(_of_labels, split_singles_by_genes),
        {"train_gene_set_size": 0.75, "validation_size": 0.1},
        pert_kinds=("gene",),
    ),
    **{
        kind: _Kind(partial(_of_labels, partial(split_by_hits, kind=kind)), _SHARES, pert_kinds=("gene",))
        for kind in ("combo_seen0", "combo_seen1", "single")
    },
    "combo_seen2": _Kind(partial(_of_labels, split_by_labels), _SHARES, pert_kinds=("gene",)),
    "compound": _Kind(
        partial(_of_compounds, parts_by_compound),
        {**_SHARES, "validation_compounds": (), "test_compounds": ()},
        pert_kinds=("compound",),
    ),
    "dose": _Kind(
        partial(_of_compounds, parts_by_dose),
        {**_SHARES, "validation_doses": (), "test_doses": ()},
        pert_kinds=("compound",),
    ),
    "no_test": _Kind(partial(_of_labels, split_by_labels), {"validation_size": 0.1}, pert_kinds=("gene",)),
    "no_split": _Kind(_everything_is_test, {}),
    "custom": _Kind(_custom, {"parts": None}),
    "cell": _Kind(partial(_of_cells, rows_at_random), _SHARES, of_cells=True),
    "context": _Kind(
        partial(_of_cells, rows_by_context),
        {**_SHARES, "validation_contexts": (), "test_contexts": ()},
        of_cells=True,
        needs_contexts=True,
    ),
}
"""Kinds of splits with their options and defaults, which are those of GEARS for its kinds."""
