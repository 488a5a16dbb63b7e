"""Checkpoint folders of scGPT; tensor names of all layouts are converted to those of the released files."""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from scgalore.errors import WeightsError
from scgalore.weights.checkpoint import Checkpoint, read_checkpoint

__all__ = ["canonical_name", "canonical_names", "read_scgpt"]

TABLE = "encoder.embedding.weight"

_SPELLINGS = (
    (r"^(module\.)+", ""),  # saved from DistributedDataParallel
    (r"^gene_encoder\.", "encoder."),  # the three of the safetensors copy
    (r"^transformer\.", "transformer_encoder."),
    (r"^expr_decoder\.", "decoder."),
    (r"\.self_attn\._impl\.", ".self_attn."),  # scGPT >= 0.2.5 with flash-attn
    (r"\.self_attn\.in_proj_(weight|bias)$", r".self_attn.Wqkv.\1"),  # PyTorch's attention: same rows, other name
)


def read_scgpt(folder: str | os.PathLike[str], *, args: Mapping[str, Any] | None = None) -> Checkpoint:
    """Read a folder with scGPT weights, in the layout of scgalore, of scGPT, or of a safetensors copy.

    Parameters
    ----------
    folder, args
        As for :func:`scgalore.weights.read_checkpoint`.

    Returns
    -------
    The checkpoint, with the tensor names of the released files.

    Raises
    ------
    WeightsError
        As for :func:`scgalore.weights.read_checkpoint`, and if the vocabulary has more tokens than there are embeddings.

    See Also
    --------
    scgalore.weights.read_checkpoint : Read a checkpoint folder of any layout.
    scgalore.weights.export_scgpt : Write a checkpoint folder of scGPT.

    Examples
    --------
    >>> import scgalore as sg
    >>> folder = sg.weights.fetch_weights("scgpt-mini")
    >>> checkpoint = sg.weights.read_scgpt(folder)
    """
    checkpoint = read_checkpoint(folder, args=args, names=canonical_names)
    table, last = checkpoint.tensors.get(TABLE), max(checkpoint.vocab.values())
    if table is not None and table.ndim == 2 and last >= len(table):
        msg = (
            f"vocab.json has ids up to {last:,}, but {checkpoint.folder} embeds {len(table):,} tokens: vocabulary and "
            "weights do not belong together. Take both from the same folder."
        )
        raise WeightsError(msg)
    return checkpoint


def canonical_name(name: str) -> str:
    """Convert a tensor's name to that in the released scGPT files.

    Parameters
    ----------
    name
        Name in a checkpoint of any layout.
    """
    for pattern, replacement in _SPELLINGS:
        name = re.sub(pattern, replacement, name)
    return name


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """Map each name of a checkpoint to its canonical name.

    Parameters
    ----------
    names
        All names of one checkpoint.

    Raises
    ------
    WeightsError
        If two tensors get the same name.
    """
    spelled: dict[str, str] = {}
    for name in names:
        canonical = canonical_name(name)
        if canonical in spelled:
            msg = f"The tensors {spelled[canonical]!r} and {name!r} both stand for {canonical!r}. Remove one of them."
            raise WeightsError(msg)
        spelled[canonical] = name
    return {name: canonical for canonical, name in spelled.items()}
