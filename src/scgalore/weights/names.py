"""Tensor names: every spelling found in scGPT checkpoints, turned into the one of the released files."""

import re
from collections.abc import Iterable

from scgalore.errors import WeightsError

__all__ = ["canonical_name", "canonical_names"]

_SPELLINGS = (
    (r"^(module\.)+", ""),  # saved from DistributedDataParallel
    (r"^gene_encoder\.", "encoder."),  # the three of the safetensors copy
    (r"^transformer\.", "transformer_encoder."),
    (r"^expr_decoder\.", "decoder."),
    (r"\.self_attn\._impl\.", ".self_attn."),  # upstream >= 0.2.5 with flash-attn
    (r"\.self_attn\.in_proj_(weight|bias)$", r".self_attn.Wqkv.\1"),  # torch's attention: same rows, other name
)


def canonical_name(name: str) -> str:
    """Spell a tensor's name as the released scGPT files do.

    Parameters
    ----------
    name
        Name in a checkpoint of any layout.
    """
    for pattern, replacement in _SPELLINGS:
        name = re.sub(pattern, replacement, name)
    return name


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """Map each name of a checkpoint to its canonical spelling.

    Parameters
    ----------
    names
        All names of one checkpoint.

    Raises
    ------
    WeightsError
        If two tensors end at the same name.
    """
    spelled: dict[str, str] = {}
    for name in names:
        canonical = canonical_name(name)
        if canonical in spelled:
            msg = f"The tensors {spelled[canonical]!r} and {name!r} both stand for {canonical!r}. Remove one of them."
            raise WeightsError(msg)
        spelled[canonical] = name
    return {name: canonical for canonical, name in spelled.items()}
