"""Submissions are unpacked again and read: what the challenge's server would find."""

import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.perturb import write_vcc

GENES = [f"GENE{i}" for i in range(30)] + ['HLA-"A",B', "1234"]

needs_programs = pytest.mark.skipif(
    find_spec("cell_eval") is None or None in (shutil.which("zstd"), shutil.which("tar")),
    reason="needs cell-eval, zstd and tar",
)


def cells(*, counts: bool = False) -> ad.AnnData:
    """60 cells of two perturbations and control; genes not in the order of the list."""
    values = np.random.default_rng(0).poisson(0.5, (60, len(GENES))).astype(np.float64)
    labels = ["ctrl"] * 20 + ["GENE3+ctrl", "GENE5+ctrl"] * 20
    obs = pd.DataFrame({"perturbation": pd.Categorical(labels), "note": 1.5}, index=[f"c{i}" for i in range(60)])
    adata = ad.AnnData(values if counts else np.log1p(values * 1.7), obs=obs, var=pd.DataFrame(index=GENES))
    return adata[:, ::-1].copy()


def unpacked(path: Path, folder: Path) -> ad.AnnData:
    with tarfile.open(path) as packed:
        assert set(packed.getnames()) == {"pred.h5ad.zst", "watermark.txt"}
        packed.extractall(folder, filter="data")
    assert (folder / "watermark.txt").read_text() == "vcc-prep"
    subprocess.run(["zstd", "-dqf", folder / "pred.h5ad.zst"], check=True)
    return ad.read_h5ad(folder / "pred.h5ad")


@needs_programs
def test_submission_holds_the_cells_in_the_order_of_the_genes(tmp_path: Path) -> None:
    adata = cells()
    pd.Series(GENES).to_csv(tmp_path / "gene_names.csv", index=False, header=False)
    before = adata.copy()
    write_vcc(adata, tmp_path / "new" / "mine.vcc", genes=tmp_path / "gene_names.csv")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mine.vcc"]
    found = unpacked(tmp_path / "new" / "mine.vcc", tmp_path)
    assert list(found.var_names) == GENES
    assert list(found.obs.columns) == ["target_gene"]
    assert list(found.obs["target_gene"]) == ["non-targeting"] * 20 + ["GENE3", "GENE5"] * 20
    assert isinstance(found.X, sp.csr_matrix)
    assert found.X.dtype == np.float32
    np.testing.assert_array_equal(found.X.toarray(), adata[:, GENES].X.astype(np.float32))
    np.testing.assert_array_equal(adata.X, before.X)
    pd.testing.assert_frame_equal(adata.obs, before.obs)


@needs_programs
@pytest.mark.slow
def test_counts_are_normalised_and_a_file_is_replaced_when_allowed(tmp_path: Path) -> None:
    target = tmp_path / "mine.vcc"
    target.write_text("older")
    adata = cells(counts=True)
    write_vcc(adata, target, genes=GENES, overwrite=True)
    found = unpacked(target, tmp_path)
    depth = adata.X.sum(axis=1)
    expected = np.log1p(adata[:, GENES].X / depth[:, None] * np.median(depth))
    np.testing.assert_allclose(found.X.toarray(), expected, rtol=1e-5)


@needs_programs
@pytest.mark.slow
def test_a_program_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # cell-eval takes no notice of it and packs what is there.
    broken = tmp_path / "bin" / "zstd"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 70\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(broken.parent), prepend=":")
    with pytest.raises(DataError, match="prep failed"):
        write_vcc(cells(), tmp_path / "new" / "mine.vcc", genes=GENES)
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def relabelled(change: dict[str, Any]) -> ad.AnnData:
    adata = cells()
    labels = adata.obs["perturbation"].astype(object)
    adata.obs["perturbation"] = labels.map(lambda label: change.get(label, label))
    return adata


def with_value(value: float) -> ad.AnnData:
    adata = cells()
    adata.X[3, 4] = value
    return adata


def too_many() -> ad.AnnData:
    obs = pd.DataFrame({"perturbation": ["ctrl"] * 200_001}, index=np.arange(200_001).astype(str))
    return ad.AnnData(sp.csr_matrix((200_001, 2), dtype=np.float32), obs=obs)


@pytest.mark.parametrize(
    ("make", "options", "error", "match"),
    [
        (cells, {"pert_key": "gene"}, MissingKeyError, "'perturbation', 'note'"),
        (lambda: relabelled({"GENE3+ctrl": None}), {}, DataError, "20 cells have no perturbation or control label"),
        (
            lambda: relabelled({"GENE3+ctrl": "GENE3+GENE5"}),
            {},
            DataError,
            "one perturbed gene per cell, as in the challenge; found GENE3",
        ),
        (lambda: relabelled({"ctrl": "GENE7"}), {}, DataError, "control"),
        (cells, {"control": "NT"}, OptionError, "NT"),
        (cells, {"genes": [*GENES, "MORE"]}, DataError, "1 are missing, such as MORE"),
        (cells, {"genes": GENES[1:]}, DataError, "1 are not in the list, such as GENE0"),
        (cells, {"genes": [*GENES, "GENE0"]}, DataError, "genes contains 'GENE0' more than once"),
        (cells, {"genes": "nowhere.csv"}, OptionError, "'nowhere.csv' is not a file"),
        (lambda: with_value(-1), {}, DataError, "1 negative values"),
        (lambda: with_value(np.nan), {}, DataError, "1 NaN"),
        (lambda: with_value(15), {}, DataError, "values up to 15"),
        (too_many, {}, DataError, "200,001 cells"),
        (cells, {"layer": "counts"}, MissingKeyError, "counts"),
        (cells, {"path": "mine.h5ad"}, OptionError, r"ends in \.vcc"),
        (cells, {"path": "taken.vcc"}, OptionError, "overwrite=True"),
        (cells, {"path": "folder.vcc"}, OptionError, "is a folder"),
        (cells, {"path": "taken.vcc/mine.vcc"}, OptionError, "is a file"),
    ],
)
def test_bad_input_fails_before_anything_is_written(
    make: Callable[[], ad.AnnData], options: dict[str, Any], error: type[Exception], match: str, tmp_path: Path
) -> None:
    (tmp_path / "taken.vcc").write_text("older")
    (tmp_path / "folder.vcc").mkdir()
    path = tmp_path / options.pop("path", "new/mine.vcc")
    with pytest.raises(error, match=match):
        write_vcc(make(), path, **options)
    assert sorted(found.name for found in tmp_path.rglob("*")) == ["folder.vcc", "taken.vcc"]
    assert (tmp_path / "taken.vcc").read_text() == "older"


def test_missing_programs_are_named_with_their_cures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "cell_eval", None)
    with pytest.raises(OptionError) as caught:
        write_vcc(cells(), tmp_path / "mine.vcc")
    message = str(caught.value)
    for part in ("cell-eval", 'pip install "scgalore[eval]"', "zstd and tar", "apt install zstd tar"):
        assert re.search(re.escape(part), message)
    assert list(tmp_path.iterdir()) == []
