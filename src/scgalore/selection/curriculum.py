"""Ranking of genes for a curriculum: stored in the AnnData, or computed from the training cells."""

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
    """Key of the ranking for a curriculum; ``None`` if it has to be computed, or there is no curriculum.

    Parameters
    ----------
    adata, config
        Cells by genes, and the training configuration.
    genes_key
        As for :func:`scgalore.tl.finetune`.

    Raises
    ------
    OptionError
        If a key was passed without a curriculum.
    """
    if config.curriculum is None:
        if genes_key is not None:
            msg = f"genes_key={genes_key!r} requires a curriculum. Pass curriculum=True, or omit genes_key=."
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
    """Rank of each gene, 0 is the best, NaN for unranked genes, float64 ``(n_vars,)``; ``None`` without a curriculum.

    Parameters
    ----------
    adata
        Cells by genes.
    config
        Training configuration.
    genes_key
        Result of :func:`ranked_key`.
    train
        Training cells, from which genes are ranked without a stored ranking, bool ``(n_obs,)``.
    gene_strategy
        Strategy for that ranking.
    **read
        Options for reading the AnnData, as for :func:`scgalore.tl.select_genes`.

    Raises
    ------
    MissingKeyError
        If there is no ranking under the key.
    """
    if config.curriculum is None:
        return None
    if genes_key is not None:
        return gene_ranks(adata, genes_key)
    logg.info(f"    genes ranked from {int(train.sum()):,} training cells ({gene_strategy!r})")
    return rank_adata(adata, gene_strategy, train=train, **read).rank
