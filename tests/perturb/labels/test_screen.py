import math
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scgalore.data.reading import AS_IT_IS
from scgalore.errors import DataError, MissingKeyError
from scgalore.perturb.labels.screen import Screen

LABELS = ["ctrl", "A+ctrl", "A+B", "C"]
KEYS: dict[str, Any] = {"pert_key": "condition", "context_key": "line", "batch_key": "lane", "split_key": "split"}


def screen_data(n: int = 60, *, seed: int = 0) -> ad.AnnData:
    """Two lines, three lanes; every line has control cells."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {
            "condition": rng.choice(LABELS, n),
            "line": rng.choice(["K562", "A549"], n),
            "lane": rng.choice([3, 1, 2], n),
            "split": rng.choice(np.array(["train", "validation", "test"]), n),
        },
        index=[f"c{i}" for i in range(n)],
    )
    obs.iloc[:2, 0] = "ctrl"
    obs.iloc[:2, 1] = ["K562", "A549"]
    return ad.AnnData(np.log1p(rng.poisson(1.0, (n, 8)) * 0.7), obs=obs, var=pd.DataFrame(index=[*"ABCDEFGH"]))


class TestReading:
    def test_everything_is_read(self) -> None:
        adata = screen_data()
        adata.obs["line"] = adata.obs["line"].astype("category")
        screen = Screen.from_adata(adata, **KEYS, control="ctrl")
        assert screen.genes == tuple("ABCDEFGH")
        assert screen.conditions.labels[0] == "ctrl"
        assert screen.contexts is not None
        assert screen.batches is not None
        assert screen.parts is not None
        assert screen.contexts.tolist() == adata.obs["line"].tolist()
        assert screen.batches.tolist() == [str(lane) for lane in adata.obs["lane"]]
        assert screen.parts.tolist() == adata.obs["split"].tolist()
        kind = {"pert_kind": "gene", "dose_key": None, "vectors_key": None}
        read = {**KEYS, "control": "ctrl", "separator": "+", **kind, **AS_IT_IS.params(), "log_base": math.e}
        assert screen.params == read

    def test_recognised_control_is_recorded(self) -> None:
        assert Screen.from_adata(screen_data(), pert_key="condition").params["control"] == "ctrl"

    def test_layer_and_symbols(self) -> None:
        adata = screen_data()
        adata.layers["counts"] = np.ones(adata.shape)
        adata.var["symbol"] = [f"S{i}" for i in range(8)]
        screen = Screen.from_adata(adata, pert_key="condition", layer="counts", gene_symbols="symbol")
        assert screen.genes == tuple(f"S{i}" for i in range(8))
        np.testing.assert_allclose(screen.expression.rows([0]).toarray(), np.log1p(1e4 / 8), rtol=1e-6)

    @pytest.mark.parametrize("name", KEYS)
    def test_columns_that_are_not_there_are_named(self, name: str) -> None:
        with pytest.raises(MissingKeyError, match=f"{name}='nowhere' is not a column.*'condition', 'line'"):
            Screen.from_adata(screen_data(), **{**KEYS, name: "nowhere"})

    @pytest.mark.parametrize("column", ["line", "lane"])
    @pytest.mark.parametrize("as_category", [False, True])
    def test_contexts_and_batches_must_not_have_gaps(self, column: str, as_category: bool) -> None:
        adata = screen_data()
        adata.obs[column] = adata.obs[column].astype("category" if as_category else object)
        adata.obs.loc[["c3", "c9"], column] = np.nan
        with pytest.raises(DataError, match=rf"adata\.obs\['{column}'\] is empty for 2 of 60 cells"):
            Screen.from_adata(adata, **KEYS)

    def test_parts_of_another_name_are_refused(self) -> None:
        adata = screen_data()
        adata.obs.loc["c3", "split"] = "valid"
        with pytest.raises(DataError, match=r"\['valid'\].*must be 'train', 'validation', 'test' or missing"):
            Screen.from_adata(adata, **KEYS)

    @pytest.mark.parametrize("as_category", [False, True])
    def test_cells_without_a_part_are_left_out(self, as_category: bool) -> None:
        adata = screen_data()
        adata.obs.loc[["c3", "c9"], "split"] = None
        if as_category:
            adata.obs["split"] = adata.obs["split"].astype("category")
        screen = Screen.from_adata(adata, **KEYS)
        assert screen.parts is not None
        assert np.flatnonzero(screen.parts == "").tolist() == [3, 9]

    def test_reading_changes_nothing(self) -> None:
        adata = screen_data()
        before = adata.copy()
        Screen.from_adata(adata, **KEYS).profiles("train")
        pd.testing.assert_frame_equal(adata.obs, before.obs)
        np.testing.assert_array_equal(adata.X, before.X)
        assert not adata.uns


def test_another_split() -> None:
    adata = screen_data()
    screen = Screen.from_adata(adata, **KEYS)
    labels = np.array([None if i % 3 == 0 else "test" for i in range(60)], dtype=object)
    other = screen.with_parts(labels, "second")
    assert other.parts is not None
    assert other.parts.tolist() == ["" if label is None else label for label in labels]
    assert other.params["split_key"] == "second"
    assert screen.params["split_key"] == "split"
    assert screen.parts is not None
    assert screen.parts.tolist() == adata.obs["split"].tolist()


class TestPools:
    @given(seed=st.integers(0, 500), n=st.integers(4, 30))
    @settings(max_examples=40)
    def test_are_controls_of_context_and_batch_or_else_of_the_context(self, seed: int, n: int) -> None:
        adata = screen_data(n, seed=seed)
        pools = Screen.from_adata(adata, **KEYS).pools()
        obs = adata.obs.reset_index(drop=True)
        control = obs["condition"] == "ctrl"
        for cell in range(n):
            near = control & (obs["line"] == obs["line"][cell])
            nearest = near & (obs["lane"] == obs["lane"][cell])
            expected = np.flatnonzero(nearest if nearest.any() else near)
            assert pools.cells[pools.of_cell[cell]].tolist() == expected.tolist()
        for line, cells in zip(("A549", "K562"), pools.of_context, strict=True):
            assert cells.tolist() == np.flatnonzero(control & (obs["line"] == line)).tolist()

    def test_of_one_context_and_batch_are_all_controls(self) -> None:
        adata = screen_data()
        pools = Screen.from_adata(adata, pert_key="condition").pools()
        control = np.flatnonzero(adata.obs["condition"] == "ctrl").tolist()
        assert set(pools.of_cell) == {0}
        assert [cells.tolist() for cells in (*pools.cells, *pools.of_context)] == [control, control]

    def test_fallback_stays_within_the_context(self) -> None:
        adata = screen_data(6)
        adata.obs["condition"] = ["ctrl", "ctrl", "C", "C", "C", "ctrl"]
        adata.obs["line"] = ["K562", "A549", "K562", "A549", "K562", "K562"]
        adata.obs["lane"] = [1, 1, 1, 2, 2, 3]
        pools = Screen.from_adata(adata, **KEYS).pools()
        assert [pools.cells[pool].tolist() for pool in pools.of_cell] == [[0], [1], [0], [1], [0, 5], [5]]


class TestProfiles:
    def test_count_the_controls_of_every_part(self) -> None:
        adata = screen_data()
        screen = Screen.from_adata(adata, **KEYS)
        whole = screen.profiles()
        x = np.asarray(adata.X)
        for parts in (("train",), ("validation", "test"), ("test",)):
            found = screen.profiles(*parts)
            np.testing.assert_array_equal(found.control_means, whole.control_means)
            np.testing.assert_array_equal(found.n_controls, whole.n_controls)
            counted = 0
            for i, label in enumerate(found.labels):
                line, name = label.split(" | ")
                names = {"A": "A+ctrl"}.get(name, name)
                rows = (adata.obs["condition"] == names) & (adata.obs["line"] == line) & adata.obs["split"].isin(parts)
                np.testing.assert_allclose(found.means[i], x[rows].mean(axis=0), rtol=1e-5)
                counted += int(rows.sum())
            assert counted == int((adata.obs["split"].isin(parts) & (adata.obs["condition"] != "ctrl")).sum())

    def test_parts_add_up_to_the_whole(self) -> None:
        screen = Screen.from_adata(screen_data(), **KEYS)
        sizes = [screen.profiles(part).n_cells.sum() for part in ("train", "validation", "test")]
        assert (
            sum(sizes)
            == screen.profiles().n_cells.sum()
            == screen.profiles("train", "validation", "test").n_cells.sum()
        )

    def test_without_a_split_every_cell_counts(self) -> None:
        screen = Screen.from_adata(screen_data(), pert_key="condition")
        np.testing.assert_array_equal(screen.profiles("train").means, screen.profiles().means)

    def test_cells_that_are_left_out_count_nowhere(self) -> None:
        adata = screen_data()
        adata.obs.loc[adata.obs["condition"] == "C", "split"] = None
        screen = Screen.from_adata(adata, **KEYS)
        assert "C" not in screen.profiles("train", "validation", "test").perturbations
        assert "C" in screen.profiles().perturbations
