import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgalore.data.sampler import WINDOW, BatchRequest, BucketSampler, cut_batches, sorted_batches

sizes = st.integers(1, 40)
lengths = st.lists(st.integers(1, 1200), min_size=1, max_size=300).map(np.array)
epochs = st.integers(0, 1000)


def epoch_of(sampler: BucketSampler, epoch: int) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return [request.rows.tolist() for request in sampler]


caps = st.none() | st.integers(1, 40)
token_caps = st.none() | st.integers(1, 5000)
ranks = st.integers(1, 5)


def greedy(lengths: list[int], batch_size: int | None, batch_tokens: int | None, *, padded: bool) -> list[list[int]]:
    """Batches cut one cell at a time."""
    batches: list[list[int]] = []
    for length in lengths:
        batch = [*batches[-1], length] if batches else []
        tokens = max(batch) * len(batch) if batch and padded else sum(batch)
        full = batch_size is not None and len(batch) > batch_size
        if not batch or full or (batch_tokens is not None and tokens > batch_tokens):
            batches.append([length])
        else:
            batches[-1] = batch
    return batches


class TestCutBatches:
    @given(lengths=lengths, batch_size=caps, batch_tokens=token_caps, padded=st.booleans())
    def test_a_batch_ends_where_a_cap_is_reached(
        self, lengths: np.ndarray, batch_size: int | None, batch_tokens: int | None, padded: bool
    ) -> None:
        cuts = cut_batches(lengths, batch_size=batch_size, batch_tokens=batch_tokens, padded=padded)
        expected = greedy(lengths.tolist(), batch_size, batch_tokens, padded=padded)
        assert [lengths[cut].tolist() for cut in cuts] == expected

    @pytest.mark.parametrize("batch_tokens", [None, 7])
    def test_nothing_gives_nothing(self, batch_tokens: int | None) -> None:
        empty = np.empty(0, dtype=np.int64)
        assert cut_batches(empty, batch_size=None, batch_tokens=batch_tokens, padded=True) == []


class TestCapOnTokens:
    @given(lengths=lengths, batch_size=caps, batch_tokens=st.integers(1, 5000), epoch=epochs, size=ranks)
    def test_every_row_once_in_batches_within_the_caps(
        self, lengths: np.ndarray, batch_size: int | None, batch_tokens: int, epoch: int, size: int
    ) -> None:
        rows = np.arange(len(lengths))
        seen: list[int] = []
        for rank in range(size):
            sampler = BucketSampler(
                rows, lengths, batch_size=batch_size, batch_tokens=batch_tokens, rank=rank, size=size
            )
            sampler.set_epoch(epoch)
            requests = list(sampler)
            assert len(requests) == len(sampler) == sampler.n_batches(epoch)
            for request in requests:
                own = lengths[request.rows]
                assert len(own) == 1 or len(own) * own.max() <= batch_tokens
                assert batch_size is None or len(own) <= batch_size
                seen += request.rows[: len(own) if request.share is None else request.share[0]].tolist()
        assert sorted(seen) == rows.tolist()

    def test_batches_of_an_epoch_differ_in_number_and_each_epoch_is_whole(self) -> None:
        lengths = np.random.default_rng(0).integers(5, 200, size=500)
        sampler = BucketSampler(np.arange(500), lengths, batch_size=None, batch_tokens=1000)
        counts = {len(epoch_of(sampler, epoch)) for epoch in range(8)}
        assert len(counts) > 1
        assert counts == {sampler.n_batches(epoch) for epoch in range(8)}

    def test_batches_are_nearly_full(self) -> None:
        lengths = np.random.default_rng(0).integers(100, 1200, size=5000)
        batches = list(BucketSampler(np.arange(5000), lengths, batch_size=None, batch_tokens=32 * 1200))
        assert lengths.sum() > 0.85 * len(batches) * 32 * 1200


class TestProcesses:
    @given(lengths=lengths, batch_size=sizes, epoch=epochs, size=ranks)
    def test_a_step_is_the_batch_of_one_process_with_all_cells(
        self, lengths: np.ndarray, batch_size: int, epoch: int, size: int
    ) -> None:
        rows = np.arange(len(lengths))
        steps = []
        for rank in range(size):
            sampler = BucketSampler(rows, lengths, batch_size=batch_size, seed=3, rank=rank, size=size)
            sampler.set_epoch(epoch)
            steps.append(list(sampler))
            assert len(steps[-1]) == len(sampler)
        whole = epoch_of(BucketSampler(rows, lengths, batch_size=batch_size * size, seed=3), epoch)
        for shares, batch in zip(zip(*steps, strict=True), whole, strict=True):
            if size > 1:
                counts = [share.share[0] for share in shares if share.share is not None]
                assert {share.share[1] for share in shares if share.share is not None} == {len(batch)}
                assert max(counts) - min(counts) <= 1
                own = [row for share, n in zip(shares, counts, strict=True) for row in share.rows[:n].tolist()]
                assert all(len(share.rows) == max(n, 1) for share, n in zip(shares, counts, strict=True))
            else:
                own = shares[0].rows.tolist()
            assert sorted(own) == sorted(batch)

    @given(lengths=lengths, batch_size=sizes, size=ranks)
    def test_validation_cells_count_once(self, lengths: np.ndarray, batch_size: int, size: int) -> None:
        rows = np.arange(len(lengths))
        parts = [sorted_batches(rows, lengths, batch_size=batch_size, rank=rank, size=size) for rank in range(size)]
        assert len({len(part) for part in parts}) == 1
        counted = [
            row
            for part in parts
            for request in part
            for row in request.rows[: request.share[0] if request.share else None].tolist()
        ]
        assert sorted(counted) == rows.tolist()


