import logging
import pickle
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import psutil
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import scgalore as sg
from scgalore.data.cells import TokenCells
from scgalore.data.reading import Reading
from scgalore.data.streaming import TokenStream
from scgalore.data.tokens import TokenBatch, TokenizerConfig
from scgalore.data.vocab import GeneVocab
from scgalore.errors import DataError, MissingKeyError, OptionError

pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2", "ignore:Observation names are not unique")

POOL = [f"G{i}" for i in range(40)]
VOCAB = GeneVocab.from_genes(np.random.default_rng(9).permutation(POOL + [f"H{i}" for i in range(20)]).tolist())
CONFIG = TokenizerConfig(n_bins=7, max_length=12)
SIZES = (37, 50, 23)


def sample(number: int, n_obs: int, *, labels: tuple[str, ...] = ("a", "b", "c")) -> AnnData:
    """Cells with their own choice and order of genes; two of the names are in no vocabulary."""
    rng = np.random.default_rng(number)
    names = [*rng.permutation(POOL)[:25], "unknown-1", "unknown-2"]
    x = rng.poisson(0.9, (n_obs, len(names))).astype(np.float32)
    x[:, 0] += 1
    adata = AnnData(sp.csr_matrix(x), layers={"counts": sp.csr_matrix(x * 2)})
    adata.var_names = rng.permutation(len(names)).astype(str)
    adata.var["symbol"] = names
    adata.obs["kind"] = pd.Categorical(rng.choice(labels, n_obs), categories=labels)
    adata.obs["site"] = rng.choice(["x", "y"], n_obs)
    return adata


ADATAS = [sample(number, n_obs) for number, n_obs in enumerate(SIZES)]
N_OBS = sum(SIZES)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("stream")
    for number, adata in enumerate(ADATAS):
        adata.write_h5ad(folder / f"{number}.h5ad")
    return [folder / f"{number}.h5ad" for number in range(len(ADATAS))]


def streamed(sources: Any, **options: Any) -> TokenStream:
    defaults = {
        "config": CONFIG,
        "batch_size": 8,
        "block_size": 5,
        "buffer_size": 24,
        "gene_symbols": "symbol",
        "layer": None,
    }
    return sg.data.stream(sources, VOCAB, **{**defaults, **options})


def content(batches: Any) -> list[Any]:
    """Batches as nested lists, to compare with ``==``."""
    return [
        [tensor.tolist() for tensor in (b.genes, b.values, b.padding, b.cells, b.keys, *b.targets.values())]
        for b in batches
    ]


def cells_of(batches: Any) -> list[int]:
    return [cell for batch in batches for cell in batch.cells.tolist()]


def tokens_of(batches: Any) -> dict[int, Any]:
    """Tokens of each cell without padding."""
    found = {}
    for batch in batches:
        for genes, values, padding, cell in zip(batch.genes, batch.values, batch.padding, batch.cells, strict=True):
            found[int(cell)] = genes[~padding].tolist(), values[~padding].tolist()
    return found


# What an epoch is -------------------------------------------------------------------------------------------------


