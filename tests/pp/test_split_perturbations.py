import hashlib
import logging
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError

SINGLES = [f"G{i}" for i in range(12)]
LABELS = [
    *["ctrl"] * 6,
    *[f"{gene}+ctrl" for gene in SINGLES for _ in range(2)],
    "ctrl+G1",
    *[f"G{i}+G{j}" for i in range(12) for j in range(i)],
]


def cells(labels: list[Any] | None = None) -> AnnData:
    labels = LABELS if labels is None else labels
    obs = pd.DataFrame({"perturbation": labels}, index=[f"cell{i}" for i in range(len(labels))])
    obs["line"] = [("a", "b", "c")[i % 3] for i in range(len(labels))]
    return AnnData(np.ones((len(labels), 2), dtype=np.float32), obs=obs)


def test_every_cell_gets_the_part_of_its_perturbation() -> None:
    adata = cells()
    assert sg.pp.split_perturbations(adata) is None
    record = adata.uns["split"]
    assert list(adata.obs["split"].cat.categories) == ["train", "validation", "test"]
    for part in ("train", "validation", "test"):
        assert record[part]
        for name in record[part]:
            rows = [set(label.split("+")) - {"ctrl"} == set(name.split("+")) for label in LABELS]
            assert set(adata.obs["split"][rows]) == {part}
    assert set(adata.obs["split"][:6]) == {"train"}
    assert sorted(name for group in record["groups"].values() for name in group) == sorted(record["test"])
    assert record["params"] == {
        "kind": "simulation",
        "pert_key": "perturbation",
        "control": "ctrl",
        "separator": "+",
        "pert_kind": "gene",
        "dose_key": None,
        "context_key": None,
        "rng": 42,
        "train_gene_set_size": 0.75,
        "combo_seen2_train_frac": 0.75,
        "validation_size": 0.1,
        "test_perts": [],
        "only_test_set_perts": False,
    }
    assert record["labels_sha256"] == hashlib.sha256("\n".join(sorted(set(LABELS))).encode()).hexdigest()
    assert record["version"] == sg.__version__


def test_dropped_cells_and_those_without_a_label_are_missing() -> None:
    adata = cells([*LABELS, np.nan, None])
    sg.pp.split_perturbations(adata, "simulation_single", key_added="mine")
    single = adata.obs["perturbation"].str.contains("ctrl", na=False).astype(bool)
    assert adata.obs["mine"][~single].isna().all()
    assert adata.obs["mine"][single].notna().all()
    assert len(adata.uns["mine"]["dropped"]) == 66
    assert "split" not in adata.obs


@pytest.mark.parametrize("kind", ["simulation", "no_split", "no_test", "context", "custom"])
def test_results_survive_a_file(kind: str, tmp_path: Path) -> None:
    adata = cells()
    options: dict[str, Any] = {"context_key": "line"} if kind == "context" else {}
    options |= {"parts": {"test": ["G1+G2"]}} if kind == "custom" else {}
    sg.pp.split_perturbations(adata, kind, **options)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    read = ad.read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_series_equal(read.obs["split"], adata.obs["split"])
    for part in ("train", "validation", "test", "dropped"):
        assert list(read.uns["split"][part]) == adata.uns["split"][part]
    assert {group: list(names) for group, names in read.uns["split"]["groups"].items()} == adata.uns["split"]["groups"]
    assert read.uns["split"]["params"].keys() == adata.uns["split"]["params"].keys()


def test_a_copy_leaves_the_object_alone() -> None:
    adata = cells()
    copy = sg.pp.split_perturbations(adata, copy=True)
    assert isinstance(copy, AnnData)
    assert "split" in copy.obs
    assert "split" not in adata.obs
    assert "split" not in adata.uns


def test_views_become_objects_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    whole = cells()
    view = whole[np.r_[0:3, 6 : len(LABELS)]]
    sg.pp.split_perturbations(view)
    assert not view.is_view
    assert "split" not in whole.obs
    expected = cells()
    sg.pp.split_perturbations(expected)
    assert view.obs["split"].tolist() == expected.obs["split"][view.obs_names].tolist()
    assert not [w for w in recwarn if "view" in str(w.message).lower()]


