from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgalore.data.split import PARTS, Split, random_split, split_from_labels
from scgalore.errors import DataError, OptionError

shares = st.sampled_from([0.0, 0.05, 0.1, 1 / 3, 0.25, 0.4])
seeds = st.integers(0, 2**32 - 1)


def codes(split: Split) -> np.ndarray:
    part = np.full(sum(split.sizes().values()), -1)
    for code, name in enumerate(PARTS):
        part[getattr(split, name)] = code
    return part


class TestRandomSplit:
    @given(n_obs=st.integers(5, 400), validation=shares, test=shares, seed=seeds)
    def test_parts_are_every_cell_once_in_the_shares_asked_for(
        self, n_obs: int, validation: float, test: float, seed: int
    ) -> None:
        split = random_split(n_obs, validation_size=validation, test_size=test, seed=seed)
        split.check(n_obs)
        for part, share in (("validation", validation), ("test", test)):
            rows = getattr(split, part)
            assert abs(len(rows) - share * n_obs) <= 0.5
            assert (np.diff(rows) > 0).all()

    @given(
        strata=st.lists(st.integers(0, 6), min_size=10, max_size=300).map(np.array),
        validation=shares,
        test=shares,
        seed=seeds,
    )
    def test_strata_keep_their_shares(self, strata: np.ndarray, validation: float, test: float, seed: int) -> None:
        split = random_split(len(strata), validation_size=validation, test_size=test, strata=strata, seed=seed)
        split.check(len(strata))
        part = codes(split)
        moved = 0
        for stratum in np.unique(strata):
            n = int((strata == stratum).sum())
            in_part = [int(((strata == stratum) & (part == code)).sum()) for code in range(3)]
            assert in_part[0] >= 1  # every class can be learnt
            alone = in_part[0] == 1  # its training cell may have been taken from another part
            moved += alone
            assert abs(in_part[2] - test * n) <= 1.5 + alone
            assert abs(in_part[1] - validation * n) <= 2 + alone
        assert abs(len(split.test) - test * len(strata)) <= 0.5 + moved

    def test_whole_shares_are_exact(self) -> None:
        strata = np.repeat([0, 1, 2], [100, 50, 10])
        split = random_split(160, validation_size=0.1, test_size=0.2, strata=strata, seed=3)
        assert split.sizes() == {"train": 112, "validation": 16, "test": 32}
        for part, expected in (("test", [20, 10, 2]), ("validation", [10, 5, 1])):
            assert np.bincount(strata[getattr(split, part)]).tolist() == expected

    def test_seed_decides(self) -> None:
        one, again, other = (codes(random_split(200, seed=seed)) for seed in (1, 1, 2))
        assert (one == again).all()
        assert (one != other).any()

    def test_every_cell_is_held_out_equally_often(self) -> None:
        strata = np.repeat([0, 1], [30, 10])
        counts = sum(
            (codes(random_split(40, validation_size=0.2, test_size=0.25, strata=strata, seed=seed)) == 2).astype(int)
            for seed in range(2000)
        )
        np.testing.assert_allclose(counts / 2000, 0.25, atol=0.05)

    @pytest.mark.parametrize(
        ("validation", "test"),
        [(0.5, 0.5), (0.0, 1.0), (-0.1, 0.2), (0.1, -0.1), (1.5, 0.0), (np.nan, 0.1), (0.1, np.nan)],
    )
    def test_impossible_shares_are_refused(self, validation: float, test: float) -> None:
        with pytest.raises(OptionError, match="their sum below 1"):
            random_split(100, validation_size=validation, test_size=test)

    @pytest.mark.parametrize("n_obs", [0, 1])
    def test_no_cell_left_to_train_on(self, n_obs: int) -> None:
        if n_obs == 0:
            with pytest.raises(DataError, match="No training cell is left"):
                random_split(n_obs)
        else:
            assert random_split(n_obs).sizes() == {"train": 1, "validation": 0, "test": 0}


class TestSplit:
    def test_labels_are_read_back(self) -> None:
        split = random_split(50, validation_size=0.2, test_size=0.3)
        again = split_from_labels(split.labels().tolist())
        assert (codes(again) == codes(split)).all()
        assert split.sizes() == again.sizes() == {"train": 25, "validation": 10, "test": 15}

    def test_other_spellings_of_validation(self) -> None:
        split = split_from_labels(["train", "val", "valid", "validation", "test"])
        assert split.validation.tolist() == [1, 2, 3]

    @pytest.mark.parametrize("labels", [["train", "nan"], ["train", "Test"], ["training"], [""]])
    def test_strange_labels_are_refused(self, labels: list[str]) -> None:
        with pytest.raises(DataError, match="must be 'train', 'validation' or 'test'"):
            split_from_labels(labels)

    @pytest.mark.parametrize(
        "column",
        [
            ["train", "test", "val"],
            np.array([b"train", b"test", b"val"], dtype=object),
            pd.Series(["train", "test", "val"], dtype="category"),
            pd.Series(["train", "test", "val"], dtype="string"),
        ],
    )
    def test_columns_of_any_type(self, column: Any) -> None:
        assert codes(split_from_labels(column)).tolist() == [0, 2, 1]

    @pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
    def test_cells_of_no_part_are_counted(self, missing: Any) -> None:
        with pytest.raises(DataError, match=r"contains \['a'\] and missing values for 2 cells; each cell must be"):
            split_from_labels(["train", missing, "a", missing])

    @pytest.mark.parametrize("labels", [["test", "validation"], []])
    def test_nothing_to_train_on(self, labels: list[str]) -> None:
        with pytest.raises(DataError, match="No training cell is left"):
            split_from_labels(labels)

    @pytest.mark.parametrize("rows", [[0, 1], [0, 1, 2, 2], [1, 2, 3], [0, 1, 2, 3]])
    def test_parts_must_be_the_cells(self, rows: list[int]) -> None:
        empty = np.empty(0, dtype=np.int64)
        with pytest.raises(DataError, match="3 cells; each cell must be in exactly one part"):
            Split(np.array(rows), empty, empty).check(3)
