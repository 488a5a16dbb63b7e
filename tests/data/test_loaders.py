from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from torch.utils.data import DataLoader

import scgalore as sg
from scgalore.data.tokens import TokenizerConfig
from scgalore.data.vocab import GeneVocab
from scgalore.errors import DataError, MissingKeyError, OptionError

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")

VOCAB = GeneVocab.from_genes([f"G{i}" for i in range(30)])
NAMES = np.random.default_rng(1).permutation([f"G{i}" for i in range(25)])
COUNTS = np.random.default_rng(0).poisson(0.8, (70, 25)).astype(np.float32)
COUNTS[:, 0] += 1
KINDS = np.random.default_rng(2).choice(["a", "b"], 70)
ORDER = np.random.default_rng(3).permutation(70)


def to_torch(x: Any) -> torch.Tensor:
    indptr, indices, data = map(torch.from_numpy, (x.indptr, x.indices, x.data))
    return torch.sparse_csr_tensor(indptr, indices, data, size=x.shape)


FORMS: dict[str, Callable[[Any], Any]] = {
    "csr": lambda x: x,
    "dense": lambda x: x.toarray(),
    "torch_csr": to_torch,
    "torch_dense": lambda x: torch.from_numpy(x.toarray()),
}


class Loader:
    """What annbatch's ``Loader`` yields: dictionaries, here of 16 cells in an order of its own."""

    def __init__(self, form: str = "csr", *, obs: bool = True, index: bool = True, x: Any = COUNTS) -> None:
        self.var: pd.DataFrame | None = pd.DataFrame(index=NAMES)
        self.n_obs, self.form, self.obs, self.index = len(x), form, obs, index
        self.x = sp.csr_matrix(x)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, self.n_obs, 16):
            rows = ORDER[start : start + 16]
            yield {
                "X": FORMS[self.form](self.x[rows]),
                "obs": pd.DataFrame({"kind": KINDS[rows]}) if self.obs else None,
                "var": self.var,
                "index": rows if self.index else None,
            }


def streamed(loader: Any, **options: Any) -> Any:
    defaults = {"config": TokenizerConfig(n_bins=5, max_length=9), "batch_size": 7, "buffer_size": 30}
    return sg.data.stream(loader, VOCAB, **{**defaults, **options})


def tokens_of(batches: Any) -> dict[int, Any]:
    return {
        int(cell): (batch.genes[i][~batch.padding[i]].tolist(), batch.values[i][~batch.padding[i]].tolist())
        for batch in batches
        for i, cell in enumerate(batch.cells)
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shuffle", [True, False])
def test_cells_are_those_of_the_data(form: str, shuffle: bool) -> None:
    adata = AnnData(sp.csr_matrix(COUNTS))
    adata.var_names = NAMES
    stream = streamed(Loader(form), shuffle=shuffle)
    batches = list(stream)
    assert tokens_of(batches) == tokens_of(streamed(adata))
    assert [len(batch) for batch in batches] == [7] * 10
    assert len(stream) == len(batches)
    in_order = [cell for batch in batches for cell in batch.cells.tolist()] == ORDER.tolist()
    assert in_order is not shuffle


def test_what_the_loader_gave_is_left_alone() -> None:
    loader = Loader()
    held = [item["X"] for item in loader]
    for x in held:
        x.data[::3] = 0  # stored zeros, which tokens leave out
    before = [x.data.copy() for x in held]
    loader.__class__ = type("Held", (Loader,), {"__iter__": lambda self: iter([{"X": x} for x in held])})
    list(streamed(loader))
    for x, data in zip(held, before, strict=True):
        np.testing.assert_array_equal(x.data, data)


def test_labels_follow_their_cells() -> None:
    stream = streamed(Loader(), labels_key="kind", classes=["b", "a"])
    assert stream.classes == ("b", "a")
    for batch in stream:
        assert [stream.classes[code] for code in batch.targets["labels"]] == KINDS[batch.cells].tolist()


def test_labels_may_be_numbers() -> None:
    class Numbered(Loader):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            for item in super().__iter__():
                yield {**item, "obs": pd.DataFrame({"kind": (item["obs"]["kind"] == "b").astype(float)})}

    stream = streamed(Numbered(), labels_key="kind", classes=[0, 1])
    assert (stream.classes, stream.class_counts) == (("0", "1"), None)
    for batch in stream:
        assert batch.targets["labels"].tolist() == (KINDS[batch.cells] == "b").astype(int).tolist()


def test_cells_are_counted_where_the_loader_does_not_number_them() -> None:
    cells = [cell for batch in streamed(Loader(index=False), shuffle=False) for cell in batch.cells.tolist()]
    assert cells == list(range(70))


def spoilt() -> Any:
    x = COUNTS.copy()
    x[4, 0] = -1
    return Loader(x=x)


def nameless() -> Any:
    loader = Loader()
    loader.var = None
    return loader


@pytest.mark.parametrize(
    ("loader", "options", "error", "says"),
    [
        pytest.param(nameless, {}, DataError, "var is None", id="no_names"),
        pytest.param(Loader, {"labels_key": "kind"}, OptionError, "as classes=", id="no_classes"),
        pytest.param(Loader, {"layer": "counts"}, OptionError, "do not apply to a loader", id="layer"),
        pytest.param(spoilt, {}, DataError, r"the loader contains negative.*for example 4\)", id="negative"),
        pytest.param(Loader, {"rank": 0, "world_size": 2}, OptionError, "shared between ranks", id="ranks"),
        pytest.param(
            Loader,
            {"labels_key": "type", "classes": ["a", "b"]},
            MissingKeyError,
            r"'type'; it has \['kind'\]",
            id="column",
        ),
        pytest.param(
            lambda: Loader(obs=False),
            {"labels_key": "kind", "classes": ["a"]},
            MissingKeyError,
            r"it has \[\]",
            id="no_obs",
        ),
        pytest.param(
            Loader, {"labels_key": "kind", "classes": ["a"]}, DataError, r"labels \['b'\]", id="unknown_class"
        ),
    ],
)
def test_bad_input(loader: Callable[[], Any], options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        list(streamed(loader(), **options))


def test_workers_would_repeat_the_loader() -> None:
    with pytest.raises(OptionError, match="DataLoader workers"):
        list(DataLoader(streamed(Loader()), batch_size=None, num_workers=2))
