"""The ranking of genes that a curriculum follows: what was written, or made now from the training cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scgalore import _logging as logg
from scgalore._keys import GeneKeys
from scgalore.data.cells import gene_ranks
from scgalore.errors import OptionError
from scgalore.selection.ranking import rank_adata

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore.train.config import TrainConfig

__all__ = ["curriculum_ranks", "ranked_key"]


def ranked_key(adata: AnnData, config: TrainConfig, genes_key: str | None) -> str | None:
    """Key of the ranking that a curriculum follows; ``None`` where training cells are to be ranked, or there is none.

    Parameters
    ----------
    adata, config
        Cells by genes, and how to train.
    genes_key
        As for :func:`scgalore.tl.finetune`.

    Raises
    ------
    OptionError
        If a key was named without a curriculum.
    """
    if config.curriculum is None:
        if genes_key is not None:
            msg = f"genes_key={genes_key!r} belongs to a curriculum. Pass curriculum=True, or leave genes_key out."
            raise OptionError(msg)
        return None
    default = GeneKeys()
    return default.selected if genes_key is None and default.rank in adata.var else genes_key


def curriculum_ranks(
    adata: AnnData,
    config: TrainConfig,
    genes_key: str | None,
    *,
    train: NDArray[np.bool_],
    gene_strategy: str = "biological",
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
        From :func:`ranked_key`.
    train
        Cells that may be looked at where genes are ranked now, bool ``(n_obs,)``.
    gene_strategy
        How they are ranked then.
    **read
        How to read the AnnData, as for :func:`scgalore.tl.select_genes`.

    Raises
    ------
    MissingKeyError
        If nothing was ranked under the key.
    """
    if config.curriculum is None:
        return None
    if genes_key is not None:
        return gene_ranks(adata, genes_key)
    logg.info(f"    genes ranked from {int(train.sum()):,} training cells ({gene_strategy!r})")
    return rank_adata(adata, gene_strategy, train=train, **read).rank
