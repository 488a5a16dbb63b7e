"""Cells of a loader of another package, such as annbatch, as buffers of a stream."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch

from scgalore.data.buffers import Part, Share
from scgalore.data.coded import refuse_unknown
from scgalore.data.labels import class_codes, class_names, classes_of
from scgalore.data.match import advice_for, match_genes
from scgalore.data.matrix import CellMatrix, canonical
from scgalore.data.names import as_names
from scgalore.data.reading import AS_IT_IS
from scgalore.data.scale import log_base_of
from scgalore.data.seen import Seen, sums_of
from scgalore.data.tokenizer import Tokenizer
from scgalore.errors import DataError, MissingKeyError, OptionError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from scgalore.data.reading import Reading
    from scgalore.data.tokens import TokenizerConfig
    from scgalore.data.vocab import GeneVocab

__all__ = ["LoaderBuffers"]


class LoaderBuffers:
    """Cells in the order of another loader.

    Parameters
    ----------
    loader
        Loader that yields dictionaries with ``X`` and optionally ``obs`` and ``index``, and has ``n_obs`` and ``var``.
    vocab
        Vocabulary of the network.
    config
        Tokenizer settings.
    labels_key
        Column of ``obs`` with labels.
    classes
        Names of the classes.
    reading
        How to read the names of its genes.
    """

    name = "the loader"
    block_size = 0  # determined by the loader
    class_counts = None  # labels are unknown before reading

    def __init__(
        self,
        loader: Any,
        vocab: GeneVocab,
        config: TokenizerConfig,
        *,
        labels_key: str | None,
        classes: Sequence[object] | None,
        reading: Reading = AS_IT_IS,
    ) -> None:
        if loader.var is None:
            msg = "The loader has no gene names, since its var is None. Add AnnData objects with var to it."
            raise DataError(msg)
        if labels_key is not None and classes is None:
            msg = "Labels of a loader are unknown before reading. Pass the names of all classes as classes=."
            raise OptionError(msg)
        self._loader, self._labels_key, self.reading = loader, labels_key, reading
        self.classes = class_names(classes or ())
        self._genes = as_names(loader.var.index)
        self._match = match_genes(self._genes, vocab, species=reading.species)
        self._vocab, self._checked = vocab, False
        #: Tokenizer.
        self.tokenizer = Tokenizer.of_vocab(self._match.token_ids, vocab, config)

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return int(self._loader.n_obs)

    @property
    def names(self) -> tuple[str, ...]:
        """It is one source."""
        return (self.name,)

    @property
    def files(self) -> tuple[str, ...]:
        """Its files are unknown."""
        return (self.name,)

    @property
    def shares(self) -> dict[str, float]:
        """It is one source."""
        return {self.name: 1.0}

    def locate(self, cells: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Source of cells: the loader, with its indices."""
        return np.zeros_like(cells), np.zeros_like(cells), cells

    def identity(self) -> dict[str, str]:
        """Empty, since its files are unknown."""
        return {}

    def genes(self) -> NDArray[np.int64]:
        """Token ids of all genes, sorted."""
        return self.tokenizer.genes

    def read(
        self, share: Share, *, size: int, seeds: Sequence[int] | None
    ) -> Generator[tuple[int, list[Part]], None, None]:
        """Read the buffers with their indices, in the order of the loader.

        Parameters
        ----------
        share
            Must be the whole epoch; skipped buffers are also read.
        size
            Number of cells per buffer.
        seeds
            Not used.
        """
        if (len(share.cells), share.n_workers) != (self.n_obs, 1):
            msg = "A loader cannot be shared between ranks or DataLoader workers. Pass the files themselves."
            raise OptionError(msg)
        held: list[Part] = []
        seen = number = 0
        for item in self._loader:
            held.append(self._part(item, seen))
            seen += len(held[-1].cells)
            while sum(len(part.cells) for part in held) >= size:
                full, rest = _split(held, size)
                if number >= share.skipped:
                    yield number, full
                held, number = rest, number + 1
        if held and number >= share.skipped:
            yield number, held

    def _part(self, item: dict[str, Any], seen: int) -> Part:
        rows = canonical(_as_csr(item["X"]))
        index = item.get("index")
        cells = np.arange(seen, seen + rows.shape[0]) if index is None else np.asarray(index, dtype=np.int64)
        labels, allowed = self._labels(item.get("obs")), self.reading.min_matched == 0
        part = Part(rows, cells, labels, self.tokenizer, self.name, allow_unseen=allowed)
        part.check()
        if not self._checked:
            self._check(rows)
        return replace(part, tokenizer=self.tokenizer)

    def _check(self, rows: sp.csr_matrix) -> None:
        """Check the first cells, since expressed genes are unknown before reading."""
        advice = partial(advice_for, self._genes, self._vocab, species=self.reading.species)
        seen = Seen.of(*sums_of(rows, self._match.token_ids).T)
        seen.check(
            self._match, self.reading.min_matched, advice, where=f"{self.name}, in its first {rows.shape[0]:,} cells: "
        )
        config = self.tokenizer.config
        if config.classes:
            log_base = log_base_of(CellMatrix.from_rows(rows, self.name), data_type=self.reading.data_type)
            self.tokenizer = Tokenizer.of_vocab(self._match.token_ids, self._vocab, config, log_base=log_base)
        self._checked = True

    def _labels(self, obs: pd.DataFrame | None) -> NDArray[np.int64] | None:
        if self._labels_key is None:
            return None
        if obs is None or self._labels_key not in obs:
            columns = [] if obs is None else list(obs.columns)
            msg = f"The loader's obs has no column {self._labels_key!r}; it has {columns}."
            raise MissingKeyError(msg)
        refuse_unknown(classes_of(obs[self._labels_key], "the loader's obs"), self.classes, self.name)
        return class_codes(obs[self._labels_key], self.classes)


def _split(parts: list[Part], size: int) -> tuple[list[Part], list[Part]]:
    """The first ``size`` cells, and the others."""
    full: list[Part] = []
    rest: list[Part] = []
    for part in parts:
        n = min(size, len(part.cells))
        size -= n
        for place, cut in ((full, slice(None, n)), (rest, slice(n, None))):
            if len(part.cells[cut]):
                labels = None if part.labels is None else part.labels[cut]
                place.append(Part(part.rows[cut], part.cells[cut], labels, part.tokenizer, part.name))
    return full, rest


def _as_csr(x: Any) -> sp.csr_matrix:
    if isinstance(x, torch.Tensor):
        x = x.cpu()
        if x.layout == torch.sparse_csr:
            parts = (x.values(), x.col_indices(), x.crow_indices())
            return sp.csr_matrix(tuple(part.numpy() for part in parts), shape=tuple(x.shape), copy=True)
        x = x.to_dense().numpy()
    return sp.csr_matrix(x, copy=True)  # the loader may reuse its arrays
