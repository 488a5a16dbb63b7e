"""What runs that hold out cells have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from scgalore.data.split import PARTS, Split, random_split, split_from_labels
from scgalore.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore.pipeline.config import RunConfig

__all__ = ["CellSplit", "refuse_empty"]

OWN_KEY = "run_split"


class CellSplit:
    """Hold out cells, at random within strata or as a column says.

    Parameters
    ----------
    config
        Of the run.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    @property
    def split_key(self) -> str:
        """Column of ``obs`` with the part of each cell."""
        return self.config.split_key or OWN_KEY

    def keys(self) -> list[str]:
        """Each part of a split that is there keeps its share of the cells."""
        return [] if self.config.split_key is None else [self.config.split_key]

    def strata(self, adata: AnnData) -> NDArray[np.int64] | None:
        """Codes of the groups of which each part gets its share."""
        return None

    def split(self, adata: AnnData) -> None:
        """Write the part of each cell.

        Raises
        ------
        DataError
            If there is no cell to train on, to validate on or to test on.
        """
        strata = self.strata(adata)
        if self.config.split_key is None:
            config = self.config
            assert config.validation_size is not None
            assert config.test_size is not None
            split = random_split(
                adata.n_obs,
                validation_size=config.validation_size,
                test_size=config.test_size,
                strata=strata,
                seed=config.seed,
            )
        else:
            split = self.parts(adata)
        adata.obs[self.split_key] = pd.Categorical(split.labels(), categories=list(PARTS))
        refuse_empty(split.sizes(), "cell")

    def parts(self, adata: AnnData) -> Split:
        """Rows of each part."""
        return split_from_labels(adata.obs[self.split_key].astype(str).tolist())


def refuse_empty(sizes: dict[str, int], what: str) -> None:
    """Raise :class:`~scgalore.errors.DataError` if there is nothing to test on.

    Parameters
    ----------
    sizes
        How many are in each part.
    what
        Of what, in the singular.
    """
    if not sizes["test"] or not sizes["train"]:
        msg = (
            f"A run trains on some {what}s and scores others, and the split has {sizes}. Use more of them, other shares, or a "
            "split_key of your own."
        )
        raise DataError(msg)
