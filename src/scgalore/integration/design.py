"""Batch and label of each cell, and warnings about their distribution."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd

from scgalore._words import few
from scgalore.data.columns import read_column
from scgalore.data.labels import in_order, refuse_measurement
from scgalore.data.texts import looks_missing, texts_of
from scgalore.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["Design"]


@dataclass(frozen=True)
class Design:
    """Batches and labels of cells.

    Attributes
    ----------
    batches, labels
        Batch and label of each cell, int64 ``(n_obs,)``.
    batch_names, label_names
        Names by code.
    """

    batches: NDArray[np.int64] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    batch_names: tuple[str, ...]
    label_names: tuple[str, ...]

    @classmethod
    def of(cls, adata: AnnData, batch_key: str, labels_key: str) -> Self:
        """Read the columns.

        Raises
        ------
        MissingKeyError
            If a column does not exist.
        DataError
            If a value is missing, all are equal, or the column looks like a measurement or cell names.
        """
        batches, batch_names = _read(adata, batch_key, "batch_key", "batch")
        labels, label_names = _read(adata, labels_key, "labels_key", "label")
        return cls(batches, labels, batch_names, label_names)

    def table(self) -> NDArray[np.int64]:
        """Number of cells by label and batch, ``(n_labels, n_batches)``."""
        table = np.zeros((len(self.label_names), len(self.batch_names)), dtype=np.int64)
        np.add.at(table, (self.labels, self.batches), 1)
        return table

    def doubts(self) -> Iterator[str]:
        """Yield warnings about problems of the design."""
        table = self.table()
        shared = (table > 0).sum(axis=1) > 1
        if not shared.any():
            yield (
                "No label has cells of two batches, so batch effects and differences between labels are confounded: "
                "BRAS, ASW batch and kBET are undefined, and the other batch scores reward mixing cell types. Do not use "
                "them to compare integrations."
            )
        elif (share := table[shared].sum() / table.sum()) < 0.5:
            yield (
                f"Only {share:.0%} of the cells have a label that occurs in at least two batches; BRAS, ASW batch and kBET use only "
                "these cells."
            )
        for what, sizes, names in (
            ("Batches", table.sum(axis=0), self.batch_names),
            ("Labels", table.sum(axis=1), self.label_names),
        ):
            single = [name for name, size in zip(names, sizes, strict=True) if size == 1]
            if single:
                yield (
                    f"{what} with a single cell ({len(single):,}) affect every score but carry no information on integration: {few(single)}. "
                    "Exclude them, or merge them with others."
                )


def _read(adata: AnnData, key: str, argument: str, what: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    column, where = read_column(adata.obs, key, asked=argument), f"adata.obs[{key!r}]"
    texts = texts_of(column)
    missing = np.array([text is None or looks_missing(text) for text in texts])
    if missing.any():
        words = sorted({text for text in texts[missing] if text is not None})
        called = f" ({few(words)} counts as missing)" if words else ""
        chosen = f"{where}.notna()" + (f" & ~{where}.isin({words})" if words else "")
        msg = (
            f"{int(missing.sum()):,} of {len(texts):,} cells have no {what} in {where}{called}. Score the others: adata = "
            f"adata[{chosen}].copy()."
        )
        raise DataError(msg)
    names = in_order(texts)
    if len(names) < 2:
        found = f"only one {what}, {names[0]!r}" if names else f"no {what}"
        msg = f"{where} has {found}; expected at least two ({argument})."
        raise DataError(msg)
    refuse_measurement(column, where, n_classes=len(names))
    return pd.Categorical(texts, categories=names).codes.astype(np.int64), names
