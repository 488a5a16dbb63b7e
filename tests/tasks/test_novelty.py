from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from safetensors.numpy import load, save
from sklearn.metrics import roc_auc_score

from scgalore.model import SCGPT
from scgalore.tasks.novelty import Novelty

N_GENES, N_TYPES = 60, 4


def blood(n_obs: int, *, seed: int, depth: float = 300.0) -> AnnData:
    """Counts of cells of four types, each with ten genes of its own; the last type is for the query."""
    rng = np.random.default_rng(seed)
    types = rng.integers(N_TYPES, size=n_obs)
    rates = np.ones((N_TYPES, N_GENES))
    for number in range(N_TYPES):
        rates[number, number * 10 : number * 10 + 10] = 6
    mean = rates[types] / rates[types].sum(axis=1, keepdims=True) * depth
    adata = AnnData(
        sp.csr_matrix(rng.poisson(mean).astype(np.float32)),
        obs=pd.DataFrame({"type": types.astype(str)}, index=[f"C{i}" for i in range(n_obs)]),
    )
    adata.var_names = [f"G{i:02}" for i in range(N_GENES)]
    return adata


@pytest.fixture
def model(make_model: Callable[..., SCGPT]) -> SCGPT:
    return make_model([f"G{i:02}" for i in range(N_GENES)])


@pytest.fixture
def fitted(model: SCGPT) -> Novelty:
    adata = blood(300, seed=0)
    codes = adata.obs["type"].astype(int).to_numpy()
    found = Novelty.fit(model.cells(adata), np.flatnonzero(codes < 3), codes)
    assert found is not None
    return found


def test_new_type_is_further_than_other_cells_of_known_types(model: SCGPT, fitted: Novelty) -> None:
    query = blood(200, seed=1)
    values = fitted.of(model.cells(query))
    new = (query.obs["type"] == "3").to_numpy()
    assert values.dtype == np.float32
    assert roc_auc_score(new, values) > 0.9
    assert np.median(values[~new]) == pytest.approx(1, abs=0.5)


def test_cells_left_out_of_the_rows_are_not_learned(model: SCGPT, fitted: Novelty) -> None:
    adata = blood(300, seed=0)
    codes = adata.obs["type"].astype(int).to_numpy()
    adata.X[codes == 3] = adata.X[codes == 3] * 100  # what the cells that are no training cells hold does not matter
    again = Novelty.fit(model.cells(adata), np.flatnonzero(codes < 3), codes)
    for one in fields(Novelty):
        np.testing.assert_array_equal(getattr(again, one.name), getattr(fitted, one.name))


@pytest.mark.parametrize("total", [1e4, 1e3])
def test_counts_and_their_logarithms_are_the_same_cells(model: SCGPT, fitted: Novelty, total: float) -> None:
    query = blood(60, seed=2)
    logged = query.copy()
    x = query.X.toarray()
    logged.X = sp.csr_matrix(np.log1p(x / x.sum(axis=1, keepdims=True) * total).astype(np.float32))
    np.testing.assert_allclose(fitted.of(model.cells(logged)), fitted.of(model.cells(query)), rtol=1e-3)


@pytest.mark.parametrize("base", [2.0, 10.0])
def test_base_of_logarithms_is_respected(model: SCGPT, fitted: Novelty, base: float) -> None:
    query = blood(60, seed=2)
    logged, x = query.copy(), query.X.toarray()
    natural = np.log1p(x / x.sum(axis=1, keepdims=True) * 1e4)
    logged.X = sp.csr_matrix((natural / np.log(base)).astype(np.float32))
    logged.uns["log1p"] = {"base": base}
    np.testing.assert_allclose(fitted.of(model.cells(logged)), fitted.of(model.cells(query)), rtol=2e-3)


def test_what_was_said_of_the_matrix_is_respected(model: SCGPT, fitted: Novelty) -> None:
    query = blood(60, seed=2)
    scaled = query.copy()
    scaled.X = query.X * np.float32(0.013)  # counts after a correction, small enough to be taken for logarithms
    found = fitted.of(model.cells(scaled, data_type="counts"))
    np.testing.assert_allclose(found, fitted.of(model.cells(query)), rtol=1e-3)


