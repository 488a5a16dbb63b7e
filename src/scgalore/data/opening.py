"""From what users list to a stream: options are checked, and each file is looked at once."""

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

    Genes are matched by name in each source, so sources may have different genes in different orders. A cell's tokens are
    those that :class:`~scgalore.data.cells.TokenCells` makes of its file alone. What is found out of a file, such as which
    matrix holds counts, is said once.

    Parameters
    ----------
    sources
        Paths of ``.h5ad`` files and ``.zarr`` folders, AnnData objects in memory or backed, or one of these. Another folder stands
        for all such files in it. Matrices in files are CSR or dense. With names, ``{"blood": ["a.h5ad", "b.h5ad"], "pancreas":
        "folder/"}``, sources can have shares and options of their own. Or a loader with the protocol of annbatch's ``Loader``:
        it has ``n_obs`` and ``var`` and yields dictionaries with ``X`` and, where it has them, ``obs`` and ``index``. It brings its
        own order; its cells are shuffled within the buffer. Tested with annbatch 0.3.1 on Python 3.12, which it needs.
    vocab
        Tokens of the network.
    config
        How cells become tokens; scGPT's pre-training settings with the seed of ``rng`` when left out.
    batch_size
        Cells in a batch; the last one of an epoch may be smaller.
    block_size
        Neighbouring rows that are read together. Shuffling moves whole blocks between buffers, so where files are sorted,
        by cell type for example, blocks should be small and the buffer large.
    buffer_size
        Cells in memory that are shuffled together, rounded down to whole batches. While one buffer is used, the next is read.
    shuffle
        Whether blocks are drawn over all sources and cells shuffled in the buffer, then cut into batches of like length.
        Otherwise cells come in order.
    rng
        Seed of the order of blocks, cells and batches.
    where
        Which cells, as a query on ``obs`` in the words of :meth:`pandas.DataFrame.query`: ``"is_primary_data and disease ==
        'normal'"``. It has comparisons, ``and``, ``or``, ``not``, ``in``, literals, arithmetic and names of columns, of which no
        others are read. A file without such cells is left out with a warning.
    shares
        Share of each named source in the cells that are drawn; they need not add up to 1.
    weights_key
        Column of ``obs``, each value of which is drawn equally often: with ``shares`` within each source, otherwise over all.
    weights
        How often values of that column are drawn, relative to each other; 1 for those that are left out.
    layer
        Layer to read; ``None`` is ``X``, and ``"raw"`` is ``raw.X`` with the genes of ``raw.var``. ``"auto"`` takes counts where
        they are: a layer of such a name, ``raw.X`` or ``X``, whichever comes first, decided by the first cells.
    gene_symbols
        Column of ``var`` that holds gene names. When left out, the names of ``var``; where these are numbers or Ensembl ids, the
        column by which most genes match, if that is more.
    data_type, min_matched
        As for :func:`scgalore.tl.embed`.
    species
        As for :func:`scgalore.tl.embed`. When left out, what Ensembl ids say or the column ``organism`` of ``obs``, and human
        otherwise.
    labels_key
        Column of ``obs`` with class labels.
    classes
        Names of the classes, in the order of their codes. When left out: those found, in the order of the categories where all
        sources agree on it, otherwise sorted, numbers as numbers.
    rank, world_size
        This process and how many there are; asked of :mod:`torch.distributed` when left out.

    Returns
    -------
    A dataset to iterate over, or to give to ``DataLoader(stream, batch_size=None)``.

    Raises
    ------
    DataError
        If a source does not exist, cannot be read, holds its matrix by columns, has no gene of the vocabulary, a label that
        is missing or none of the classes, or cells of two species; if no cell is left. While reading: if a cell has negative,
        NaN or infinite values or no known gene, or a file has changed, was cut off or is gone.
    MissingKeyError
        If a layer or a column does not exist.
    OptionError
        If a size, ``rank`` or ``world_size`` is out of range, ``where`` is no query, or a share or weight is none.

    Notes
    -----
    With ``shares`` or ``weights_key`` an epoch is as many draws, with replacement, as there are cells: independent draws with the
    probabilities asked for. They are decided by the seed and the epoch. A cell that comes twice in an epoch is sampled and
    masked differently each time.

    ``layer, gene_symbols, data_type, species`` and ``where`` may be mappings by the names of sources.

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
            msg = "shares= and weights_key= draw cells at random, so they do not go with shuffle=False."
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
    """What is to be read of each file."""
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
            f"batch_size={batch_size}, block_size={block_size}, buffer_size={buffer_size}: the first two must be at least 1, "
            "and a buffer must hold at least one batch."
        )
        raise OptionError(msg)


def _check_rank(rank: int | None, world_size: int | None) -> None:
    if (rank is None) != (world_size is None) or (
        rank is not None and world_size is not None and not 0 <= rank < world_size
    ):
        msg = f"rank={rank} and world_size={world_size}: give both or neither, with 0 <= rank < world_size."
        raise OptionError(msg)