class TestBucketSampler:
    @given(lengths=lengths, batch_size=sizes, epoch=epochs, seed=st.integers(0, 2**32 - 1))
    def test_every_row_once_in_batches_of_the_size_asked_for(
        self, lengths: np.ndarray, batch_size: int, epoch: int, seed: int
    ) -> None:
        rows = np.arange(len(lengths)) * 3 + 7
        sampler = BucketSampler(rows, lengths, batch_size=batch_size, seed=seed)
        batches = epoch_of(sampler, epoch)
        assert sorted(row for batch in batches for row in batch) == rows.tolist()
        assert len(batches) == len(sampler)
        smaller = [len(batch) for batch in batches if len(batch) != batch_size]
        assert len(smaller) <= 1
        assert all(0 < size < batch_size for size in smaller)

    @given(lengths=lengths, batch_size=sizes, epoch=epochs)
    def test_epoch_is_the_draw_and_decides_the_order(self, lengths: np.ndarray, batch_size: int, epoch: int) -> None:
        first, second = (BucketSampler(np.arange(len(lengths)), lengths, batch_size=batch_size) for _ in range(2))
        epoch_of(first, epoch + 1)
        assert epoch_of(first, epoch) == epoch_of(second, epoch)  # whatever came before
        assert {request.draw for request in first} == {epoch}

    def test_epochs_and_seeds_differ(self) -> None:
        lengths = np.ones(100, dtype=int)
        orders = [
            epoch_of(BucketSampler(np.arange(100), lengths, batch_size=8, seed=seed), epoch)
            for seed, epoch in ((0, 0), (0, 1), (1, 0))
        ]
        assert orders[0] != orders[1] != orders[2] != orders[0]

    def test_little_is_padding(self) -> None:
        rng = np.random.default_rng(0)
        lengths = rng.integers(100, 1200, size=64 * WINDOW)
        batches = list(BucketSampler(np.arange(len(lengths)), lengths, batch_size=32))
        padded = sum(len(batch.rows) * lengths[batch.rows].max() for batch in batches)
        assert padded < 1.1 * lengths.sum()
        shuffled = rng.permutation(lengths).reshape(-1, 32)
        assert (shuffled.max(axis=1) * 32).sum() > 1.5 * lengths.sum()

    def test_long_and_short_batches_are_mixed(self) -> None:
        lengths = np.arange(32 * WINDOW)
        longest = [
            lengths[batch.rows].max() for batch in BucketSampler(np.arange(len(lengths)), lengths, batch_size=32)
        ]
        assert longest != sorted(longest)
        assert longest != sorted(longest, reverse=True)

    def test_cells_change_their_company(self) -> None:
        lengths = np.random.default_rng(0).integers(1, 50, size=200)
        sampler = BucketSampler(np.arange(200), lengths, batch_size=10)
        company = [{frozenset(batch) for batch in epoch_of(sampler, epoch)} for epoch in (0, 1)]
        assert not company[0] & company[1]


class TestSortedBatches:
    @given(lengths=lengths, batch_size=sizes)
    def test_every_row_once_the_longest_first(self, lengths: np.ndarray, batch_size: int) -> None:
        rows = np.arange(len(lengths))[::-1] * 2
        requests = sorted_batches(rows, lengths, batch_size=batch_size)
        order = np.concatenate([request.rows for request in requests])
        assert sorted(order.tolist()) == sorted(rows.tolist())
        by_row = dict(zip(rows.tolist(), lengths.tolist(), strict=True))
        assert (np.diff([by_row[row] for row in order.tolist()]) <= 0).all()
        assert {len(request.rows) for request in requests[:-1]} <= {batch_size}
        assert {request.draw for request in requests} == {0}

    def test_nothing_gives_nothing(self) -> None:
        empty = np.empty(0, dtype=np.int64)
        assert sorted_batches(empty, empty, batch_size=3) == []


@pytest.mark.parametrize("draw", [0, 5])
def test_request_names_rows_and_draw(draw: int) -> None:
    request = BatchRequest(np.array([2, 1]), draw=draw)
    assert (request.rows.tolist(), request.draw) == ([2, 1], draw)