@pytest.mark.parametrize("form", ["dense", "csc", "reordered", "more genes", "rows", "symbols"])
def test_form_of_the_query_changes_nothing(model: SCGPT, fitted: Novelty, form: str) -> None:
    query = blood(50, seed=3)
    expected = fitted.of(model.cells(query))
    other, rows = query.copy(), None
    read: dict[str, Any] = {}
    if form == "dense":
        other.X = query.X.toarray()
    elif form == "csc":
        other.X = query.X.tocsc()
    elif form == "reordered":
        other = query[:, np.random.default_rng(0).permutation(N_GENES)].copy()
    elif form == "more genes":
        more = sp.hstack([query.X, sp.csr_matrix(np.full((50, 5), 7.0))]).tocsr()
        other = AnnData(
            more, obs=query.obs, var=pd.DataFrame(index=[*query.var_names, *(f"unheard-of-{i}" for i in range(5))])
        )
    elif form == "rows":
        rows = np.array([7, 3, 3, 40])
        expected = expected[rows]
    else:
        other.var = pd.DataFrame({"symbol": query.var_names}, index=[str(i) for i in range(N_GENES)])
        read = {"gene_symbols": "symbol"}
    np.testing.assert_allclose(np.asarray(fitted.of(model.cells(other, **read), rows)), np.asarray(expected), rtol=1e-5)


def test_genes_that_are_not_measured_make_no_cell_new(model: SCGPT, fitted: Novelty) -> None:
    query = blood(300, seed=4)
    known = query[query.obs["type"] != "3"]
    limit = np.quantile(fitted.of(model.cells(known)), 0.95)
    fewer = known[:, np.arange(N_GENES) % 4 != 0].copy()
    assert 0.6 < fitted.present(model.cells(fewer)) < 0.9
    assert (fitted.of(model.cells(fewer)) > limit).mean() < 0.1
    assert fitted.present(model.cells(known)) == pytest.approx(1)


def test_many_genes_and_cells_are_bounded(make_model: Callable[..., SCGPT], monkeypatch: pytest.MonkeyPatch) -> None:
    from scgalore.tasks import novelty

    monkeypatch.setattr(novelty, "N_GENES", 25)
    monkeypatch.setattr(novelty, "MOST_CELLS", 100)
    adata = blood(300, seed=0)
    codes = adata.obs["type"].astype(int).to_numpy()
    cells = make_model(adata.var_names).cells(adata)
    found = Novelty.fit(cells, np.flatnonzero(codes < 3), codes)
    assert found is not None
    assert found.components.shape[1] == len(found.compared) == 25
    assert roc_auc_score(codes == 3, found.of(cells)) > 0.6


@pytest.mark.parametrize("n", [0, 1, 10, 22])
def test_few_cells_say_nothing(model: SCGPT, n: int) -> None:
    adata = blood(300, seed=0)
    codes = adata.obs["type"].astype(int).to_numpy()
    rows = np.concatenate([np.flatnonzero(codes == code)[: -(-n // 3)] for code in range(3)])[:n]
    assert Novelty.fit(model.cells(adata), rows, codes) is None


def test_a_class_of_one_cell_and_a_constant_gene_give_finite_numbers(model: SCGPT) -> None:
    adata = blood(120, seed=0)
    x = adata.X.toarray()
    x[:, 5] = 0
    adata.X = sp.csr_matrix(x)
    codes = adata.obs["type"].astype(int).to_numpy()
    rows = np.flatnonzero(codes < 2)
    rows = np.append(rows, np.flatnonzero(codes == 3)[0])
    found = Novelty.fit(model.cells(adata), rows, codes)
    assert found is not None
    assert 5 not in found.compared
    assert np.isfinite(found.of(model.cells(adata))).all()


def test_bytes_are_the_same_statistics(model: SCGPT, fitted: Novelty) -> None:
    again, cells = Novelty.from_bytes(fitted.to_bytes()), model.cells(blood(20, seed=5))
    np.testing.assert_array_equal(again.of(cells), fitted.of(cells))


def test_damaged_bytes_are_refused(fitted: Novelty) -> None:
    content = fitted.to_bytes()
    arrays = load(content)
    for damaged in (
        content[:-10],
        b"",
        save({name: array for name, array in arrays.items() if name != "scale"}),
        save({**arrays, "std": arrays["std"][:-1]}),
        save({**arrays, "mean": np.full_like(arrays["mean"], np.nan)}),
        save({**arrays, "compared": arrays["compared"] + N_GENES}),
    ):
        with pytest.raises(ValueError, match=r"inconsistent or not finite|statistics"):
            Novelty.from_bytes(damaged)
