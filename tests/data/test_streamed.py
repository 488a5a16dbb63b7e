"""Shares, weights, places within an epoch and cells that are held out."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tests.data.test_streaming import ADATAS, N_OBS, cells_of, content, paths, streamed, tokens_of  # noqa: F401
from torch.utils.data import DataLoader

import scgalore as sg
from scgalore.data.streaming import TokenStream
from scgalore.data.tokens import TokenizerConfig
from scgalore.data.vocab import GeneVocab
from scgalore.errors import DataError, MissingKeyError, OptionError

GENES = [f"G{n}" for n in range(30)]
TYPES = {"blood": {"T": 300, "B": 90, "mast": 10}, "pancreas": {"alpha": 150, "beta": 40, "T": 10}}


def tissue(name: str, n_times: int = 1) -> AnnData:
    """Cells that are sorted by type."""
    kinds = np.repeat(list(TYPES[name]), [n * n_times for n in TYPES[name].values()])
    x = np.random.default_rng(len(name)).poisson(2.0, (len(kinds), len(GENES))).astype(np.float32)
    x[:, 0] += 1
    adata = AnnData(sp.csr_matrix(x), var=pd.DataFrame(index=GENES))
    adata.obs["cell_type"] = pd.Categorical(kinds)
    return adata


TISSUES = {"blood": [tissue("blood"), tissue("blood", 2)], "pancreas": tissue("pancreas")}
N = 400 * 3 + 200


def drawn(**options: Any) -> TokenStream:
    small: dict[str, Any] = {
        "batch_size": 16,
        "block_size": 16,
        "buffer_size": 128,
        "config": TokenizerConfig(n_bins=5),
    }
    return sg.data.stream(TISSUES, GeneVocab.from_genes(GENES), **{**small, **options})


def counted(stream: TokenStream, n_epochs: int = 4) -> pd.DataFrame:
    """Cells that came in some epochs, by source and type."""
    files = [*TISSUES["blood"], TISSUES["pancreas"]]
    kinds = np.concatenate([adata.obs["cell_type"].astype(str) for adata in files])
    cells = np.concatenate([b.cells.numpy() for epoch in range(n_epochs) for b in stream.batches(epoch)])
    assert len(cells) == n_epochs * stream.n_obs
    groups, _, _ = stream.locate(cells)
    return pd.crosstab(np.array(stream.names)[groups], kinds[cells])


def hits(found: Any, target: Mapping[str, float]) -> bool:
    expected = np.array([target[name] for name in found.index])
    return chisquare(found, expected / expected.sum() * found.sum()).pvalue > 1e-3


def test_shares_hit_their_targets() -> None:
    shares = {"blood": 0.3, "pancreas": 0.7}
    stream = drawn(shares=shares)
    found = counted(stream)
    assert hits(found.sum(axis=1), shares)
    assert stream.shares == pytest.approx(shares)
    # Within a source, all cells are alike.
    assert hits(found.loc["pancreas"][["alpha", "beta", "T"]], TYPES["pancreas"])
    assert not hits(counted(drawn(), 1).sum(axis=1), shares)


def test_types_are_drawn_equally_often() -> None:
    stream = drawn(weights_key="cell_type")
    found = counted(stream).sum(axis=0)
    assert hits(found, dict.fromkeys(found.index, 1.0))
    # Few cells that are drawn often, and stand together in the file, come all over the epoch.
    kinds = np.concatenate([adata.obs["cell_type"].astype(str) for adata in (*TISSUES["blood"], TISSUES["pancreas"])])
    mast = [(kinds[batch.cells] == "mast").sum() for batch in stream]  # 3.2 of 16 are expected
    assert np.mean(np.array(mast) > 0) > 0.8


def test_weights_of_types() -> None:
    weights = {"mast": 3, "T": 0, "alpha": 0.5}
    found = counted(drawn(weights_key="cell_type", weights=weights)).sum(axis=0)
    assert "T" not in found
    assert hits(found, {"mast": 3, "alpha": 0.5, "B": 1, "beta": 1})


def test_types_are_balanced_within_shares() -> None:
    found = counted(drawn(weights_key="cell_type", shares={"blood": 1, "pancreas": 3}))
    assert hits(found.sum(axis=1), {"blood": 1, "pancreas": 3})
    for name, types in TYPES.items():
        assert hits(found.loc[name][list(types)], dict.fromkeys(types, 1.0))


def test_draws_hang_on_seed_and_epoch_alone() -> None:
    options: dict[str, Any] = {"weights_key": "cell_type", "shares": {"blood": 1, "pancreas": 1}}
    stream = drawn(**options)
    assert content(stream.batches(2)) == content(drawn(**options).batches(2))
    assert content(stream.batches(2)) == content(pickle.loads(pickle.dumps(stream)).batches(2))
    assert cells_of(stream.batches(2)) != cells_of(stream.batches(3))
    assert cells_of(stream.batches(2)) != cells_of(drawn(**options, rng=1).batches(2))
    ranks = [drawn(**options, rank=rank, world_size=2) for rank in (0, 1)]
    assert sum((sorted(cells_of(rank.batches(2))) for rank in ranks), []) != []
    assert sorted(cells_of(ranks[0].batches(2)) + cells_of(ranks[1].batches(2))) == sorted(cells_of(stream.batches(2)))


def test_a_cell_that_comes_twice_is_sampled_and_masked_anew() -> None:
    config = TokenizerConfig(n_bins=5, max_length=6)
    stream = drawn(weights_key="cell_type", weights={"T": 0.01, "B": 0.01, "alpha": 0.01, "beta": 0.01}, config=config)
    seen: dict[int, list[Any]] = {}
    for batch in stream:
        for cell, key, genes in zip(batch.cells.tolist(), batch.keys.tolist(), batch.genes.tolist(), strict=True):
            seen.setdefault(cell, []).append((key, tuple(genes)))
    often = [draws for draws in seen.values() if len(draws) > 5]
    assert len(often) >= 20
    for draws in often:
        assert len({key for key, _ in draws}) == len(draws)
        assert len({genes for _, genes in draws}) > 1


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"shares": {"blood": 1}}, OptionError, "has no entry for the source 'pancreas'"),
        (
            {"weights_key": "tissue"},
            MissingKeyError,
            r"obs has no column 'tissue' in 3 of 3 sources: .* has \['cell_type'\]",
        ),
        ({"weights_key": "cell_type", "weights": {"C": 1}}, OptionError, "weights has 'C'"),
        ({"weights_key": "cell_type", "shuffle": False}, OptionError, "cannot be combined with shuffle=False"),
        (
            {"shares": {"blood": 1, "pancreas": 1}, "where": {"blood": "cell_type == 'no'"}},
            DataError,
            "'blood' has a share but no",
        ),
    ],
    ids=["share", "column", "weight", "order", "nothing_left"],
)
def test_draws_that_cannot_be(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        drawn(**options)


# Places within an epoch -------------------------------------------------------------------------------------------


@given(
    batch_size=st.integers(1, 30),
    extra=st.integers(0, 60),
    shuffle=st.booleans(),
    world_size=st.integers(1, 3),
    start=st.integers(0, 60),
)
@settings(max_examples=40)
def test_an_epoch_goes_on_where_it_was_left(
    batch_size: int, extra: int, shuffle: bool, world_size: int, start: int
) -> None:
    options = {"batch_size": batch_size, "buffer_size": batch_size + extra, "shuffle": shuffle}
    for rank in range(world_size):
        stream = streamed(ADATAS, **options, rank=rank, world_size=world_size)
        whole = content(stream.batches(3))
        assert content(stream.batches(3, start=start)) == whole[start:]
        stream.set_epoch(3, start)
        assert stream.position == (3, start)
        assert content(stream) == whole[start:]
        stream.set_epoch(4)
        assert content(stream) == content(stream.batches(4))


def test_draws_go_on_where_they_were_left() -> None:
    stream = drawn(weights_key="cell_type")
    assert content(stream.batches(1, start=29)) == content(stream.batches(1))[29:]


def test_buffers_before_are_not_read(paths: list[Path]) -> None:  # noqa: F811
    stream = streamed(paths, shuffle=False)  # 3 batches in a buffer
    spoilt = streamed(paths, shuffle=False)
    read: list[int] = []
    whole_read = spoilt._buffers.read

    def watched(share: Any, **options: Any) -> Any:
        for number, parts in whole_read(share, **options):
            read.append(number)
            yield number, parts

    spoilt._buffers.read = watched  # type: ignore[method-assign]
    assert content(spoilt.batches(0, start=7)) == content(stream)[7:]
    assert read == [2, 3, 4]


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("start", [0, 1, 5, 10, 13])
def test_workers_go_on_where_they_were_left(num_workers: int, start: int) -> None:
    stream = streamed(ADATAS)
    whole = content(DataLoader(stream, batch_size=None, num_workers=num_workers))
    stream.set_epoch(0, start)
    assert content(DataLoader(stream, batch_size=None, num_workers=num_workers)) == whole[start:]


def test_a_loader_goes_on_too() -> None:
    from tests.data import test_loaders

    stream = test_loaders.streamed(test_loaders.Loader())
    assert content(stream.batches(0, start=6)) == content(stream.batches(0))[6:]


def test_training_batches_go_on(paths: list[Path]) -> None:  # noqa: F811
    from scgalore.data.batches import BatchPlan

    batches: Any = streamed(paths).training_batches(None, BatchPlan(8))
    batches.set_epoch(2)
    whole = [content([drawn.batch]) for drawn in batches.dataset]
    batches.set_epoch(2, 5)
    assert [content([drawn.batch]) for drawn in batches.dataset] == whole[5:]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_epochs_of_some_batches_go_on(num_workers: int) -> None:
    from scgalore.data.batches import BatchPlan

    def epochs(places: list[tuple[int, int]]) -> list[Any]:
        batches: Any = streamed(ADATAS).training_batches(None, BatchPlan(8, n_batches=5))
        found = []
        for epoch, start in places:
            batches.set_epoch(epoch, start)
            loader = DataLoader(batches.dataset, batch_size=None, num_workers=num_workers)
            found += [(one.draw, content([one.batch])) for one in loader]
        return found

    whole = epochs([(epoch, 0) for epoch in range(7)])  # more than two passes
    assert len(whole) == 35
    for start in (1, 2, 4, 5):
        assert epochs([(4, start), (5, 0), (6, 0)]) == whole[20 + start :]


# Cells held out ---------------------------------------------------------------------------------------------------


@given(n=st.integers(1, N_OBS - 1), seed=st.integers(0, 3), shuffle=st.booleans())
@settings(max_examples=25)
def test_cells_are_in_one_of_the_two(n: int, seed: int, shuffle: bool) -> None:
    whole = streamed(ADATAS, rng=seed, shuffle=shuffle)
    training, held = whole.split(n)
    assert (training.n_obs, held.n_obs) == (N_OBS - n, n)
    assert sorted(cells_of(training) + cells_of(held)) == list(range(N_OBS))
    assert tokens_of([*training, *held]) == tokens_of(whole)
    assert cells_of(held) == sorted(cells_of(held))


def test_which_cells_hangs_on_their_content(paths: list[Path]) -> None:  # noqa: F811
    def held(sources: Any, rng: int = 0) -> set[tuple[int, ...]]:
        _, part = streamed(sources, rng=rng).split(20)
        return {(*batch.keys[row : row + 1].tolist(),) for batch in part for row in range(len(batch))}

    assert held(ADATAS) == held(paths) == held(paths[::-1]) != held(paths, rng=1)


def test_a_share_with_a_cap() -> None:
    stream = streamed(ADATAS)
    assert stream.split(0.1)[1].n_obs == 11
    assert stream.split(0.5, max_cells=7)[1].n_obs == 7
    for wrong in (0, 1.0, N_OBS, -1, 0.001):
        with pytest.raises(OptionError, match="would hold out"):
            stream.split(wrong)


def test_labels_and_weights_follow(paths: list[Path]) -> None:  # noqa: F811
    stream = streamed(paths, labels_key="kind", weights_key="site", where="kind != 'c'")
    training, held = stream.split(15)
    names = np.concatenate([adata.obs["kind"].astype(str) for adata in ADATAS])
    for part in (training, held):
        assert part.classes == stream.classes
        for batch in part:
            assert [part.classes[code] for code in batch.targets["labels"]] == names[batch.cells].tolist()
    cells = np.concatenate([cells_of(held)])
    assert held.class_counts.tolist() == [(names[cells] == name).sum() for name in held.classes]
    assert (training.class_counts + held.class_counts).tolist() == stream.class_counts.tolist()
    assert len(set(cells)) == 15  # each once
    assert not set(cells_of(training)) & set(cells.tolist())
    assert training.identity() != held.identity() != stream.identity()


def test_the_two_share_their_tables(paths: list[Path]) -> None:  # noqa: F811
    stream = streamed(paths)
    for part in stream.split(15):
        assert part._buffers._tables is stream._buffers._tables


def test_held_out_cells_can_be_embedded(paths: list[Path]) -> None:  # noqa: F811
    _, held = streamed(paths).split(15)
    cells = np.concatenate([window.cells for window in held.windows()])
    assert cells.tolist() == cells_of(held)


def test_a_loader_holds_nothing_out() -> None:
    from tests.data import test_loaders

    with pytest.raises(OptionError, match="cannot be held out"):
        test_loaders.streamed(test_loaders.Loader()).split()


# What was given ---------------------------------------------------------------------------------------------------


def test_what_was_given_is_counted(paths: list[Path]) -> None:  # noqa: F811
    stream = streamed(paths)
    batches = list(stream)
    assert stream.n_cells_given == N_OBS
    assert stream.n_tokens_given == sum(batch.n_tokens for batch in batches)
    assert stream.waited > 0
    list(stream.batches(1, start=len(stream) - 1))
    assert N_OBS < stream.n_cells_given <= N_OBS + 8


def test_a_cell_is_found_again(paths: list[Path]) -> None:  # noqa: F811
    stream = streamed({"one": paths[:2], "two": paths[2]}, where="kind == 'a'")
    groups, files, rows = stream.locate(torch.tensor(sorted(cells_of(stream))))
    assert [(stream.names[g], stream.files[f]) for g, f in zip(groups[[0, -1]], files[[0, -1]], strict=True)] == [
        ("one", str(paths[0])),
        ("two", str(paths[2])),
    ]
    for file, adata in enumerate(ADATAS):
        assert rows[files == file].tolist() == np.flatnonzero(adata.obs["kind"] == "a").tolist()


class TestSeveralProcesses:
    @settings(max_examples=20, deadline=None)
    @given(n_processes=st.integers(1, 7), epoch=st.integers(0, 3))
    def test_each_cell_is_seen_by_exactly_one(self, n_processes: int, epoch: int) -> None:
        seen, left = [], N_OBS % n_processes
        for rank in range(n_processes):
            stream = streamed(ADATAS, rank=rank, world_size=n_processes)
            seen += [batch.cells.tolist() for batch in stream.batches(epoch)]
        cells = [cell for batch in seen for cell in batch]
        assert len(set(cells)) == len(cells) == N_OBS - left

    def test_of_a_step_they_get_batches_of_equal_size(self) -> None:
        streams = [streamed(ADATAS, rank=rank, world_size=3) for rank in range(3)]
        for epoch in range(3):
            parts = [[len(batch) for batch in stream.batches(epoch)] for stream in streams]
            assert parts[0] == parts[1] == parts[2]
            assert len(set(parts[0])) > 1

    @given(first=st.integers(0, N_OBS), n=st.integers(0, N_OBS))
    @settings(max_examples=20, deadline=None)
    def test_rows_are_embedded_by_the_process_that_asks(self, first: int, n: int) -> None:
        stream, rows = streamed(ADATAS, shuffle=False), np.arange(N_OBS)[first : first + n]
        whole = [window.take(np.array([i])) for window in stream.windows() for i in range(len(window))]
        part = [window.take(np.array([i])) for window in stream.windows(rows) for i in range(len(window))]
        assert [one.cells.tolist() for one in part] == [[row] for row in rows]
        for one, row in zip(part, rows, strict=True):
            np.testing.assert_array_equal(one.values, whole[row].values)
            np.testing.assert_array_equal(one.genes, whole[row].genes)

    @pytest.mark.parametrize("rows", [[0, 2], [3, 2], [5, 5]])
    def test_other_rows_are_refused(self, rows: list[int]) -> None:
        with pytest.raises(OptionError, match="must be consecutive"):
            next(streamed(ADATAS, shuffle=False).windows(np.array(rows)))