@given(
    batch_size=st.integers(1, 40),
    block_size=st.integers(1, 60),
    extra=st.integers(0, 60),
    shuffle=st.booleans(),
    world_size=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
@settings(max_examples=40)
def test_every_cell_comes_once_and_ranks_get_equal_shares(
    batch_size: int, block_size: int, extra: int, shuffle: bool, world_size: int, epoch: int
) -> None:
    cells, sizes = [], set()
    for rank in range(world_size):
        options = {"batch_size": batch_size, "block_size": block_size, "buffer_size": batch_size + extra}
        stream = streamed(ADATAS, shuffle=shuffle, rank=rank, world_size=world_size, **options)
        stream.set_epoch(epoch)
        batches = list(stream)
        assert len(batches) == len(stream)
        assert sum(len(batch) < batch_size for batch in batches) <= 1
        cells += cells_of(batches)
        sizes.add(sum(map(len, batches)))
    assert len(set(cells)) == len(cells) == N_OBS - N_OBS % world_size
    assert sizes == {N_OBS // world_size}


def test_in_order_without_shuffling(paths: list[Path]) -> None:
    assert cells_of(streamed(paths, shuffle=False)) == list(range(N_OBS))


def test_epochs_are_repeatable_and_differ(paths: list[Path]) -> None:
    stream = streamed(paths)
    first = content(stream)
    assert content(stream) == first
    stream.set_epoch(1)
    second = content(stream)
    assert [batch[3] for batch in second] != [batch[3] for batch in first]
    stream.set_epoch(0)
    assert content(stream) == first
    assert content(streamed(paths, rng=1)) != first


def test_long_cells_are_sampled_anew_in_each_epoch(paths: list[Path]) -> None:
    stream = streamed(paths, config=TokenizerConfig(max_length=5), shuffle=False)
    epochs = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        epochs.append(tokens_of(stream))
    assert epochs[0] == epochs[2] != epochs[1]


def test_another_process_sees_the_same_epoch(paths: list[Path], tmp_path: Path) -> None:
    stream = streamed(paths, labels_key="kind")
    stream.set_epoch(2)
    (tmp_path / "stream").write_bytes(pickle.dumps(stream))
    code = (
        "import pickle, sys\n"
        "stream = pickle.load(open(sys.argv[1], 'rb'))\n"
        "found = [[b.genes.tolist(), b.values.tolist(), b.padding.tolist(), b.cells.tolist(), b.keys.tolist(),"
        " b.targets['labels'].tolist()] for b in stream]\n"
        "pickle.dump(found, open(sys.argv[1], 'wb'))\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "stream"], check=True)
    assert pickle.loads((tmp_path / "stream").read_bytes()) == content(stream)


def test_blocks_of_all_files_are_mixed_in_a_buffer(paths: list[Path]) -> None:
    # In order, the first 24 cells are all of the first file.
    stream = streamed(paths, block_size=4)
    first = cells_of(list(stream)[:3])
    assert len({int(np.searchsorted(np.cumsum(SIZES), cell, side="right")) for cell in first}) > 1


def test_batches_of_a_buffer_are_of_like_length() -> None:
    rng = np.random.default_rng(0)
    x = (np.arange(40) < rng.integers(1, 40, (512, 1))).astype(np.float32)
    adata = AnnData(sp.csr_matrix(x))
    adata.var_names = POOL
    padding = {
        shuffle: np.concatenate(
            [b.padding.numpy().ravel() for b in sg.data.stream(adata, VOCAB, shuffle=shuffle)]
        ).mean()
        for shuffle in (True, False)
    }
    assert padding[True] < 0.15 < 0.4 < padding[False]


# Whatever holds the cells -----------------------------------------------------------------------------------------


def test_tokens_are_those_of_each_file_alone(paths: list[Path]) -> None:
    found = tokens_of(streamed(paths, layer="counts"))
    first = 0
    for adata in ADATAS:
        cells = TokenCells.from_adata(adata, VOCAB, config=CONFIG, reading=Reading("counts", "symbol"))
        (ragged,) = cells.windows()
        alone = tokens_of([cells.tokenizer.pad(ragged)])
        assert alone == {cell: found[first + cell] for cell in range(adata.n_obs)}
        first += adata.n_obs


def with_dense(adata: AnnData) -> AnnData:
    adata = adata.copy()
    adata.X = adata.X.toarray()
    return adata


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda adata, path: adata.write_zarr(path.with_suffix(".zarr")), id="zarr"),
        pytest.param(lambda adata, path: with_dense(adata).write_h5ad(path.with_suffix(".h5ad")), id="dense_h5ad"),
        pytest.param(lambda adata, path: with_dense(adata).write_zarr(path.with_suffix(".zarr")), id="dense_zarr"),
        pytest.param(
            lambda adata, path: adata.write_h5ad(path.with_suffix(".h5ad"), compression="gzip"), id="compressed"
        ),
    ],
)
def test_formats_do_not_matter(paths: list[Path], tmp_path: Path, write: Callable[[AnnData, Path], None]) -> None:
    for number, adata in enumerate(ADATAS):
        write(adata, tmp_path / str(number))
    written = sorted(path for path in tmp_path.iterdir())
    assert content(streamed(written, labels_key="kind")) == content(streamed(paths, labels_key="kind"))


