"""The ranking of genes that a curriculum follows: what was written, or made now from the training cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scgalore import _logging as logg
from scgalore.data.cells import gene_ranks
from scgalore.errors import OptionError

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore.train.config import TrainConfig

__all__ = ["curriculum_ranks"]

DEFAULT_KEY = "selected"


def curriculum_ranks(
    adata: AnnData,
    config: TrainConfig,
    genes_key: str | None,
    *,
    train: NDArray[np.bool_],
    strategy: str = "biological",
    **read: Any,
) -> NDArray[np.float64] | None:
    """Rank of each gene, 0 the best, NaN for genes without, float64 ``(n_vars,)``; ``None`` without a curriculum.

    Parameters
    ----------
    adata
        Cells by genes.
    config
        How to train.
    genes_key
        As for :func:`scgalore.tl.finetune`.
    train
        Cells that may be looked at where genes are ranked now, bool ``(n_obs,)``.
    strategy
        How they are ranked then.
    **read
        How to read the AnnData, as for :func:`scgalore.tl.select_genes`.

    Raises
    ------
    MissingKeyError
        If nothing was ranked under a key that was named.
    OptionError
        If a key was named without a curriculum.
    """
    if config.curriculum is None:
        if genes_key is not None:
            msg = f"genes_key={genes_key!r} belongs to a curriculum. Pass curriculum=True, or leave genes_key out."
            raise OptionError(msg)
        return None
    key = DEFAULT_KEY if genes_key is None else genes_key
    if genes_key is not None or f"{key}_rank" in adata.var:
        return gene_ranks(adata, key)
    from scgalore.tl._ranking import rank_adata

    logg.info(f"    genes ranked from {int(train.sum()):,} training cells ({strategy!r})")
    return rank_adata(adata, strategy, train=train, **read).rank
