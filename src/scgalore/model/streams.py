"""Training on a stream of many files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anndata import AnnData

from scgalore.data.buffers import refuse_unknown
from scgalore.data.labels import class_codes, classes_of
from scgalore.errors import MissingKeyError, OptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgalore.data.split import Split
    from scgalore.data.streaming import TokenStream

__all__ = ["check_stream_options", "validation_labels"]


def check_stream_options(
    stream: TokenStream,
    *,
    split: Split | None,
    labels_key: str | None,
    validation: AnnData | TokenStream | None,
) -> None:
    """Refuse what does not go with a stream.

    Raises
    ------
    OptionError
        If a split or labels are asked for that the stream does not have, or validation cells lack its classes.
    """
    if split is not None:
        msg = "split= does not go with a stream, which trains on all of its cells. Pass other cells as validation=."
        raise OptionError(msg)
    if labels_key is not None and not stream.classes:
        msg = f"labels_key={labels_key!r}, but the stream reads no labels. Make it with labels_key={labels_key!r}."
        raise OptionError(msg)
    if not stream.classes or validation is None:
        return
    if isinstance(validation, AnnData):
        if labels_key is None:
            msg = (
                "Cells to validate on need labels as the stream has: pass labels_key=, their column in validation.obs."
            )
            raise OptionError(msg)
    elif validation.classes != stream.classes:
        msg = (
            f"The stream to validate on has the classes {list(validation.classes)[:5]} and the one to train on "
            f"{list(stream.classes)[:5]}. Make it with labels_key= and classes=, the classes of the other stream."
        )
        raise OptionError(msg)


def validation_labels(adata: AnnData, stream: TokenStream, labels_key: str | None) -> dict[str, NDArray[Any]]:
    """Codes of the labels of validation cells, as the stream's classes have them, as targets.

    Raises
    ------
    DataError
        If a label is missing or none of the stream's classes.
    MissingKeyError
        If there is no such column.
    """
    if labels_key is None:
        return {}
    if labels_key not in adata.obs:
        msg = f"validation.obs has no column {labels_key!r}; it has {list(adata.obs.columns)}."
        raise MissingKeyError(msg)
    labels, where = adata.obs[labels_key], f"validation.obs[{labels_key!r}]"
    refuse_unknown(classes_of(labels, where), stream.classes, where)
    return {"labels": class_codes(labels, stream.classes)}
