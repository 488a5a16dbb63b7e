"""Cells to edit in silico, by group, and cells of the target state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from scgalore._words import few
from scgalore.data.columns import read_column
from scgalore.data.hashing import uniforms
from scgalore.data.texts import same_label, texts_of
from scgalore.errors import DataError, MissingKeyError, OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore._typing import Label

__all__ = ["States"]

ALL = "all"
"""Name of the single group if cells have none."""


@dataclass(frozen=True)
class States:
    """Cells by group, and those of the target state.

    Attributes
    ----------
    names
        Names of the groups.
    codes
        Group of each cell, int64 ``(n_obs,)``; -1 for cells that are not edited.
    target
        Cells of the target state, bool ``(n_obs,)``; ``None`` without one.
    """

    names: tuple[str, ...]
    codes: NDArray[np.int64] = field(repr=False)
    target: NDArray[np.bool_] | None = field(repr=False)

    @classmethod
    def of(
        cls,
        adata: AnnData,
        *,
        groupby: str | None,
        groups: Label | Sequence[Label] | None,
        target_key: str | None,
        target: Label | None,
    ) -> States:
        """Read the columns.

        Parameters
        ----------
        adata
            The cells.
        groupby, groups, target_key, target
            As for :func:`scgalore.tl.perturb_in_silico`.

        Raises
        ------
        MissingKeyError
            If a column or a label does not exist.
        OptionError
            If one of two arguments that belong together is missing.
        DataError
            If there is no cell to edit.
        """
        if (target_key is None) != (target is None):
            given, lacks = ("target_key", "target") if target is None else ("target", "target_key")
            msg = f"{given}= needs {lacks}=: a column of adata.obs and the label of the target state. Pass both, or neither."
            raise OptionError(msg)
        if groups is not None and groupby is None:
            msg = f"groups={groups!r} needs groupby=, the column of adata.obs with these labels."
            raise OptionError(msg)
        wanted = None if target_key is None else _has_label(adata, target_key, target, "target_key")
        labels = np.full(adata.n_obs, ALL, dtype=object)
        names: Sequence[str] = (ALL,)
        if groupby is not None:
            labels = texts_of(read_column(adata.obs, groupby, asked="groupby"))
            names = sorted({label for label in labels if label is not None})
            if groups is not None:
                chosen = [groups] if isinstance(groups, str | int | float) else list(groups)
                names = [_existing_label(group, names, groupby) for group in chosen]
        place = {name: code for code, name in enumerate(names)}
        codes = np.array([place.get(label, -1) for label in labels], dtype=np.int64)
        if wanted is not None:
            codes[wanted] = -1
        counts = np.bincount(codes[codes >= 0], minlength=len(names))
        if groups is None:
            # Groups whose cells are all in the target state cannot be moved towards it.
            kept = np.flatnonzero(counts).tolist()
            codes = np.append([kept.index(i) if i in kept else -1 for i in range(len(names))], -1)[codes]
            names, counts = [names[i] for i in kept], counts[kept]
        empty = [name for name, count in zip(names, counts, strict=True) if count == 0]
        if empty or not names:
            what = f"{few(empty)} of adata.obs[{groupby!r}]" if empty else "adata"
            already = "" if wanted is None else f" outside the target {target!r}"
            msg = f"{what} has no cell to change{already}. Choose other groups= or another target=."
            raise DataError(msg)
        return cls(tuple(names), codes, wanted)

    def pick(self, keys: NDArray[np.uint64], n: int, *, seed: int) -> NDArray[np.int64]:
        """Sample cells of each group, depending on their content and not on their order.

        Parameters
        ----------
        keys
            Content keys of all cells.
        n
            Maximum number of cells per group.
        seed
            Seed for sampling.

        Returns
        -------
        Row numbers, sorted.
        """
        u = uniforms(seed, "cells to edit", keys, np.zeros(len(keys), dtype=np.int64))
        return _smallest(u, self.codes, len(self.names), n)

    def pick_target(self, keys: NDArray[np.uint64], n: int, *, seed: int) -> NDArray[np.int64]:
        """Sample cells of the target state, as :meth:`pick` does."""
        assert self.target is not None
        u = uniforms(seed, "cells of the target", keys, np.zeros(len(keys), dtype=np.int64))
        return _smallest(u, np.where(self.target, 0, -1), 1, n)


def _smallest(u: NDArray[np.float64], codes: NDArray[np.int64], n_groups: int, n: int) -> NDArray[np.int64]:
    picked = []
    for group in range(n_groups):
        members = np.flatnonzero(codes == group)
        picked.append(members[np.argsort(u[members], kind="stable")[:n]])
    return np.sort(np.concatenate(picked))


def _has_label(adata: AnnData, key: str, label: Any, asked: str) -> NDArray[np.bool_]:
    column = texts_of(read_column(adata.obs, key, asked=asked))
    found = _existing_label(label, sorted({text for text in column if text is not None}), key)
    return column == found


def _existing_label(label: Any, names: Sequence[str], key: str) -> str:
    found = same_label(label, names)
    if found is None or found not in names:
        msg = f"No cell is labelled {label!r} in adata.obs[{key!r}], which has {few(names, 5)}."
        raise MissingKeyError(msg)
    return found
