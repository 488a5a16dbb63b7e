"""The real annbatch, which needs Python 3.12: ``pip install "annbatch[torch,numba]"``."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from tests.data.test_loaders import KINDS, NAMES, VOCAB, tokens_of

import scgalore as sg
from scgalore.data.tokens import TokenizerConfig

if TYPE_CHECKING:
    from pathlib import Path

annbatch = pytest.importorskip("annbatch", reason="annbatch needs Python 3.12")
pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG = TokenizerConfig(n_bins=5, max_length=9)
COUNTS = np.random.default_rng(0).poisson(0.8, (70, 25)).astype(np.float32)
COUNTS[:, 0] += 1


@pytest.fixture(scope="module")
def adata() -> AnnData:
    obs = pd.DataFrame({"kind": pd.Categorical(KINDS)}, index=[f"c{n}" for n in range(70)])
    return AnnData(sp.csr_matrix(COUNTS), obs=obs, var=pd.DataFrame(index=NAMES))


@pytest.fixture(scope="module")
def collection(adata: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("annbatch")
    paths: list[Path] = []
    for number, rows in enumerate((slice(0, 40), slice(40, 70))):
        paths.append(folder / f"{number}.h5ad")
        adata[rows].copy().write_h5ad(paths[-1])
    made = annbatch.DatasetCollection(folder / "collection.zarr")
    return made.add_adatas(paths, shuffle=True, rng=np.random.default_rng(0))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("to", [None, "torch"])
def test_cells_of_a_collection_are_those_of_the_files(
    adata: AnnData, collection: Any, shuffle: bool, to: str | None
) -> None:
    options = {"to": to} if to else {}
    loader = annbatch.Loader(batch_size=16, chunk_size=8, preload_nchunks=4, shuffle=shuffle, **options)
    loader.use_collection(collection)
    stream = sg.data.stream(
        loader, VOCAB, config=CONFIG, batch_size=7, buffer_size=30, labels_key="kind", classes=["b", "a"]
    )
    assert stream.n_obs == 70
    assert len(stream) == 10
    for epoch in range(2):
        batches = list(stream.batches(epoch))
        assert [len(batch) for batch in batches] == [7] * 10
        alone = tokens_of(sg.data.stream(adata, VOCAB, config=CONFIG, layer=None).batches(epoch))
        # The collection has its own numbers for cells.
        assert sorted(tokens_of(batches).values()) == sorted(alone.values())
    of_labels = np.bincount(np.concatenate([batch.targets["labels"] for batch in batches]))
    assert of_labels.tolist() == [(KINDS == "b").sum(), (KINDS == "a").sum()]
