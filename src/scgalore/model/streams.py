"""Training on a stream of many files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scgalore.data.buffers import refuse_unknown
from scgalore.data.labels import class_codes, classes_of
from scgalore.errors import MissingKeyError, OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from scgalore.data.cells import TokenCells
    from scgalore.data.split import Split
    from scgalore.data.streaming import TokenStream

__all__ = ["check_stream_options", "with_labels_of"]


def check_stream_options(
    stream: TokenStream,
    options: Mapping[str, Any],
    *,
    split: Split | None,
    labels_key: str | None,
    validation: AnnData | None,
) -> None:
    """Refuse what a stream decides itself.

    Raises
    ------
    OptionError
        If a split, a size of batches, or labels are asked for that the stream does not have.
    """
    for name, why in (("split", split is not None), ("batch_size", "batch_size" in options)):
        if why:
            msg = f"{name}= does not go with a stream, which has its own batches and trains on all of its cells."
            raise OptionError(msg)
    if labels_key is not None and not stream.classes:
        msg = f"labels_key={labels_key!r}, but the stream reads no labels. Make it with labels_key={labels_key!r}."
        raise OptionError(msg)
    if stream.classes and validation is not None and labels_key is None:
        msg = "Cells to validate on need labels as the stream has: pass labels_key=, their column in validation.obs."
        raise OptionError(msg)


def with_labels_of(cells: TokenCells, adata: AnnData, stream: TokenStream, labels_key: str | None) -> TokenCells:
    """Give validation cells the codes that the stream's classes have.

    Raises
    ------
    DataError
        If a label is missing or none of the stream's classes.
    MissingKeyError
        If there is no such column.
    """
    if labels_key is None:
        return cells
    if labels_key not in adata.obs:
        msg = f"validation.obs has no column {labels_key!r}; it has {list(adata.obs.columns)}."
        raise MissingKeyError(msg)
    labels, where = adata.obs[labels_key], f"validation.obs[{labels_key!r}]"
    refuse_unknown(classes_of(labels, where), stream.classes, where)
    return cells.with_labels(class_codes(labels, stream.classes), stream.classes)