@pytest.mark.parametrize(
    "held",
    [
        pytest.param(lambda paths: ADATAS, id="memory"),
        pytest.param(lambda paths: [ad.read_h5ad(path, backed="r") for path in paths], id="backed"),
        pytest.param(lambda paths: [str(paths[0]), ADATAS[1], paths[2]], id="mixed"),
        pytest.param(lambda paths: [ad.concat([a, a])[: a.n_obs, a.var_names] for a in named()], id="views"),
    ],
)
def test_what_holds_the_cells_does_not_matter(paths: list[Path], held: Callable[[list[Path]], Any]) -> None:
    options = {"gene_symbols": None} if isinstance(held(paths)[0], AnnData) and held(paths)[0].is_view else {}
    expected = content(streamed(paths, labels_key="kind"))
    assert content(streamed(held(paths), labels_key="kind", **options)) == expected


def named() -> list[AnnData]:
    copies = [adata.copy() for adata in ADATAS]
    for adata in copies:
        adata.var_names = adata.var["symbol"].astype(str).tolist()
    return copies


def test_one_source_needs_no_list(paths: list[Path]) -> None:
    expected = content(streamed([paths[0]]))
    assert content(streamed(paths[0])) == content(streamed(str(paths[0]))) == content(streamed(ADATAS[0])) == expected


def test_tokens_that_a_batch_may_hold(paths: list[Path]) -> None:
    stream = streamed(paths)
    seen = np.unique(np.concatenate([batch.genes.numpy().ravel() for batch in stream]))
    known = {VOCAB[name] for adata in ADATAS for name in adata.var["symbol"] if name in VOCAB}
    assert stream.tokens().tolist() == sorted(known | {VOCAB.cls_id, VOCAB.pad_id})
    assert set(seen.tolist()) <= set(stream.tokens().tolist())
    assert stream.n_obs == N_OBS


# Labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["kind", "site"])
def test_labels_belong_to_their_cells(paths: list[Path], key: str) -> None:
    stream = streamed(paths, labels_key=key)
    names = np.concatenate([adata.obs[key].astype(str) for adata in ADATAS])
    for batch in stream:
        assert [stream.classes[code] for code in batch.targets["labels"]] == names[batch.cells].tolist()


TYPES: dict[str, Callable[[pd.Series], Any]] = {
    "int": lambda x: x,
    "float": lambda x: x.astype(float),
    "text": lambda x: x.astype(str),
    "decimals": lambda x: x.astype(float).astype(str),
    "int categories": lambda x: x.astype("category"),
    "float categories": lambda x: x.astype(float).astype("category"),
    "beside text": lambda x: x.astype(float).astype(str).where(x != 10, "B"),
}


@pytest.mark.parametrize("held", ["memory", "h5ad"])
@given(types=st.lists(st.sampled_from(list(TYPES)), min_size=2, max_size=3))
@settings(max_examples=12)
def test_numbers_are_one_class_in_all_sources(
    tmp_path_factory: pytest.TempPathFactory, held: str, types: list[str]
) -> None:
    numbers = [np.random.default_rng(number).permutation([0, 1, 2, 10, *([2] * 16)]) for number in range(len(types))]
    sources: list[Any] = []
    expected = []
    for number, (kind, values) in enumerate(zip(types, numbers, strict=True)):
        adata = sample(number, len(values))
        adata.obs["leiden"] = TYPES[kind](pd.Series(values, index=adata.obs_names))
        expected += ["B" if kind == "beside text" and value == 10 else str(value) for value in values]
        sources.append(adata)
        if held == "h5ad":
            sources[-1] = tmp_path_factory.mktemp("typed") / "cells.h5ad"
            adata.write_h5ad(sources[-1])
    stream = streamed(sources, labels_key="leiden", block_size=1)
    # A source of its own type alone may keep its decimals; all of them agree on one name.
    names = {one: one if one in stream.classes else f"{one}.0" for one in expected}
    assert set(stream.classes) == set(names.values())
    for batch in stream:
        assert [stream.classes[code] for code in batch.targets["labels"]] == [
            names[expected[cell]] for cell in batch.cells
        ]
    counts = pd.Series(expected).map(names).value_counts()
    assert stream.class_counts is not None
    assert dict(zip(stream.classes, stream.class_counts.tolist(), strict=True)) == counts.to_dict()
    if "beside text" not in types:
        assert stream.classes == ("0", "1", "2", "10")


