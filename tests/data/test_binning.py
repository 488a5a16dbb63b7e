from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scgalore.data.binning import bin_edges, bin_rows, bin_values
from scgalore.errors import DataError, OptionError

FIXTURES = Path(__file__).parent / "scgpt"


@pytest.fixture(scope="module")
def reference():
    return np.load(FIXTURES / "binning.npz")


def nonzero(reference, row):
    x = reference[f"row{row}"]
    return x[x != 0]


@pytest.mark.parametrize("row", range(5))
def test_edges_of_the_original(reference, agree, row):
    edges, theirs = bin_edges(nonzero(reference, row), 51), reference[f"row{row}/edges_51"]
    agree(f"binning/row{row}/edges_51", edges, theirs)
    np.testing.assert_array_equal(edges, theirs)


@pytest.mark.parametrize("row", range(5))
def test_upper_ties_are_the_originals_one_sided_digits(reference, agree, row):
    bins = bin_values(nonzero(reference, row), 51)
    agree(f"binning/row{row}/one", bins, reference[f"row{row}/one"])
    agree(f"binning/row{row}/left", bins, reference[f"row{row}/left"])


@pytest.mark.parametrize("row", range(5))
def test_random_ties_with_the_originals_draws(reference, agree, row):
    x = nonzero(reference, row)
    draws = np.random.RandomState(200 + row).rand(len(x))
    name = f"row{row}/both_seed{200 + row}"
    agree(f"binning/{name}", bin_values(x, ties="random", u=draws), reference[name])
    lowest = bin_values(x, ties="random", u=np.full(len(x), 1 - 1e-12))
    theirs = np.minimum(reference[f"row{row}/right"] + 1, reference[f"row{row}/left"])
    instead = "ours draws between tied bins without listing them; compared with the lowest bin of a draw, min(right + 1, left)"
    agree(f"binning/row{row}/right", lowest, theirs, instead=instead)


@pytest.mark.parametrize("n_bins", [51, 7])
def test_whole_rows_of_the_original(reference, agree, n_bins):
    rows = [reference[f"row{row}"] for row in range(6)]
    lengths = [np.count_nonzero(x) for x in rows]
    draws = np.concatenate([np.random.RandomState(100 + i).rand(n) for i, n in enumerate(lengths)])
    data = np.concatenate([x[x != 0] for x in rows])
    binned = bin_rows(data, np.cumsum([0, *lengths]), n_bins, ties="random", u=draws)
    for i, (x, bins) in enumerate(zip(rows, np.split(binned, np.cumsum(lengths)[:-1]), strict=True)):
        whole = np.zeros(len(x))
        whole[x != 0] = bins
        name = f"row{i}/binned_{n_bins}_seed{100 + i}"
        agree(f"binning/{name}", whole, reference[name])


def test_torch_row_of_the_original(reference, agree):
    x = reference["row2"]
    draws = np.random.RandomState(300).rand(np.count_nonzero(x))
    whole = np.zeros(len(x))
    whole[x != 0] = bin_values(x[x != 0], ties="random", u=draws)
    agree("binning/torch_row2_seed300", whole, reference["torch_row2_seed300"])


def test_preprocessor_of_the_original(agree):
    reference = np.load(FIXTURES / "preprocess.npz")
    for prefix, layer, seed in [("", "X_log1p", 42), ("hvg_", "hvg_X_normed", 43)]:
        x = reference[layer]
        indptr = np.cumsum([0, *np.count_nonzero(x, axis=1)])
        draws = np.random.RandomState(seed).rand(indptr[-1])
        whole = np.zeros_like(x)
        whole[x != 0] = bin_rows(x[x != 0], indptr, ties="random", u=draws)
        agree(f"preprocess/{prefix}X_binned", whole, reference[f"{prefix}X_binned"])
    x = reference["X_log1p"]
    edges = np.stack([np.append(0, bin_edges(row[row != 0])) for row in x])
    agree("preprocess/bin_edges", edges, reference["bin_edges"])


counts = st.integers(1, 40)
continuous = st.floats(2.0**-20, 2.0**20, width=32)


@st.composite
def expression(draw, max_size=80):
    dtype = draw(st.sampled_from([np.float32, np.float64, np.int64]))
    elements = counts if dtype == np.int64 else draw(st.sampled_from([counts, continuous]))
    return np.array(draw(st.lists(elements, min_size=1, max_size=max_size)), dtype=dtype)


@given(expression(), st.integers(3, 130))
def test_edges_are_numpys_quantiles_to_the_last_bit(x, n_bins):
    expected = np.quantile(x, np.linspace(0, 1, n_bins - 1))
    edges = bin_edges(x, n_bins)
    assert edges.dtype == expected.dtype
    np.testing.assert_array_equal(edges, expected)


