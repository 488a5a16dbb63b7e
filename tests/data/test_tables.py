from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from anndata.io import write_elem
from tests.data.test_finding import SYMBOLS, counts, keyed, logs, plain, streamed

from scgalore.data.sources import Source
from scgalore.errors import MissingKeyError


@pytest.mark.parametrize("suffix", [None, ".h5ad", ".zarr"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_columns_are_read_one_by_one(tmp_path: Path, suffix: str | None) -> None:
    adata = AnnData(np.ones((3, 2)), obs=pd.DataFrame({"a": [1, 2, 3], "b": ["x", None, "y"]}, index=["p", "q", "r"]))
    adata.obs["b"] = adata.obs["b"].astype("category")
    what: Any = adata
    if suffix:
        what = tmp_path / f"cells{suffix}"
        (adata.write_h5ad if suffix == ".h5ad" else adata.write_zarr)(what)
    place = Source.of(what, 0).place()
    try:
        assert place.obs.columns == ("a", "b")
        assert place.obs.index().tolist() == ["p", "q", "r"]
        assert place.obs.column("a").tolist() == [1, 2, 3]
        assert place.obs.column("b").isna().tolist() == [False, True, False]
        pd.testing.assert_frame_equal(place.obs.frame(), adata.obs, check_categorical=False)
        with pytest.raises(MissingKeyError, match=r"no column 'c' in obs; it has \['a', 'b'\]"):
            place.obs.column("c")
    finally:
        place.close()


# Old files --------------------------------------------------------------------------------------------------------


def records(frame: pd.DataFrame) -> Any:
    """A table as anndata wrote it before version 0.7: one data set of records, in which texts have a fixed length."""
    columns = {"index": frame.index.to_numpy().astype("S20"), **{key: frame[key].to_numpy() for key in frame}}
    kinds = [(key, "S20" if values.dtype == object else values.dtype) for key, values in columns.items()]
    return np.array(list(zip(*columns.values(), strict=True)), dtype=kinds)


def write_old(path: Path) -> None:
    x = counts()
    with h5py.File(path, "w") as file:
        for slot, values in (("X", logs(x)), ("raw.X", x)):
            group = file.create_group(slot)
            for part in ("data", "indices", "indptr"):
                group[part] = getattr(values, part)
            group.attrs["h5sparse_format"], group.attrs["h5sparse_shape"] = "csr", values.shape
        obs = pd.DataFrame(index=[f"cell{n}" for n in range(30)])
        obs["tissue"] = np.arange(30, dtype=np.int8) % 2
        obs["n_genes"] = np.arange(30)
        obs["batch"] = [f"b{n % 3}" for n in range(30)]
        file["obs"] = records(obs)
        for slot in ("var", "raw.var"):
            file[slot] = records(pd.DataFrame({"n_cells": np.arange(6)}, index=SYMBOLS))
        write_elem(file, "uns", {})
        file["uns/tissue_categories"] = np.array([b"lung", b"liver"])


def test_files_of_the_oldest_versions_are_read(tmp_path: Path) -> None:
    write_old(tmp_path / "old.h5ad")
    assert keyed(streamed(tmp_path / "old.h5ad")) == plain(counts())
    stream = streamed(tmp_path / "old.h5ad", where="tissue == 'liver' and n_genes > 9", labels_key="batch", layer=None)
    assert stream.classes == ("b0", "b1", "b2")
    for batch in stream:
        rows = batch.cells.numpy()
        assert ((rows % 2 == 1) & (rows > 9)).all()
        assert batch.targets["labels"].tolist() == (rows % 3).tolist()
    assert stream.n_obs == 10
