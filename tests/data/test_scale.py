"""What values are taken for: counts, logarithms and their base, and what is neither."""

import math
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from hypothesis import assume, given
from hypothesis import strategies as st

from scgalore.data.matrix import CellMatrix
from scgalore.data.scale import Scale, recorded_base, scale_of, to_log1p
from scgalore.errors import DataError

N_OBS, N_VARS = 120, 60


def panel(seed: int = 0, n_obs: int = N_OBS, n_vars: int = N_VARS) -> np.ndarray:
    """Counts of a shallow panel: cells of different depth, genes of different means, nothing above 13."""
    rng = np.random.default_rng(seed)
    depth, mean = rng.lognormal(0, 0.5, (n_obs, 1)), rng.gamma(0.5, 1.2, n_vars)
    x = np.minimum(rng.poisson(depth * mean), 13).astype(np.float64)
    x[np.arange(n_obs), rng.integers(n_vars, size=n_obs)] += 1  # no cell is empty
    return np.minimum(x, 13)


def ambient(x: np.ndarray, seed: int = 0) -> np.ndarray:
    """Counts that a method for ambient RNA has made smaller, each by another factor."""
    return x * np.random.default_rng(seed).uniform(0.6, 1, x.shape)


def logs(x: np.ndarray, target_sum: float | None = 1e4, base: float | None = None) -> np.ndarray:
    adata = ad.AnnData(x.astype(np.float32))
    sc.pp.normalize_total(adata, target_sum=target_sum)
    sc.pp.log1p(adata, base=base)
    return np.asarray(adata.X)


def found(x: Any, **options: Any) -> Scale:
    return scale_of(CellMatrix.from_adata(ad.AnnData(x)), **options)


# Counts -------------------------------------------------------------------------------------------------------------------


@given(factor=st.floats(1e-4, 1e4), seed=st.integers(0, 5), per_cell=st.booleans())
def test_counts_times_any_factor_are_counts(factor: float, seed: int, per_cell: bool) -> None:
    x = panel(seed) * factor
    if per_cell:
        x *= np.random.default_rng(seed).uniform(0.3, 3, (N_OBS, 1))
    scale = found(x)
    assert scale.kind == "counts"
    assert scale.sure


@pytest.mark.parametrize("factor", [math.log(2), math.log(3), math.log(4)])
def test_counts_whose_exponentials_are_multiples_too(factor: float) -> None:
    assert found(panel() * factor).kind == "counts"


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32, bool])
def test_whole_values_are_counts_whatever_their_type(dtype: type) -> None:
    assert found(sp.csr_matrix(panel().astype(dtype))) == Scale("counts", "all values are integers", one_count=1.0)


def test_counts_with_ambient_rna_taken_out_of_each_value() -> None:
    x = ambient(panel())
    assert x.max() < 13.8
    assert found(x).kind == "counts"


def test_expected_counts() -> None:
    """Reads of several genes are shared out, as alevin, kallisto and RSEM do; most counts stay whole."""
    x, rng = panel(), np.random.default_rng(1)
    for cell in range(N_OBS):
        first, second = rng.integers(N_VARS, size=(2, 10))
        moved = rng.uniform(0, 1, 10) * np.minimum(x[cell, first], 1)
        np.subtract.at(x[cell], first, moved)
        np.add.at(x[cell], second, moved)
    scale = found(np.maximum(x, 0))
    assert scale.kind == "counts"
    assert "integers" in scale.reason


def test_values_that_no_logarithm_reaches() -> None:
    scale = found(ambient(panel() * 9, seed=3))
    assert scale.kind == "counts"
    assert "13.8" in scale.reason


@pytest.mark.parametrize("target_sum", [1.0, 1e4, 1e6])
@pytest.mark.parametrize("corrected", [False, True])
def test_normalised_counts_without_logarithm_are_counts(target_sum: float, corrected: bool) -> None:
    x = ambient(panel()) if corrected else panel()
    scale = found(x / x.sum(axis=1, keepdims=True) * target_sum)
    assert scale.kind == "counts"
    assert scale.normalised


# Logarithms ---------------------------------------------------------------------------------------------------------------


