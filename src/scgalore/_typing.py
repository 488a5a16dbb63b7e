"""Names for types that many signatures share. Aliases are strings, so that nothing heavy is imported for them."""

import os
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from anndata import AnnData
    from mudata import MuData

__all__ = ["Control", "Data", "Label", "PathLike", "Rng"]

Data: TypeAlias = "AnnData | MuData"
"""Data that user functions accept; of a MuData, one modality is used."""

PathLike: TypeAlias = str | os.PathLike[str]

Rng: TypeAlias = "int | np.random.Generator | None"
"""Seed, generator, or ``None`` for fresh entropy."""

Label: TypeAlias = str | int | float
"""A label as users write it; :mod:`scgalore.data.texts` converts it to text."""

Control: TypeAlias = "Label | Sequence[Label] | None"
"""Control label, a pattern that matches several, or a list of these; ``None`` detects it."""
