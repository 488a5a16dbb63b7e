"""Splits of GEARS :cite:p:`Roohani2024`, label by label, identical to the published ones.

This depends on details of GEARS: draws from the legacy generator, in its order, with or without
replacement; truncated counts; spellings of one perturbation ("A+ctrl", "ctrl+A") that count twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scgalore.errors import DataError, OptionError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import TypeAlias

    Genes: TypeAlias = tuple[str, ...]

__all__ = [
    "GROUPS",
    "Partition",
    "check_labels",
    "split_by_genes",
    "split_by_hits",
    "split_by_labels",
    "split_singles_by_genes",
]

GROUPS = ("combo_seen0", "combo_seen1", "combo_seen2", "unseen_single")
"""Groups of test perturbations: doubles by the number of their genes seen in training, and singles."""


@dataclass
class Partition:
    """Split of each label, by its position in the input list; ``groups`` has the group of test labels."""

    train: list[int] = field(default_factory=list)
    validation: list[int] = field(default_factory=list)
    test: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    groups: dict[int, str] = field(default_factory=dict)


def split_by_genes(
    labels: Sequence[Genes],
    *,
    seed: int,
    train_gene_set_size: float,
    combo_seen2_train_frac: float,
    validation_size: float,
    test_perts: Collection[str],
    only_test_set_perts: bool,
) -> Partition:
    """GEARS' ``simulation``: genes are held out, and test doubles are grouped by their number of held-out genes.

    Parameters
    ----------
    labels
        Genes of each label, one or two, in written order.
    seed
        Random seed.
    train_gene_set_size
        Fraction of genes seen in training.
    combo_seen2_train_frac
        Fraction of doubles of two seen genes in training.
    validation_size
        One minus both fractions in the second round, which splits validation from the training labels.
    test_perts
        Genes that must be held out; they are swapped with others.
    only_test_set_perts
        Whether no other genes are held out.
    """
    generator = _legacy(seed)
    genes = _genes(labels, range(len(labels)))
    seen = (
        set(genes) - set(test_perts)
        if only_test_set_perts
        else _seen_genes(genes, train_gene_set_size, generator, test_perts)
    )
    kept, held, groups = _by_seen_genes(labels, range(len(labels)), seen, combo_seen2_train_frac, seed)
    share = 1 - validation_size
    again = _seen_genes(_genes(labels, kept), share, _legacy(seed), ())
    train, validation, _ = _by_seen_genes(labels, kept, again, share, seed)
    return Partition(train, validation, held, groups=groups)


def split_singles_by_genes(
    labels: Sequence[Genes], *, seed: int, train_gene_set_size: float, validation_size: float
) -> Partition:
    """GEARS' ``simulation_single``: ``simulation`` on singles only; doubles, for which GEARS fails, are dropped.

    Parameters
    ----------
    labels, seed, train_gene_set_size, validation_size
        As in :func:`split_by_genes`.
    """
    singles = [i for i, genes in enumerate(labels) if len(genes) == 1]
    part = split_by_genes(
        [labels[i] for i in singles],
        seed=seed,
        train_gene_set_size=train_gene_set_size,
        combo_seen2_train_frac=1.0,
        validation_size=validation_size,
        test_perts=(),
        only_test_set_perts=False,
    )
    return Partition(
        [singles[i] for i in part.train],
        [singles[i] for i in part.validation],
        [singles[i] for i in part.test],
        dropped=sorted(set(range(len(labels))) - set(singles)),
        groups={singles[i]: group for i, group in part.groups.items()},
    )


# Split of doubles with one and with two held-out genes.
_FATES = {
    "single": ("dropped", "dropped"),
    "combo_seen0": ("dropped", "held"),
    "combo_seen1": ("held", "held"),
}


def split_by_hits(
    labels: Sequence[Genes], *, kind: str, seed: int, test_size: float, validation_size: float
) -> Partition:
    """GEARS' ``single``, ``combo_seen0`` and ``combo_seen1``: genes are drawn; their singles and some doubles are tested.

    Parameters
    ----------
    labels
        As in :func:`split_by_genes`.
    kind
        One of the three.
    seed
        As in :func:`split_by_genes`.
    test_size, validation_size
        Number of genes to draw, with replacement, per single label.
    """
    generator = _legacy(seed)
    fates = _FATES[kind]
    kept, test, dropped = _hit_round(labels, range(len(labels)), fates, test_size, generator)
    train, validation, more = _hit_round(labels, kept, fates, validation_size, generator)
    return Partition(train, validation, test, dropped + more)


def split_by_labels(
    labels: Sequence[Genes], *, seed: int, validation_size: float, test_size: float | None = None
) -> Partition:
    """GEARS' ``combo_seen2`` (doubles are drawn for the test set) and ``no_test`` (labels are drawn for validation).

    Both depend on the order of the labels.

    Parameters
    ----------
    labels, seed
        As in :func:`split_by_genes`.
    validation_size, test_size
        Fraction of labels to draw, with replacement; without ``test_size`` there is no test split.
    """
    generator = _legacy(seed)
    kept, test = list(range(len(labels))), list[int]()
    if test_size is None:
        train, validation = _label_round(labels, kept, kept, validation_size, generator)
        return Partition(train, validation)
    kept, test = _label_round(labels, kept, _doubles(labels, kept), test_size, generator)
    train, validation = _label_round(labels, kept, _doubles(labels, kept), validation_size, generator)
    return Partition(train, validation, test)


def check_labels(labels: Sequence[Genes]) -> None:
    """Raise :class:`~scgalore.errors.DataError` if a label has more genes than the splits of GEARS are defined for."""
    many = [genes for genes in labels if len(genes) > 2]
    if many:
        msg = (
            f"The splits of GEARS are defined for one or two perturbed genes; {len(many):,} labels have more, such as "
            f"{'+'.join(many[0])!r}. Use kind='custom' or 'cell', or exclude those cells."
        )
        raise DataError(msg)


def _legacy(seed: int) -> np.random.RandomState:
    # Published splits used the legacy generator; an instance does not change the global state.
    return np.random.RandomState(seed)


def _draw(generator: np.random.RandomState, items: Sequence[int], n: int, *, replace: bool) -> list[int]:
    return [items[i] for i in generator.choice(len(items), n, replace=replace)] if items else []


def _genes(labels: Sequence[Genes], among: Collection[int]) -> list[str]:
    return sorted({gene for i in among for gene in labels[i]})


def _doubles(labels: Sequence[Genes], among: Collection[int]) -> list[int]:
    return [i for i in among if len(labels[i]) == 2]


def _seen_genes(
    genes: list[str], share: float, generator: np.random.RandomState, test_perts: Collection[str]
) -> set[str]:
    seen = {genes[i] for i in _draw(generator, range(len(genes)), int(len(genes) * share), replace=False)}
    leaving = seen & set(test_perts)
    pool = sorted(set(genes) - seen - set(test_perts))
    if len(pool) < len(leaving):
        msg = (
            f"test_perts removes {len(leaving)} genes from training, but only {len(pool)} others can replace them. "
            "Decrease train_gene_set_size, or pass only_test_set_perts=True."
        )
        raise OptionError(msg)
    entering = _draw(generator, range(len(pool)), len(leaving), replace=False) if leaving else []
    return (seen - leaving) | {pool[i] for i in entering}


def _by_seen_genes(
    labels: Sequence[Genes], among: Collection[int], seen: set[str], train_frac: float, seed: int
) -> tuple[list[int], list[int], dict[int, str]]:
    """Labels that are kept, labels held out, and the groups of the latter."""
    n_seen = {i: sum(gene in seen for gene in labels[i]) for i in among}
    doubles = set(_doubles(labels, among))
    # Sorted as written: "B+A" and "A+B" have different positions.
    familiar = sorted((i for i in doubles if n_seen[i] == 2), key=lambda i: "+".join(labels[i]))
    kept = set(_draw(_legacy(seed), familiar, int(len(familiar) * train_frac), replace=False))
    kept |= {i for i in among if i not in doubles and n_seen[i]}
    held = [i for i in among if i not in kept]
    groups = {i: GROUPS[n_seen[i]] if i in doubles else GROUPS[3] for i in held}
    return [i for i in among if i in kept], held, groups


def _hit_genes(
    labels: Sequence[Genes], among: Collection[int], share: float, generator: np.random.RandomState
) -> set[str]:
    genes = _genes(labels, among)
    n = int(sum(len(labels[i]) == 1 for i in among) * share)
    return {genes[i] for i in _draw(generator, range(len(genes)), n, replace=True)}


def _hit_round(
    labels: Sequence[Genes],
    among: Collection[int],
    fates: tuple[str, str],
    share: float,
    generator: np.random.RandomState,
) -> tuple[list[int], list[int], list[int]]:
    """Labels that are kept, held out, and dropped."""
    hit = _hit_genes(labels, among, share, generator)
    parts: dict[str, list[int]] = {"kept": [], "held": [], "dropped": []}
    for i in among:
        n_hit = sum(gene in hit for gene in labels[i])
        fate = "kept" if not n_hit else "held" if len(labels[i]) == 1 else fates[n_hit - 1]
        parts[fate].append(i)
    return parts["kept"], parts["held"], parts["dropped"]


def _label_round(
    labels: Sequence[Genes],
    among: Collection[int],
    pool: Sequence[int],
    share: float,
    generator: np.random.RandomState,
) -> tuple[list[int], list[int]]:
    """Labels that are kept, and labels held out."""
    _hit_genes(labels, among, share, generator)  # drawn but not used by GEARS; advances the generator
    held = set(_draw(generator, pool, int(len(pool) * share), replace=True))
    return [i for i in among if i not in held], sorted(held)