@given(
    target_sum=st.floats(10, 1e6),
    base=st.sampled_from([None, 2.0, 10.0]),
    corrected=st.booleans(),
    seed=st.integers(0, 5),
)
def test_logarithms_of_normalised_counts(target_sum: float, base: float | None, corrected: bool, seed: int) -> None:
    x = ambient(panel(seed), seed) if corrected else panel(seed)
    scale = found(logs(x, target_sum, base))
    assert (scale.kind, scale.base, scale.sure) == ("log1p", base or math.e, True)


@given(n_genes=st.integers(8, 40), base=st.sampled_from([None, 2.0, 10.0]), seed=st.integers(0, 5))
def test_logarithms_that_were_cut_to_some_genes(n_genes: int, base: float | None, seed: int) -> None:
    x = logs(panel(seed), 1e4, base)[:, :n_genes]
    assume((x > 0).any(axis=1).sum() > 60)
    scale = found(x)
    assert (scale.kind, scale.base) == ("log1p", base or math.e)


@given(base=st.floats(1.5, 20))
def test_any_base_that_was_recorded(base: float) -> None:
    scale = found(logs(panel(), 1e4, base), uns={"log1p": {"base": base}})
    assert (scale.kind, scale.base, scale.doubt) == ("log1p", base, "")


def test_logarithms_of_counts_that_were_not_normalised() -> None:
    for base in (math.e, 2.0):
        scale = found(np.log1p(panel()) / math.log(base))
        assert (scale.kind, scale.base) == ("log1p", base)


def test_logarithms_of_corrected_counts_that_were_cut_keep_the_recorded_base() -> None:
    x = logs(ambient(panel()), 1e4, 2)[:, ::3]
    assert found(x, uns={"log1p": {"base": 2}}).base == 2
    assert found(x).kind == "log1p"


def test_a_record_of_another_base_is_doubted() -> None:
    scale = found(logs(panel(), 1e4, 2), uns={"log1p": {"base": None}})
    assert scale.base == 2
    assert "adata.uns['log1p']" in scale.doubt


def test_counts_where_logarithms_are_recorded_are_doubted() -> None:
    assert "adata.uns['log1p']" in found(panel() * 0.97, uns={"log1p": {}}).doubt
    assert not found(panel() * 0.97, uns={"log1p": {}}, layer="corrected").doubt


# Neither, and no sign -----------------------------------------------------------------------------------------------------


def test_square_roots_are_refused() -> None:
    for x in (panel(), ambient(panel())):
        with pytest.raises(DataError, match="square roots.*layer=.*data_type="):
            found(np.sqrt(x / x.sum(axis=1, keepdims=True) * 1e4))


def test_normalised_again_after_the_logarithm_is_refused() -> None:
    x = logs(panel())
    with pytest.raises(DataError, match="not multiples"):
        found(x / x.sum(axis=1, keepdims=True) * 1e4)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        ("counts", "counts"),
        ("raw_counts", "counts"),
        ("soupX", "counts"),
        ("decontXcounts", "counts"),
        ("log1p", "log1p"),
        ("logcounts", "log1p"),
        ("lognorm", "log1p"),
        ("data", "log1p"),
    ],
)
def test_the_name_of_a_layer_decides_where_values_do_not(layer: str, kind: str) -> None:
    x = np.random.default_rng(0).uniform(0.5, 3, (10, 6))
    assert found(x, layer=layer).kind == kind
    assert not found(x).sure


def test_values_are_stronger_than_the_name_of_a_layer() -> None:
    assert found(logs(panel()), layer="counts").kind == "log1p"
    assert found(panel() * 0.97, layer="log1p").kind == "counts"


# What was said ------------------------------------------------------------------------------------------------------------


def test_what_was_said_overrides_the_values() -> None:
    assert found(panel() * 0.97, data_type="log1p").kind == "log1p"
    assert found(logs(panel()), data_type="counts").kind == "counts"
    assert found(panel(), data_type="log1p").kind == "log1p"
    assert found(np.sqrt(panel()), data_type="log1p").kind == "log1p"


