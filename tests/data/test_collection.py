from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from scgalore.data.collection import Collection
from scgalore.errors import DataError, OptionError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.h5ad", "a.h5ad", "notes.txt", "d.h5ad.part"):
        (tmp_path / name).touch()
    (tmp_path / "c.zarr").mkdir()
    (tmp_path / "other").mkdir()
    return tmp_path


def test_a_folder_stands_for_its_files_in_order(folder: Path) -> None:
    found = Collection.of([folder, "x.h5ad"])
    assert [Path(path).name for path in found.sources] == ["a.h5ad", "b.h5ad", "c.zarr", "x.h5ad"]
    assert found.names == tuple(map(str, found.sources))
    assert Collection.of(str(folder)).sources == found.sources[:3]
    assert Collection.of(folder / "c.zarr").sources == (folder / "c.zarr",)


def test_named_groups(folder: Path) -> None:
    adata = AnnData(np.ones((1, 1)))
    found = Collection.of({"blood": folder, "pancreas": ["x.h5ad", adata], "lung": adata})
    assert found.names == ("blood", "pancreas", "lung")
    assert found.group_of == (0, 0, 0, 1, 1, 2)
    assert found.sources[4] is adata
    assert found.each("layer", {"blood": "counts", "lung": None}) == ["counts"] * 3 + [None] * 3
    assert found.each("layer", "raw") == ["raw"] * 6


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        (lambda folder: folder / "other", "other contains no .h5ad files or .zarr folders"),
        (lambda folder: [], "There are no sources"),
        (lambda folder: {}, "There are no sources"),
        (lambda folder: {"blood": "x.h5ad", "lung": []}, "source 'lung' has no files"),
    ],
    ids=["empty_folder", "no_list", "no_names", "no_files"],
)
def test_nothing_to_read(folder: Path, listed: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        Collection.of(listed(folder))


def test_options_of_sources_that_are_not_there() -> None:
    with pytest.raises(OptionError, match=r"where contains the unknown source 'lungs'; choose from \['lung'\]"):
        Collection.of({"lung": "x.h5ad"}).each("where", {"lungs": "a > 1"})
