"""A training call: task arguments, cells and configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scgalore.data.columns import read_column
from scgalore.data.reading import AS_IT_IS, Reading
from scgalore.data.split import Split, random_split, split_from_labels
from scgalore.errors import DataError
from scgalore.selection.curriculum import curriculum_ranks, ranked_key

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore.train.config import TrainConfig

__all__ = ["TrainingCall"]


@dataclass(frozen=True)
class TrainingCall:
    """A checked call of :func:`scgalore.tl.finetune`, of ``train`` of a model, or of a pipeline run.

    Attributes
    ----------
    arguments
        Complete arguments of the task.
    config
        Training configuration.
    given
        Training options that were given or are defaults of the task, for ``uns``.
    reading
        How to read the expression.
    split
        The split, if passed as an object.
    split_key
        Column of ``obs`` with the split; ``None`` draws one.
    validation_size, test_size
        Fractions of the cells for a random split.
    genes_key
        Key of the ranking by :func:`scgalore.tl.select_genes`, for a curriculum.
    validation
        Validation cells, if they are not part of the training data.
    """

    arguments: dict[str, Any]
    config: TrainConfig
    given: dict[str, Any]
    reading: Reading = AS_IT_IS
    split: Split | None = None
    split_key: str | None = None
    validation_size: float = 0.1
    test_size: float = 0.1
    genes_key: str | None = None
    validation: Any = None

    @property
    def seed(self) -> int:
        """Seed for all random draws."""
        return self.config.seed

    def split_of(self, adata: AnnData, strata: NDArray[np.int64] | None = None) -> Split:
        """Split of cells: as passed, from its column, or drawn at random.

        Parameters
        ----------
        adata
            The cells.
        strata
            Code of each cell's stratum, for a stratified random split.

        Raises
        ------
        MissingKeyError, DataError
            If the column does not exist or does not contain a split.
        """
        if self.split is not None:
            self.split.check(adata.n_obs)
            return self.split
        if self.split_key is None:
            sizes = {"validation_size": self.validation_size, "test_size": self.test_size}
            return random_split(adata.n_obs, strata=strata, seed=self.seed, **sizes)
        column = read_column(adata.obs, self.split_key)
        try:
            return split_from_labels(column)
        except DataError as error:
            msg = f"adata.obs[{self.split_key!r}] is not a split. {error}"
            raise DataError(msg) from error

    def ranking_key(self, adata: AnnData) -> str | None:
        """Key of the ranking for a curriculum, or ``None``."""
        return ranked_key(adata, self.config, self.genes_key)

    def ranks_of(self, adata: AnnData, train: NDArray[np.bool_], **how: Any) -> NDArray[np.float64] | None:
        """Rank of each gene for a curriculum, 0 is the best, float64 ``(n_vars,)``; ``None`` without a curriculum.

        Parameters
        ----------
        adata
            Cells by genes.
        train
            Training cells, for ranking genes now, bool ``(n_obs,)``.
        **how
            ``gene_strategy`` and other parameters of :func:`scgalore.tl.select_genes`.
        """
        read = {**self.reading.params(), **how}
        return curriculum_ranks(adata, self.config, self.ranking_key(adata), train=train, **read)