def test_listed_classes_may_be_numbers() -> None:
    sources = [sample(0, 20), sample(1, 20)]
    sources[0].obs["l"], sources[1].obs["l"] = [0, 1] * 10, [1.0, 0.0] * 10
    stream = streamed(sources, labels_key="l", classes=[1.0, 0, 2])
    assert stream.classes == ("1", "0", "2")
    assert stream.class_counts is not None
    assert stream.class_counts.tolist() == [20, 20, 0]
    with pytest.raises(DataError, match=r"labels \['1'\], which are not among the 2"):
        streamed(sources, labels_key="l", classes=["0", "2"])


@pytest.mark.parametrize("word", ["nan", "", "None"])
def test_words_for_missing_are_refused(word: str) -> None:
    sources = [sample(0, 20), sample(1, 20)]
    sources[1].obs["kind"] = ["a", "b", word, "c"] * 5
    with pytest.raises(DataError, match="5 of 20 cells have no label in obs"):
        streamed(sources, labels_key="kind")


def test_classes_of_sources_that_differ() -> None:
    mixed = [sample(0, 20, labels=("z", "b")), sample(1, 20, labels=("b", "a"))]
    assert streamed(mixed, labels_key="kind").classes == ("a", "b", "z")
    agreed = [sample(0, 20, labels=("z", "b")), sample(1, 20, labels=("z", "b"))]
    assert streamed(agreed, labels_key="kind").classes == ("z", "b")
    given_classes = streamed(agreed, labels_key="kind", classes=["b", "q", "z"])
    assert given_classes.classes == ("b", "q", "z")
    assert {code for batch in content(given_classes) for code in batch[-1]} == {0, 2}
    assert streamed(agreed).classes == ()


# Workers and processes --------------------------------------------------------------------------------------------


def test_workers_share_the_batches(paths: list[Path]) -> None:
    stream = streamed(paths)
    alone = sorted(content(stream))
    loader = DataLoader(stream, batch_size=None, num_workers=2)
    assert sorted(content(loader)) == alone
    assert len(loader) == len(alone)


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_that_stay_learn_of_the_next_epoch(paths: list[Path], context: str) -> None:
    stream = streamed([*paths[:2], ADATAS[2]])
    loader = DataLoader(
        stream, batch_size=None, num_workers=2, persistent_workers=True, multiprocessing_context=context
    )
    for epoch in (0, 3):
        stream.set_epoch(epoch)
        assert sorted(content(loader)) == sorted(content(stream))


