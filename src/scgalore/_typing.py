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
"""What the user's functions take; a MuData is worked on through one of its modalities."""

PathLike: TypeAlias = str | os.PathLike[str]

Rng: TypeAlias = "int | np.random.Generator | None"
"""Seed, generator, or fresh entropy."""

Label: TypeAlias = str | int | float
"""A label as users write it; :mod:`scgalore.data.texts` makes text of it."""

Control: TypeAlias = "Label | Sequence[Label] | None"
"""Label of control, a pattern of several, or a list of either; ``None`` finds it."""
