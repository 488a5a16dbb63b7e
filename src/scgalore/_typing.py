"""Names for types that many signatures share. Aliases are strings, so that nothing heavy is imported for them."""

import os
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData
    from mudata import MuData

__all__ = ["Data", "PathLike", "Rng"]

Data: TypeAlias = "AnnData | MuData"
"""What the user's functions take; a MuData is worked on through one of its modalities."""

PathLike: TypeAlias = str | os.PathLike[str]

Rng: TypeAlias = "int | np.random.Generator | None"
"""Seed, generator, or fresh entropy."""
