"""A column is a split of these perturbations if its record says so, for this column, and still agrees with it."""

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

import scgalore as sg
from scgalore._uns import to_uns
from scgalore.errors import DataError
from scgalore.perturb.splits.own import free_split_key, groups_in, is_own_split, own_split, refuse_changed

LABELS = ["ctrl", "KLF1", "CEBPA", "BAK1", "MAP2K6", "CEBPA+KLF1", "BAK1+MAP2K6"]
ODD: list[Any] = [
    None,
    True,
    3,
    "text",
    ["a"],
    np.arange(3),
    pd.DataFrame({"a": [1]}),
    {},
    {"params": None},
    {"params": {}},
]


def screen(labels: list[str] = LABELS, n: int = 4, start: int = 0) -> AnnData:
    obs = pd.DataFrame({"gene": np.repeat(labels, n), "line": np.tile(["a", "b"], len(labels) * n // 2)})
    obs.index = [f"c{start + i}" for i in range(len(obs))]
    return AnnData(np.ones((len(obs), 2), dtype=np.float32), obs=obs, var=pd.DataFrame(index=["KLF1", "BAK1"]))


@pytest.fixture
def split() -> AnnData:
    adata = screen()
    sg.pp.split_perturbations(adata, pert_key="gene", rng=1)
    return adata


class TestRecord:
    def test_what_was_written_is_ours(self, split: AnnData) -> None:
        assert own_split(split, pert_key="gene") == "split"
        assert own_split(split, pert_key="gene", context_key="line") == "split"  # does not concern this kind

    @pytest.mark.parametrize(
        "form", ["h5ad", "zarr", "copy", "view", "fewer cells", "fewer perturbations", "other order"]
    )
    @pytest.mark.filterwarnings("ignore:Writing zarr v2")
    def test_it_stays_ours(self, split: AnnData, form: str, tmp_path: Path) -> None:
        if form == "h5ad":
            split.write_h5ad(tmp_path / "a.h5ad")
            split = ad.read_h5ad(tmp_path / "a.h5ad")
        elif form == "zarr":
            split.write_zarr(tmp_path / "a.zarr")
            split = ad.read_zarr(tmp_path / "a.zarr")
        else:
            rows = np.arange(split.n_obs)
            kept = {"fewer cells": rows % 4 > 0, "fewer perturbations": rows < 17, "other order": rows[::-1]}
            split = split.copy() if form == "copy" else split[kept.get(form, rows)]
        assert own_split(split, pert_key="gene") == "split"

    @pytest.mark.parametrize("kind", ["simulation", "single", "no_test", "custom", "cell", "context"])
    def test_of_every_kind(self, kind: str) -> None:
        adata = screen()
        adata.obs.loc[adata.obs_names[5], "gene"] = None
        of_kind: dict[str, dict[str, Any]] = {
            "custom": {"parts": {"test": ["KLF1"]}},
            "context": {"test_contexts": ["b"]},
        }
        options = of_kind.get(kind, {})
        sg.pp.split_perturbations(adata, kind, pert_key="gene", context_key="line", **options)
        assert own_split(adata, pert_key="gene", context_key="line") == "split"
        other = own_split(adata, pert_key="gene", context_key=None)
        assert other == (None if kind == "context" else "split")


class TestForeign:
    @pytest.mark.parametrize("record", ODD, ids=str)
    def test_a_column_without_our_record_is_not_used_and_that_is_said_once(
        self, record: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        adata = screen()
        adata.obs["split"] = np.tile(["train", "test"], 14)
        adata.uns["split"] = record
        caplog.set_level("INFO", logger="scgalore")
        for _ in range(2):
            assert own_split(adata, pert_key="gene") is None
        said = [entry.getMessage() for entry in caplog.records]
        assert len(said) == 1
        assert "adata.obs['split'] is not used" in said[0]
        assert "split_key='split' uses it" in said[0]
        assert groups_in(adata.uns, "split") == {}
        refuse_changed(adata, "split")  # nothing to compare with

    def test_of_another_column(self, split: AnnData, caplog: pytest.LogCaptureFixture) -> None:
        split.obs["guide"] = split.obs["gene"]
        assert own_split(split, pert_key="guide") is None
        assert "was made for pert_key='gene' and is not used for 'guide'" in caplog.text

    def test_a_record_without_its_column(self, split: AnnData) -> None:
        del split.obs["split"]
        assert own_split(split, pert_key="gene") is None
        assert free_split_key(split) != "split"


class TestChanged:
    def test_cells_that_were_added(self, split: AnnData) -> None:
        more = screen(["ctrl", "KLF1", "TP53"], start=100)
        more.obs["split"] = "train"
        both = ad.concat([split, more], uns_merge="first")
        with pytest.raises(
            DataError, match=r"no longer the split .* 1 labels are new \('TP53'\).*pass split_key='split'"
        ):
            own_split(both, pert_key="gene")

    def test_concatenation_without_records_leaves_a_foreign_column(self, split: AnnData) -> None:
        assert own_split(ad.concat([split, screen(start=100)], join="outer"), pert_key="gene") is None

    def test_a_column_that_was_replaced(self, split: AnnData) -> None:
        split.obs["split"] = np.tile(["train", "test"], 14)
        with pytest.raises(DataError, match=r"[0-9]+ are in other splits than recorded \("):
            own_split(split, pert_key="gene")

    def test_labels_that_were_replaced(self, split: AnnData) -> None:
        split.obs["gene"] = np.roll(split.obs["gene"].to_numpy(), 4)
        with pytest.raises(DataError, match="no longer the split"):
            is_own_split(split, "split", pert_key="gene")

    @given(st.permutations(range(28)), st.integers(1, 28))
    def test_any_choice_of_the_cells_is_no_change(self, order: list[int], n: int) -> None:
        adata = screen()
        sg.pp.split_perturbations(adata, "single", pert_key="gene")
        refuse_changed(adata[order[:n]].copy(), "split")

    @given(st.data())
    def test_a_cell_in_another_part_is_one(self, data: st.DataObject) -> None:
        adata = screen()
        sg.pp.split_perturbations(adata, pert_key="gene", rng=1)
        cell = data.draw(st.integers(0, 27))
        part = data.draw(
            st.sampled_from([part for part in ("train", "validation", "test") if part != adata.obs["split"].iloc[cell]])
        )
        adata.obs["split"] = adata.obs["split"].astype(object)
        adata.obs.loc[adata.obs_names[cell], "split"] = part
        with pytest.raises(DataError, match="1 are in other splits"):
            refuse_changed(adata, "split")

    @given(st.sets(st.integers(0, 27)))
    def test_cells_may_be_left_out(self, cells: set[int]) -> None:
        adata = screen()
        sg.pp.split_perturbations(adata, pert_key="gene", rng=1)
        adata.obs.loc[adata.obs_names[sorted(cells)], "split"] = None
        assert own_split(adata, pert_key="gene") == "split"

    def test_records_of_version_0_5_0_have_no_table(self, split: AnnData) -> None:
        del split.uns["split"]["cells"]
        split.obs["split"] = "train"
        assert own_split(split, pert_key="gene") == "split"


def test_a_free_key_replaces_nothing(split: AnnData) -> None:
    assert free_split_key(screen()) == "split"
    assert free_split_key(split) == "perturbation_split"
    split.obs["perturbation_split"] = "x"
    split.uns["perturbation_split_2"] = {}
    assert free_split_key(split) == "perturbation_split_3"


def test_groups_come_from_the_record(split: AnnData) -> None:
    found = groups_in(split.uns, "split")
    assert set(found) == set(split.uns["split"]["test"])
    assert groups_in(to_uns(split.uns), "split") == found
    assert groups_in(split.uns, None) == {}