def test_a_worker_keeps_the_rank_of_its_process(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    stream = streamed(paths)
    sent = pickle.dumps(stream)
    expected = content(stream)
    monkeypatch.undo()
    assert content(pickle.loads(sent)) == expected == content(streamed(paths, rank=1, world_size=2))


def test_only_names_of_files_travel(paths: list[Path], tmp_path: Path) -> None:
    big = sample(5, 4000)
    big.write_h5ad(tmp_path / "big.h5ad")
    stream = streamed([tmp_path / "big.h5ad"], labels_key="kind")
    next(iter(stream))
    # The names, and a byte for the label of each cell.
    assert len(pickle.dumps(stream)) < 10_000 + big.n_obs


# Files and memory -------------------------------------------------------------------------------------------------


def open_files() -> int:
    return sum(file.path.endswith(".h5ad") for file in psutil.Process().open_files())


@pytest.fixture
def many(tmp_path: Path) -> list[Path]:
    found = []
    for number in range(20):
        sample(number, 6).write_h5ad(tmp_path / f"{number:02}.h5ad")
        found.append(tmp_path / f"{number:02}.h5ad")
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files the way of Linux")
def test_few_files_are_open_and_none_afterwards(many: list[Path]) -> None:
    before = open_files()
    stream = streamed(many, block_size=2)
    assert open_files() == before
    assert max(open_files() for _ in stream) <= before + 8
    assert open_files() == before
    dropped: Iterator[TokenBatch] = iter(stream)
    next(dropped)  # a thread reads on meanwhile
    del dropped
    assert open_files() == before


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files the way of Linux")
def test_files_are_closed_after_an_error(many: list[Path]) -> None:
    spoilt = sample(3, 6)
    spoilt.X[3, 0] = -1
    spoilt.write_h5ad(many[11])
    before = open_files()
    with pytest.raises(DataError, match="negative"):
        list(streamed(many, block_size=2))
    assert open_files() == before


def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    def peak(paths: list[Path]) -> int:
        stream = streamed(paths, block_size=64, buffer_size=256)
        tracemalloc.start()
        for _ in stream:
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    paths = []
    for number in range(24):
        sample(0, 512).write_h5ad(tmp_path / f"{number:02}.h5ad")
        paths.append(tmp_path / f"{number:02}.h5ad")
    peak(paths[:1])  # what is imported or cached the first time
    assert peak(paths) < 1.5 * peak(paths[:8])


# What is refused --------------------------------------------------------------------------------------------------


def changed(change: Callable[[AnnData], Any]) -> AnnData:
    adata = ADATAS[0].copy()
    change(adata)
    return adata


def spoil(place: Any, value: Any) -> AnnData:
    adata = with_dense(ADATAS[0])
    adata.X[place] = value
    return adata


@pytest.mark.parametrize(
    ("adata", "error", "says"),
    [
        pytest.param(
            lambda: spoil((3, 2), -1),
            DataError,
            r"number 0 contains negative.* 1 of .* \(for example 3\)",
            id="negative",
        ),
        pytest.param(lambda: spoil((30, 2), np.nan), DataError, r"NaN.*\(for example 30\)", id="nan"),
        pytest.param(lambda: spoil((30, -1), np.inf), DataError, r"infinite.*\(for example 30\)", id="infinite"),
        pytest.param(
            lambda: spoil(4, 0), DataError, r"no gene of the model's vocabulary.*\(for example 4\)", id="empty_cell"
        ),
        pytest.param(
            lambda: spoil(5, [0] * 25 + [3, 1]),
            DataError,
            r"no gene of the model's vocabulary.*\(for example 5\)",
            id="unknown",
        ),
    ],
)
def test_cells_are_refused_while_they_are_read(adata: Callable[[], AnnData], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        list(streamed([adata()], shuffle=False))
    with pytest.raises(error, match=r"number 1.*"):
        list(streamed([ADATAS[1], adata()]))


def test_cells_without_a_known_gene_are_kept_where_that_is_allowed() -> None:
    adata = spoil(5, [0] * 25 + [3, 1])
    lengths = np.concatenate([(~b.padding).sum(dim=1) for b in streamed([adata], min_matched=0)])
    assert len(lengths) == adata.n_obs
    assert (lengths == 1).sum() == 1  # <cls> alone


@pytest.mark.parametrize(
    ("adata", "options", "error", "says"),
    [
        (lambda: ADATAS[0], {"layer": "raw"}, MissingKeyError, "'raw'"),
        (lambda: ADATAS[0], {"gene_symbols": "name"}, MissingKeyError, "'name'.*symbol"),
        (lambda: ADATAS[0], {"labels_key": "celltype"}, MissingKeyError, "'celltype'.*'kind', 'site'"),
        (
            lambda: changed(lambda a: a.var.drop(columns="symbol", inplace=True)),
            {"gene_symbols": None},
            DataError,
            "None of the 27 gene names",
        ),
        (lambda: ADATAS[0][:0].copy(), {}, DataError, "is empty: 0 cells x 27 genes"),
        (lambda: ADATAS[0][:, :0].copy(), {}, DataError, "is empty: 37 cells x 0 genes"),
        (
            lambda: changed(lambda a: a.obs.__setitem__("kind", np.nan)),
            {"labels_key": "kind"},
            DataError,
            "37 of 37 cells have no",
        ),
        (
            lambda: changed(lambda a: a.obs.__setitem__("kind", np.arange(37) / 7)),
            {"labels_key": "kind"},
            DataError,
            "37 different numbers",
        ),
        (
            lambda: ADATAS[0],
            {"labels_key": "kind", "classes": ["a", "b"]},
            DataError,
            r"labels \['c'\], which are not among the 2",
        ),
    ],
    ids=[
        "layer",
        "gene_symbols",
        "labels_key",
        "names",
        "no_cells",
        "no_genes",
        "unlabelled",
        "measurement",
        "classes",
    ],
)
@pytest.mark.parametrize("held", ["memory", "h5ad", "zarr"])
def test_sources_are_refused_before_anything_is_read(
    tmp_path: Path, held: str, adata: Callable[[], AnnData], options: dict[str, Any], error: type[Exception], says: str
) -> None:
    source: Any = adata()
    if held == "h5ad":
        source.write_h5ad(tmp_path / "the.h5ad")
        source, says = tmp_path / "the.h5ad", f"(?s)(?=.*the.h5ad).*{says}"
    if held == "zarr":
        source.write_zarr(tmp_path / "the.zarr")
        source, says = tmp_path / "the.zarr", f"(?s)(?=.*the.zarr).*{says}"
    with pytest.raises(error, match=says):
        streamed(source, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"block_size": 0}, "block_size=0"),
        ({"buffer_size": 7}, "buffer_size=7"),
        ({"rank": 0}, "give both or neither"),
        ({"rank": 2, "world_size": 2}, "rank=2"),
        ({"rank": -1, "world_size": 2}, "rank=-1"),
        ({"rng": "a"}, "rng is 'a'"),
    ],
)
def test_options_are_checked(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        streamed(ADATAS, **options)


def test_fewer_cells_than_processes() -> None:
    with pytest.raises(DataError, match="37 cells for 40 processes"):
        next(iter(streamed(ADATAS[0], rank=0, world_size=40)))


def test_one_class() -> None:
    with pytest.raises(DataError, match="only one class, 'a'"):
        streamed([sample(0, 5, labels=("a",)), sample(1, 5, labels=("a",))], labels_key="kind")


def test_the_room_stays_light_and_its_names_are_functions() -> None:
    code = (
        "import sys, scgalore.data\n"
        "assert not {'torch', 'numpy', 'anndata'} & sys.modules.keys()\n"
        "assert {'stream', 'TokenStream'} <= set(dir(scgalore.data))\n"
        "import scgalore.data.opening\n"
        "assert scgalore.data.stream is scgalore.data.opening.stream\n"
        "assert not hasattr(scgalore.data, 'streams')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_sources() -> None:
    with pytest.raises(DataError, match="no sources"):
        streamed([])


def test_all_cells_can_be_gathered_log_normalised(few: AnnData, tmp_path: Path) -> None:
    """Counts in one file, logarithms in the other, whose genes are others and in another order."""
    counts = AnnData(few.X[:50, :140].expm1().multiply(3).rint().tocsr(), few.obs[:50], few.var[:140])
    counts.write_h5ad(tmp_path / "counts.h5ad")
    logs = few[50:, 20:][:, ::-1].copy()
    logs.write_h5ad(tmp_path / "logs.h5ad")
    vocab = GeneVocab.from_genes(few.var_names)
    made = sg.data.stream(tmp_path, vocab, batch_size=4, shuffle=False).to_adata(vocab, obs_keys=["bulk_labels"])
    assert made.obs["source"].tolist() == ["counts"] * 50 + ["logs"] * 40
    assert made.obs["bulk_labels"].astype(str).tolist() == few.obs["bulk_labels"].astype(str).tolist()
    sc.pp.normalize_total(counts, target_sum=1e4)
    sc.pp.log1p(counts)
    assert made.obs["bulk_labels"].notna().all()
    for part, expected in ((made[:50], counts), (made[50:], logs)):
        np.testing.assert_allclose(part[:, expected.var_names].X.toarray(), expected.X.toarray(), rtol=1e-5)
        assert part[:, ~part.var_names.isin(expected.var_names)].X.sum() == 0


def test_gathered_cells_of_files_without_a_column_have_no_value(
    few: AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few.obs["louvain"] = [None, *few.obs["bulk_labels"].astype(str)[1:]]
    few[:50].copy().write_h5ad(tmp_path / "with.h5ad")
    bare = few[50:].copy()
    del bare.obs["louvain"]
    bare.write_h5ad(tmp_path / "without.h5ad")
    vocab = GeneVocab.from_genes(few.var_names)
    stream = sg.data.stream(tmp_path, vocab, batch_size=4, shuffle=False)
    with caplog.at_level(logging.WARNING, logger="scgalore"):
        made = stream.to_adata(vocab, obs_keys=["louvain"])
    assert made.obs["louvain"].isna().tolist() == [True] + [False] * 49 + [True] * 40
    assert made.obs["louvain"][1:50].tolist() == few.obs["bulk_labels"][1:50].astype(str).tolist()
    assert re.search(r"1 of 2 files have no value in obs\['louvain'\]: '.*without\.h5ad'", caplog.text)
    made.write_h5ad(tmp_path / "made.h5ad")
    with pytest.raises(MissingKeyError, match=r"None of the 2 files has a value in obs\['lovain'\]"):
        stream.to_adata(vocab, obs_keys=["lovain"])
