"""Files that are cut off, replaced or gone while they are read."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from torch.utils.data import DataLoader

import scgalore as sg
from scgalore.data.fingerprint import changed_files, content_of
from scgalore.data.matrix import CellMatrix
from scgalore.data.streaming import TokenStream
from scgalore.data.tokens import TokenizerConfig
from scgalore.data.vocab import GeneVocab
from scgalore.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2")

GENES = [f"G{n}" for n in range(20)]
N_OBS = 400


def cells(seed: int, n_obs: int = N_OBS) -> AnnData:
    x = np.random.default_rng(seed).poisson(2.0, (n_obs, len(GENES))).astype(np.float32)
    x[:, 0] += 1
    return AnnData(sp.csr_matrix(x), var=pd.DataFrame(index=GENES))


def write(adata: AnnData, path: Path) -> Path:
    (adata.write_zarr if path.suffix == ".zarr" else adata.write_h5ad)(path)
    return path


@pytest.fixture(params=[".h5ad", ".zarr"])
def paths(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    return [write(cells(seed), tmp_path / f"file{seed}{request.param}") for seed in range(3)]


def streamed(paths: Any, **options: Any) -> TokenStream:
    small: dict[str, Any] = {"batch_size": 16, "block_size": 20, "buffer_size": 64, "config": TokenizerConfig(n_bins=5)}
    return sg.data.stream(paths, GeneVocab.from_genes(GENES), **{**small, **options})


def cut_off(path: Path) -> None:
    """Take away the second half of every file."""
    for file in [path] if path.is_file() else [file for file in (path / "X").rglob("*") if file.is_file()]:
        os.truncate(file, file.stat().st_size // 2)


def remove(path: Path) -> None:
    (path.unlink if path.is_file() else lambda: shutil.rmtree(path))()


def put_another(path: Path) -> None:
    """Put another file with the same cells and genes in its place, at once, as programs do that save."""
    other = write(cells(9), path.with_name(f"new{path.suffix}"))
    if path.is_dir():
        path.rename(path.with_name("old"))
    other.replace(path)


def write_into(path: Path) -> None:
    """Change values in place."""
    if path.suffix == ".h5ad":
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(b"\x01")
    else:
        import zarr

        group: Any = zarr.open_group(str(path), mode="a")
        group["X/data"][:] = 77


@pytest.mark.parametrize("harm", [cut_off, remove, put_another, write_into])
@pytest.mark.parametrize("number", [0, 2])
def test_an_epoch_does_not_go_on(paths: list[Path], harm: Callable[[Path], None], number: int) -> None:
    stream = streamed(paths)
    given = 0
    with pytest.raises(DataError, match=f"file{number}"):  # noqa: PT012
        for batch in stream:
            given += len(batch)
            if given == 160:
                harm(paths[number])
    assert 160 <= given <= 160 + 3 * 64  # what had been read ahead is given
    with pytest.raises(DataError, match=f"file{number}"):
        list(stream.batches(epoch=1))
    # A new stream reads whatever is there now, if it can be read.
    if harm in (put_another, write_into):
        assert sum(map(len, streamed(paths))) == 3 * N_OBS


@pytest.mark.parametrize("harm", [cut_off, remove, put_another])
def test_one_file_that_stays_open_is_watched_too(paths: list[Path], harm: Callable[[Path], None]) -> None:
    with pytest.raises(DataError, match="file0"):  # noqa: PT012
        for number, _ in enumerate(streamed(paths[0], shuffle=False)):
            if number == 3:
                harm(paths[0])


def test_workers_tell_it_as_well(paths: list[Path]) -> None:
    stream = streamed(paths)
    put_another(paths[1])
    with pytest.raises(DataError, match="file1"):
        list(DataLoader(stream, batch_size=None, num_workers=1))


def test_a_resumed_run_is_told_of_other_files(paths: list[Path]) -> None:
    before = streamed(paths).identity()
    assert streamed(paths).identity() == before
    assert streamed(paths, where={}).identity() == before
    put_another(paths[1])
    after = streamed(paths).identity()
    assert {name for name in before if before[name] != after[name]} == {"files", "files by name"}


def test_a_copy_elsewhere_is_the_same(paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    for path in paths:
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, tmp_path / "copies" / path.name)
    copies = [tmp_path / "copies" / path.name for path in paths]
    assert streamed(copies).identity()["files"] == streamed(paths).identity()["files"]


def test_content_does_not_hang_on_what_holds_it(tmp_path: Path) -> None:
    adata = cells(1, 7)
    dense = adata.copy()
    dense.X = dense.X.toarray().astype(np.float64)
    found = {content_of(CellMatrix.from_adata(one)) for one in (adata, dense, adata[:].copy())}
    assert len(found) == 1
    for change in (adata[:6], adata[:, :19], cells(2, 7)):
        assert content_of(CellMatrix.from_adata(change.copy())) not in found


class TestChangedFiles:
    BEFORE = (["/old/a.h5ad", "1"], ["/old/b.h5ad", "2"], ["/old/c.h5ad", "3"])

    @pytest.mark.parametrize(
        ("now", "told"),
        [
            ([["/new/a.h5ad", "9"], ["/new/b.h5ad", "2"], ["/new/c.h5ad", "3"]], "/new/a.h5ad has changed"),
            ([["/new/a.h5ad", "9"], ["/new/b.h5ad", "8"], ["x", "3"]], "/new/a.h5ad has changed (and 1 more)"),
            ([*BEFORE, ["/old/d.h5ad", "4"]], "/old/d.h5ad is new"),
            ([*BEFORE[:2]], "/old/c.h5ad is missing"),
            (
                [["/old/a.h5ad", "9"], ["d", "7"], ["/old/c.h5ad", "3"]],
                "/old/a.h5ad has changed, d is new, /old/b.h5ad is missing",
            ),
            ([*BEFORE[::-1]], "its files or their order have changed"),
        ],
    )
    def test_are_named_as_they_are_called_now(self, now: list[list[str]], told: str) -> None:
        assert changed_files(self.BEFORE, now) == told