def test_what_was_said_against_the_values_is_doubted() -> None:
    assert "logarithms" in found(logs(panel()), data_type="counts").doubt
    assert "counts" in found(panel(), data_type="log1p").doubt
    assert not found(logs(panel()), data_type="log1p").doubt
    assert not found(panel() * 0.97, data_type="counts").doubt


def test_what_was_said_has_the_base_of_the_values() -> None:
    assert found(logs(panel(), 1e4, 2), data_type="log1p").base == 2
    assert found(np.sqrt(panel()), uns={"log1p": {"base": 10}}, data_type="log1p").base == 10


def test_counts_are_no_logarithms_even_if_that_was_said() -> None:
    with pytest.raises(DataError, match="data_type='log1p'.*500.*data_type='counts'"):
        found(np.array([[500.0, 0], [1, 2]]), data_type="log1p")


# The record ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        None,
        True,
        {},
        {"base": None},
        [],
        [1, 2],
        np.array([1.0, 2.0]),
        "yes",
        {"base": "None"},
        {"base": np.array([])},
        3.5,
    ],
    ids=repr,
)
def test_records_of_natural_logarithms(record: Any) -> None:
    assert recorded_base({"log1p": record}) == math.e


@pytest.mark.parametrize("base", [2, 2.0, np.float32(2), np.array(2.0), np.array([2]), "2", [2]], ids=repr)
def test_records_of_a_base(base: Any) -> None:
    assert recorded_base({"log1p": {"base": base}}) == 2


@pytest.mark.parametrize("base", [0, 1, -2, math.inf, "two", [2, 10], {"of": 2}], ids=repr)
def test_a_base_that_is_none_is_refused(base: Any) -> None:
    with pytest.raises(DataError, match=r"adata\.uns\['log1p'\] records base="):
        recorded_base({"log1p": {"base": base}})


@pytest.mark.parametrize("base", [None, 2.0, 10.0])
def test_the_record_survives_a_file(base: float | None, tmp_path: Path) -> None:
    adata = ad.AnnData(panel())
    sc.pp.log1p(adata, base=base)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    read = recorded_base(ad.read_h5ad(tmp_path / "cells.h5ad").uns)
    assert read == recorded_base(adata.uns) == recorded_base({"log1p": to_log1p(read or 0)}) == (base or math.e)


def test_without_a_record() -> None:
    assert recorded_base({}) is None


# Real cells ---------------------------------------------------------------------------------------------------------------


def test_scanpys_blood_cells_are_logarithms() -> None:
    pbmc = sc.datasets.pbmc68k_reduced()
    scale = found(pbmc.raw.X)
    assert (scale.kind, scale.base, scale.sure) == ("log1p", math.e, True)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("citeseq_500cells_citefuse", "counts"),
        ("kang18_pbmc_ifnb_9015genes", "counts"),
        ("kang18_pbmc_ifnb_muscat", "counts"),
        ("mouse_brain_1000cells", "counts"),
        ("pbmc_10k_protein_v3_200cells", "counts"),
        ("pbmc_3assays_symphony", "log1p"),
        ("perturbench_devel", "log1p"),
        ("hesc_chen_385cells", "log1p"),
    ],
)
def test_real_data(name: str, kind: str, shared_data: Path) -> None:
    x = ad.read_h5ad(shared_data / f"{name}.h5ad").X
    assert found(x).kind == kind
    if kind == "counts":
        x = sp.csr_matrix(x, dtype=np.float64)
        x = x[np.flatnonzero(np.asarray(x.sum(axis=1)).ravel() > 0)[:300]]
        noisy = x.copy()
        noisy.data *= np.random.default_rng(0).uniform(0.6, 1, x.nnz)
        shallow = noisy[:, np.asarray(x.max(axis=0).todense()).ravel() < 14]
        shallow = shallow[np.flatnonzero(np.asarray(shallow.sum(axis=1)).ravel() > 0)]
        for fractional in (x * 0.97, noisy, shallow):
            assert found(fractional).kind == "counts"
        for counts in (x, noisy):
            logged = sp.csr_matrix(logs(counts.toarray()))
            assert found(logged).kind == found(logged[:, ::4]).kind == "log1p"