def test_a_modality_of_a_mudata() -> None:
    adata = cells()
    proteins = AnnData(np.ones((3, 1), "float32"), obs=adata.obs.iloc[:3, :0], var=pd.DataFrame(index=["CD3"]))
    mdata = MuData({"rna": adata, "adt": proteins})
    sg.pp.split_perturbations(mdata)
    assert mdata["rna"].obs["split"].notna().all()
    assert mdata.obs["rna:split"].tolist() == mdata["rna"].obs["split"][mdata.obs_names].tolist()
    copy = sg.pp.split_perturbations(mdata, key_added="again", copy=True)
    assert isinstance(copy, MuData)
    assert "again" in copy["rna"].obs
    assert "again" not in mdata["rna"].obs
    with pytest.raises(MissingKeyError, match="no modality 'dna'"):
        sg.pp.split_perturbations(mdata, mod="dna")


def test_seeds_and_generators() -> None:
    first, second, third = cells(), cells(), cells()
    sg.pp.split_perturbations(first, rng=7)
    sg.pp.split_perturbations(second, rng=np.random.default_rng(0))
    sg.pp.split_perturbations(third, rng=second.uns["split"]["params"]["rng"])
    assert first.uns["split"]["params"]["rng"] == 7
    assert second.uns["split"]["test"] == third.uns["split"]["test"] != first.uns["split"]["test"]


def test_the_order_of_cells_does_not_matter_for_the_default() -> None:
    adata = cells()
    shuffled = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    for each in (adata, shuffled):
        sg.pp.split_perturbations(each)
    assert shuffled.obs["split"][adata.obs_names].tolist() == adata.obs["split"].tolist()
    assert shuffled.uns["split"]["labels_sha256"] == adata.uns["split"]["labels_sha256"]


def test_the_log_tells_what_a_reader_of_scores_must_know(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="scgalore"):
        for seed in range(5):
            sg.pp.split_perturbations(cells(), rng=seed)
        sg.pp.split_perturbations(cells(), "no_split")
    said = {level: [r.getMessage() for r in caplog.records if r.levelname == level] for level in ("INFO", "WARNING")}
    assert any("1 perturbations have several labels, such as G1+ctrl and ctrl+G1: merged" in m for m in said["INFO"])
    assert any("single perturbation is in the validation split" in message for message in said["WARNING"])
    assert any("No perturbation is in the train or validation split" in message for message in said["WARNING"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pert_key": "gene"}, MissingKeyError, "No column 'gene' in adata.obs; it has"),
        ({"context_key": "type"}, MissingKeyError, "No column 'type'"),
        ({"control": "NT"}, OptionError, "control='NT' is none of"),
        ({"kind": "simulations"}, OptionError, "kind='simulations'; expected one of"),
        ({"kind": "context"}, OptionError, "context_key="),
        ({"test_size": 0.1}, OptionError, "cannot be used with kind='simulation'"),
        ({"key_added": "perturbation"}, OptionError, r"obs\['perturbation'\] is read by this call \(pert_key=\)"),
        ({"key_added": "a/b"}, OptionError, "without '/'"),
        ({"rng": -1}, OptionError, "rng is -1"),
        ({"kind": "custom", "parts": {"test": ["Z"]}}, MissingKeyError, "No perturbation 'Z'"),
        ({"kind": "cell", "test_size": 0.6, "validation_size": 0.5}, OptionError, "their sum below 1"),
    ],
)
@pytest.mark.parametrize("copy", [False, True])
def test_bad_input_is_refused_and_changes_nothing(
    options: dict[str, Any], error: type[Exception], message: str, copy: bool
) -> None:
    adata = cells()
    before = adata.obs.copy()
    with pytest.raises(error, match=message):
        sg.pp.split_perturbations(adata, **options, copy=copy)
    pd.testing.assert_frame_equal(adata.obs, before)
    assert not adata.uns


def test_labels_that_do_not_parse_and_missing_contexts_are_refused() -> None:
    with pytest.raises(DataError, match=r"'G1\+\+G2' has an empty part"):
        sg.pp.split_perturbations(cells([*LABELS, "G1++G2"]))
    with pytest.raises(DataError, match="No label of control"):
        sg.pp.split_perturbations(cells(LABELS[6:]))
    adata = cells()
    adata.obs.loc["cell3", "line"] = None
    with pytest.raises(DataError, match="1 cells with a perturbation have no value"):
        sg.pp.split_perturbations(adata, "context", context_key="line")


def test_a_view_of_a_file_is_refused(tmp_path: Path) -> None:
    cells().write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with pytest.raises(DataError, match="to_memory"):
        sg.pp.split_perturbations(backed[:50])
    with pytest.raises(DataError, match="to_memory"):
        sg.pp.split_perturbations(backed, copy=True)
    sg.pp.split_perturbations(backed)
    assert backed.obs["split"].notna().all()
