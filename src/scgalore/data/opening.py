"""Makes a stream from sources: options are checked, and each file is inspected once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from anndata import AnnData

from scgalore._rng import seed_from
from scgalore.data.buffers import FileBuffers
from scgalore.data.collection import Collection
from scgalore.data.loaders import LoaderBuffers
from scgalore.data.looking import Wanted
from scgalore.data.query import Query
from scgalore.data.reading import Reading
from scgalore.data.sources import Source
from scgalore.data.streaming import TokenStream
from scgalore.data.tokens import TokenizerConfig
from scgalore.data.weighing import Weighing
from scgalore.errors import OptionError

if TYPE_CHECKING:
    from scgalore._typing import Rng
    from scgalore.data.collection import Listed
    from scgalore.data.vocab import GeneVocab

__all__ = ["stream"]


def stream(
    sources: Listed | Mapping[str, Listed] | Any,
    vocab: GeneVocab,
    *,
    config: TokenizerConfig | None = None,
    batch_size: int = 64,
    block_size: int = 256,
    buffer_size: int = 8192,
    shuffle: bool = True,
    rng: Rng = 0,
    where: str | Mapping[str, str] | None = None,
    shares: Mapping[str, float] | None = None,
    weights_key: str | None = None,
    weights: Mapping[Any, float] | None = None,
    layer: str | Mapping[str, str] | None = "auto",
    gene_symbols: str | Mapping[str, str] | None = None,
    data_type: str | Mapping[str, str] | None = None,
    species: str | Mapping[str, str] | None = None,
    min_matched: float | None = None,
    labels_key: str | None = None,
    classes: Sequence[object] | None = None,
    rank: int | None = None,
    world_size: int | None = None,
) -> TokenStream:
    """Stream token batches from many files.

    Genes are matched by name in each source, so sources may have different genes in different orders. A cell gets the
    same tokens as in :class:`~scgalore.data.cells.TokenCells` made from its file alone. What is inferred from a file,
    such as which matrix contains counts, is logged once.

    Parameters
    ----------
    sources
        One or several paths of ``.h5ad`` files or ``.zarr`` folders, or AnnData objects in memory or backed. Any other
        folder stands for all such files in it. Matrices in files must be CSR or dense. Named sources, ``{"blood":
        ["a.h5ad", "b.h5ad"], "pancreas": "folder/"}``, can have their own shares and options. Alternatively, a loader
        with the protocol of annbatch's ``Loader``: it has ``n_obs`` and ``var`` and yields dictionaries with ``X`` and
        optionally ``obs`` and ``index``. The loader determines the order; its cells are shuffled within the buffer.
        Tested with annbatch 0.3.1, which needs Python 3.12.
    vocab
        Vocabulary of the model.
    config
        Options of the tokenizer. By default, scGPT's pre-training settings with the seed ``rng``.
    batch_size
        Number of cells per batch; the last batch of an epoch may be smaller.
    block_size
        Number of adjacent rows that are read together. Shuffling moves whole blocks between buffers, so if files are
        sorted, for example by cell type, use small blocks and a large buffer.
    buffer_size
        Number of cells in memory that are shuffled together, rounded down to whole batches. The next buffer is read
        while the current one is used.
    shuffle
        Whether to draw blocks from all sources, shuffle the cells in the buffer and cut it into batches of similar
        length. Otherwise, cells keep their order.
    rng
        Seed for the order of blocks, cells and batches.
    where
        Query on ``obs`` that selects cells, in the syntax of :meth:`pandas.DataFrame.query`: ``"is_primary_data and
        disease == 'normal'"``. Comparisons, ``and``, ``or``, ``not``, ``in``, literals, arithmetic and column names are
        supported; only these columns are read. A file without matching cells is skipped with a warning.
    shares
        Fraction of the drawn cells from each named source; values are normalised to sum to 1.
    weights_key
        Column of ``obs`` whose values are drawn equally often: within each source if ``shares`` is given, otherwise
        over all.
    weights
        Relative frequency of values of that column; values that are not listed have weight 1.
    layer
        Layer to read; ``None`` is ``X``, and ``"raw"`` is ``raw.X`` with the genes of ``raw.var``. ``"auto"`` searches
        for counts in a layer with such a name, ``raw.X`` and ``X``, in this order, based on the first cells.
    gene_symbols
        Column of ``var`` with gene names. By default, ``var_names``; if these are numbers or Ensembl ids, the column
        with the most matching genes.
    data_type, min_matched
        As for :func:`scgalore.tl.embed`.
    species
        As for :func:`scgalore.tl.embed`. By default, inferred from Ensembl ids or the column ``organism`` of ``obs``,
        otherwise human.
    labels_key
        Column of ``obs`` with class labels.
    classes
        Names of the classes, in the order of their codes. By default, all labels found, in the order of the categories
        if all sources agree on it, otherwise sorted (numbers by value).
    rank, world_size
        Rank of this process and number of processes. By default, from :mod:`torch.distributed`.

    Returns
    -------
    A dataset to iterate over, or to give to ``DataLoader(stream, batch_size=None)``.

    Raises
    ------
    DataError
        If a source does not exist, cannot be read, stores its matrix by columns, has no gene of the vocabulary, missing
        or unknown labels, or cells of two species; or if no cells remain. While reading: if a cell has negative, NaN or
        infinite values or no gene of the vocabulary, or a file has changed, is truncated or is missing.
    MissingKeyError
        If a layer or a column does not exist.
    OptionError
        If a size, ``rank`` or ``world_size`` is out of range, ``where`` is not a valid query, or a share or weight is
        invalid.

    Notes
    -----
    With ``shares`` or ``weights_key``, an epoch consists of independent draws with replacement, as many as there are
    cells. They depend only on the seed and the epoch. A cell drawn twice in an epoch is sampled and masked differently
    each time.

    ``layer``, ``gene_symbols``, ``data_type``, ``species`` and ``where`` may be mappings with one value per named
    source.

    Examples
    --------
    >>> batches = sg.data.stream(["lung.h5ad", "blood.h5ad"], model.vocab, batch_size=64)  # doctest: +SKIP
    >>> for epoch in range(3):  # doctest: +SKIP
    ...     batches.set_epoch(epoch)
    ...     for batch in batches:
    ...         ...
    """
    seed = seed_from(rng)
    config = TokenizerConfig(seed=seed) if config is None else config
    _check_sizes(batch_size, block_size, buffer_size)
    _check_rank(rank, world_size)
    readings = {
        "layer": layer,
        "gene_symbols": gene_symbols,
        "data_type": data_type,
        "species": species,
        "min_matched": min_matched,
    }
    drawing = {"shares": shares, "weights_key": weights_key, "weights": weights}
    buffers: FileBuffers | LoaderBuffers
    if _is_loader(sources):
        own = {"layer": None if layer == "auto" else layer, "gene_symbols": gene_symbols, "where": where, **drawing}
        given = [f"{name}=" for name, value in own.items() if value is not None]
        if given:
            msg = f"{' and '.join(given)} do not apply to a loader, which reads its files itself."
            raise OptionError(msg)
        reading = Reading.of({**readings, "layer": None})
        buffers = LoaderBuffers(sources, vocab, config, labels_key=labels_key, classes=classes, reading=reading)
    else:
        if not shuffle and any(value is not None for value in drawing.values()):
            msg = "shares= and weights_key= draw cells at random, so they cannot be combined with shuffle=False."
            raise OptionError(msg)
        collection = Collection.of(sources)
        weighing = Weighing.of(collection, shares, weights_key, weights)
        buffers = FileBuffers(
            _wanted(collection, where, readings),
            vocab,
            config,
            names=collection.names,
            block_size=block_size,
            labels_key=labels_key,
            classes=classes,
            weighing=weighing,
        )
    return TokenStream(
        buffers,
        batch_size=batch_size,
        buffer_size=buffer_size,
        seed=seed if shuffle else None,
        rank=rank,
        world_size=world_size,
        labels_key=labels_key,
    )


def _wanted(collection: Collection, where: str | Mapping[str, str] | None, readings: Mapping[str, Any]) -> list[Wanted]:
    """Options for reading each file."""
    queries = {
        text: None if text is None else Query.of(text) for text in dict.fromkeys(collection.each("where", where))
    }
    each = {name: collection.each(name, value) for name, value in readings.items()}
    return [
        Wanted(
            Source.of(what, number, reading=Reading.of({name: values[number] for name, values in each.items()})),
            group=collection.group_of[number],
            query=queries[text],
            find_species=each["species"][number] is None,
        )
        for number, (what, text) in enumerate(zip(collection.sources, collection.each("where", where), strict=True))
    ]


def _is_loader(sources: Any) -> bool:
    listed = isinstance(sources, str | os.PathLike | AnnData | Sequence | Mapping)
    return not listed and all(hasattr(sources, name) for name in ("__iter__", "n_obs", "var"))


def _check_sizes(batch_size: int, block_size: int, buffer_size: int) -> None:
    if min(batch_size, block_size) < 1 or buffer_size < batch_size:
        msg = (
            f"batch_size={batch_size}, block_size={block_size}, buffer_size={buffer_size}: batch and block need at least "
            "1 cell, and a buffer at least one batch."
        )
        raise OptionError(msg)


def _check_rank(rank: int | None, world_size: int | None) -> None:
    if (rank is None) != (world_size is None) or (
        rank is not None and world_size is not None and not 0 <= rank < world_size
    ):
        msg = f"rank={rank} and world_size={world_size}: give both or neither, with 0 <= rank < world_size."
        raise OptionError(msg)
