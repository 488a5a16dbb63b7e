import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgalore.data import ragged
from scgalore.data.ragged import argsort_rows, blocks, starts

lengths = st.lists(st.sampled_from([0, 0, 1, 2, 5, 40]), max_size=30)


@given(
    lengths,
    st.integers(0, 1000),
    st.sampled_from([2, 2**16, 2**32]),
    st.sampled_from([np.uint32, np.int64, np.float32]),
)
def test_rows_are_sorted_each_by_itself_and_ties_keep_their_order(sizes, seed, top, dtype):
    indptr = starts(np.array(sizes, dtype=np.int64))
    keys = np.random.default_rng(seed).integers(0, top, indptr[-1], dtype=np.uint64).astype(dtype)
    order = argsort_rows(keys, indptr)
    for start, stop in zip(indptr[:-1], indptr[1:], strict=True):
        expected = start + np.argsort(keys[start:stop], kind="stable")
        assert order[start:stop].tolist() == expected.tolist()


@pytest.mark.parametrize(
    "sizes", [[2**20 + 1, 3], [2**20, 3, 2**20], [0] * 5000 + [1] * 5000], ids=["over", "at", "many"]
)
def test_rows_at_the_limits_of_a_packed_key(sizes):
    indptr = starts(np.array(sizes))
    keys = np.random.default_rng(0).integers(0, 2**32, indptr[-1], dtype=np.uint32)
    order = argsort_rows(keys, indptr)
    assert (np.bincount(order) == 1).all()
    row = np.repeat(np.arange(len(sizes)), sizes)
    assert (row[order] == row).all()
    ordered = keys[order]
    assert ((ordered[1:] >= ordered[:-1]) | (row[1:] != row[:-1])).all()


@given(lengths, st.integers(1, 60), st.integers(1, 8))
def test_blocks_cover_all_rows_and_keep_to_their_size(sizes, size, most_rows):
    indptr = starts(np.array(sizes, dtype=np.int64))
    found = list(blocks(indptr, size, most_rows))
    assert [row for rows in found for row in range(rows.start, rows.stop)] == list(range(len(sizes)))
    for rows in found:
        assert rows.stop - rows.start <= most_rows
        assert indptr[rows.stop] - indptr[rows.start] <= size or rows.stop - rows.start == 1


def test_the_result_does_not_hang_on_the_blocks(monkeypatch):
    indptr = starts(np.random.default_rng(1).integers(0, 30, 50))
    keys = np.random.default_rng(0).integers(0, 9, indptr[-1], dtype=np.uint32)
    whole = argsort_rows(keys, indptr)
    monkeypatch.setattr(ragged.blocks, "__defaults__", (17, 3))
    assert argsort_rows(keys, indptr).tolist() == whole.tolist()
