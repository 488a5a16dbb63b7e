from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from scgalore.data.reading import Reading
from scgalore.data.sources import OpenSources, Source
from scgalore.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2")


CLOSED = (OSError, RuntimeError, ValueError)  # how h5py says it, by what was asked for


def made() -> AnnData:
    adata = AnnData(sp.csr_matrix(np.arange(12, dtype=np.float32).reshape(4, 3)))
    adata.var_names = ["b", "c", "a"]
    adata.var["symbol"] = pd.Categorical(["B", "C", None])
    adata.obs["kind"] = pd.Categorical(["x", "y", "x", "y"])
    adata.obs["depth"] = [1, 2, 3, 4]
    return adata


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
class TestFiles:
    def write(self, adata: AnnData, path: Path) -> Path:
        (adata.write_h5ad if path.suffix == ".h5ad" else adata.write_zarr)(path)
        return path

    def test_only_what_is_asked_for_is_there(self, tmp_path: Path, suffix: str) -> None:
        path = self.write(made(), tmp_path / f"the{suffix}")
        opened = Source.of(path, 0, reading=Reading(gene_symbols="symbol")).open()
        np.testing.assert_array_equal(opened.matrix.rows([3, 1]).toarray(), made().X[[3, 1]].toarray())
        assert opened.obs.column("depth").tolist() == [1, 2, 3, 4]
        assert opened.genes() == ["B", "C", "nan"]
        opened.close()
        assert Source.of(path, 0).open().genes() == ["b", "c", "a"]

    def test_columns_are_refused_with_the_way_out(self, tmp_path: Path, suffix: str) -> None:
        adata = made()
        adata.X = adata.X.tocsc()
        path = self.write(adata, tmp_path / f"the{suffix}")
        with pytest.raises(DataError, match=r"the\..* by columns \(CSC\).*tocsr\(\)"):
            Source.of(path, 0).open()

    def test_no_matrix(self, tmp_path: Path, suffix: str) -> None:
        path = self.write(AnnData(obs=made().obs, layers={"counts": made().X}), tmp_path / f"the{suffix}")
        with pytest.raises(KeyError, match=r"no X; it has the layers \['counts'\]"):
            Source.of(path, 0).open()
        assert Source.of(path, 0, reading=Reading("counts")).open().matrix.n_obs == 4

    def test_words_are_no_expression(self, tmp_path: Path, suffix: str) -> None:
        adata = made()
        adata.layers["words"] = np.full((4, 3), "word")
        path = self.write(adata, tmp_path / f"the{suffix}")
        with pytest.raises(DataError, match="layer 'words' of .* expected numbers"):
            Source.of(path, 0, reading=Reading("words")).open()


def test_backed_columns_are_refused(tmp_path: Path) -> None:
    adata = made()
    adata.X = adata.X.tocsc()
    adata.write_h5ad(tmp_path / "the.h5ad")
    with pytest.raises(DataError, match="AnnData number 7 stores"):
        Source.of(ad.read_h5ad(tmp_path / "the.h5ad", backed="r"), 7).open()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing.h5ad", "missing.h5ad does not exist"),
        ("missing.zarr", "missing.zarr does not exist"),
        ("table.csv", "neither an .h5ad file nor a .zarr folder"),
    ],
)
def test_paths_that_are_none(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        Source.of(tmp_path / name, 0)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_files_of_another_kind(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"broken{suffix}"
    if suffix == ".zarr":
        path.mkdir()
    else:
        path.write_text("not HDF5")
    with pytest.raises(DataError, match=f"broken{suffix} cannot be opened"):
        Source.of(path, 0).open()


@pytest.mark.filterwarnings("ignore:Element")
def test_a_file_of_an_older_format(tmp_path: Path) -> None:
    # Before anndata 0.8, categories lay beside the columns, which referred to them.
    path = tmp_path / "old.h5ad"
    made().write_h5ad(path)
    with h5py.File(path, "a") as file:
        del file["obs/kind"]
        file["obs/kind"] = np.array([1, 0, 1, 1], dtype=np.int8)
        categories = file.create_dataset("obs/__categories/kind", data=["p", "q"], dtype=h5py.string_dtype())
        file["obs/kind"].attrs["categories"] = categories.ref
        file["obs"].attrs["encoding-version"] = "0.1.0"
        for name in ("encoding-type", "encoding-version"):
            for column in ("_index", "depth"):
                del file[f"obs/{column}"].attrs[name]
    labels = Source.of(path, 0).open().obs.column("kind")
    assert labels.astype(str).tolist() == ["q", "p", "q", "q"]


def test_the_source_read_last_is_the_one_that_is_open(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.h5ad" for number in range(3)]
    for path in paths:
        made().write_h5ad(path)
    with OpenSources([Source.of(path, 0) for path in paths]) as opened:
        first = opened[0]
        assert opened[0] is first
        opened[1]
        with pytest.raises(CLOSED):
            first.matrix.rows([0])
        again = opened[0]
        assert again.matrix.rows([0]).nnz > 0
    with pytest.raises(CLOSED):
        again.matrix.rows([0])