@given(st.lists(expression(20) | st.just(np.array([], dtype=np.float32)), max_size=6), st.integers(3, 60), st.data())
def test_rows_are_binned_one_by_one(cells, n_bins, data):
    values = np.concatenate([*cells, []]).astype(np.float32)
    indptr = np.cumsum([0, *map(len, cells)])
    u = data.draw(hnp.arrays(np.float64, len(values), elements=st.floats(0, 1, exclude_max=True)))
    for ties in ("upper", "random"):
        together = bin_rows(values, indptr, n_bins, ties=ties, u=u)
        for start, stop in zip(indptr[:-1], indptr[1:], strict=True):
            alone = bin_values(values[start:stop], n_bins, ties=ties, u=u[start:stop])
            np.testing.assert_array_equal(together[start:stop], alone)


FLOAT32 = np.finfo(np.float32)
extremes = st.sampled_from(
    [FLOAT32.smallest_subnormal, 2 * FLOAT32.smallest_subnormal, FLOAT32.tiny, 1, 1 + FLOAT32.eps, 3e38, FLOAT32.max]
)


@given(
    st.lists(st.lists(extremes | continuous | counts.map(np.log1p), max_size=120), max_size=5),
    st.integers(3, 130),
    st.data(),
)
def test_bins_are_the_edges_at_or_below_a_value(cells, n_bins, data):
    # The definition: np.digitize at np.quantile's edges, whose neighbours the implementation only compares.
    values = np.array([value for cell in cells for value in cell], dtype=np.float32)
    indptr = np.cumsum([0, *map(len, cells)])
    u = data.draw(hnp.arrays(np.float64, len(values), elements=st.floats(0, 1, exclude_max=True)))
    upper, random = (bin_rows(values, indptr, n_bins, ties=ties, u=u) for ties in ("upper", "random"))
    for start, stop in zip(indptr[:-1], indptr[1:], strict=True):
        if start == stop:
            continue
        x = values[start:stop]
        edges = np.quantile(x, np.linspace(0, 1, n_bins - 1))
        left, right = np.digitize(x, edges), np.digitize(x, edges, right=True)
        np.testing.assert_array_equal(upper[start:stop], left)
        drawn = np.maximum(np.ceil(u[start:stop] * (right - left) + left), np.minimum(right + 1, left))
        np.testing.assert_array_equal(random[start:stop], drawn)


def test_values_below_zero_are_ordered_too():
    x = np.array([3, -1, -2.5, 0.5, -1], dtype=np.float32)
    np.testing.assert_array_equal(bin_values(x, 7), np.digitize(x, np.quantile(x, np.linspace(0, 1, 6))))


@given(expression(), st.integers(3, 60), st.integers(-8, 8))
def test_bins_are_ranks_in_range(x, n_bins, power):
    bins = bin_values(x, n_bins)
    assert bins.min() >= 1
    assert bins[np.argmax(x)] == n_bins - 1
    assert (np.diff(bins[np.argsort(x, kind="stable")]) >= 0).all()
    if x.dtype != np.int64:  # scaling by a power of two is exact
        np.testing.assert_array_equal(bins, bin_values(x * x.dtype.type(2.0**power), n_bins))


def test_a_draw_just_below_one_is_not_the_bin_of_the_zeros():
    for n_tied in (1, 9, 100):
        assert bin_values(np.ones(n_tied), ties="random", u=np.full(n_tied, np.nextafter(1, 0))).min() == 1


@given(expression(), st.integers(3, 60), st.data())
def test_random_ties_stay_between_the_tied_bins(x, n_bins, data):
    u = data.draw(hnp.arrays(np.float64, len(x), elements=st.floats(0, 1, exclude_max=True)))
    edges = np.quantile(x, np.linspace(0, 1, n_bins - 1))
    left, right = np.digitize(x, edges), np.digitize(x, edges, right=True)
    bins = bin_values(x, n_bins, ties="random", u=u)
    assert ((bins <= left) & (bins >= np.minimum(right + 1, left))).all()


def test_random_ties_use_every_tied_bin():
    x = np.array([1.0] * 900 + [2.0] * 100)
    bins = bin_values(x, ties="random", u=np.random.default_rng(0).random(1000))
    assert set(bins[:900].tolist()) == set(range(1, 46))
    counts = np.bincount(bins[:900])[1:]
    assert counts.min() > 5


def test_input_is_left_alone():
    x = np.array([3.0, 1.0, 2.0])
    bin_values(x)
    bin_edges(x)
    assert x.tolist() == [3, 1, 2]


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: bin_edges([1.0, 2.0], 2), OptionError, "n_bins=2"),
        (lambda: bin_values([1.0], 0), OptionError, "at least 3"),
        (lambda: bin_values([1.0], ties="lower"), OptionError, "'upper', 'random'"),  # type: ignore[arg-type]
        (lambda: bin_values([1.0], ties="random"), OptionError, "needs u"),
        (lambda: bin_edges([]), DataError, "no bin edges"),
    ],
    ids=["too-few-bins", "no-bins", "unknown-ties", "random-without-draws", "empty-cell"],
)
def test_bad_input(call, error, says):
    with pytest.raises(error, match=says):
        call()
