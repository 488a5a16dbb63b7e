"""Means and variances of perturbations, against a loop over them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from scgalore.data.expression import LogExpression
from scgalore.errors import DataError
from scgalore.perturb.labels.conditions import Conditions
from scgalore.perturb.labels.profiles import Profiles, row_label

GENES = [f"G{i}" for i in range(13)]
KINDS: dict[str, Callable[[np.ndarray], Any]] = {"dense": lambda x: x, "csr": sp.csr_matrix, "csc": sp.csc_matrix}
LABELS = ["ctrl", "G1+ctrl", "G2+G1", "ctrl+G1", "G1+G2", "NEW"]


def cells(n: int = 90, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-normalised values, labels with gaps, and cell lines; every line has control cells."""
    rng = np.random.default_rng(seed)
    x = np.log1p(rng.poisson(1.0, (n, len(GENES))) * rng.uniform(0.5, 3, (n, 1))).astype(np.float32)
    labels = rng.choice(np.array([*LABELS, None], dtype=object), n)
    lines = rng.choice(["b line", "a line"], n)
    labels[:4], lines[:4] = "ctrl", ["a line", "a line", "b line", "b line"]
    return x, labels, lines


def by_hand(
    x: np.ndarray, labels: np.ndarray, lines: np.ndarray, counted: np.ndarray
) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray, int]]:
    """Mean, variance and number of cells of each line and each set of genes."""
    names = [
        "" if label is None else "+".join(sorted(set(label.split("+")) - {"ctrl"})) or "control" for label in labels
    ]
    out = {}
    for line in sorted(set(lines)):
        for name in sorted(set(names) - {""}):
            rows = x[(np.array(names) == name) & (lines == line) & counted].astype(np.float64)
            if len(rows):
                variance = rows.var(axis=0, ddof=1) if len(rows) > 1 else np.zeros(x.shape[1])
                out[line, name] = rows.mean(axis=0), variance, len(rows)
    return out


def assert_equal(found: Profiles, expected: dict[tuple[str, str], tuple[np.ndarray, np.ndarray, int]]) -> None:
    rows = {
        (found.context_names[context], name): (found.means[i], found.variances[i], found.n_cells[i])
        for i, (context, name) in enumerate(zip(found.contexts, found.perturbations, strict=True))
    }
    rows |= {
        (line, "control"): (found.control_means[c], found.control_variances[c], found.n_controls[c])
        for c, line in enumerate(found.context_names)
    }
    assert rows.keys() == expected.keys()
    for key, (mean, variance, n) in expected.items():
        np.testing.assert_allclose(rows[key][0], mean, rtol=1e-12)
        np.testing.assert_allclose(rows[key][1], variance, rtol=1e-9, atol=1e-12)
        assert rows[key][2] == n


def profiles(x: Any, labels: np.ndarray, lines: np.ndarray | None, **options: Any) -> Profiles:
    expression = LogExpression.from_adata(ad.AnnData(x))
    return Profiles.of(expression, GENES, Conditions.from_labels(labels), lines, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_means_and_variances(kind: str) -> None:
    x, labels, lines = cells()
    everyone = np.ones(len(x), dtype=bool)
    assert_equal(profiles(KINDS[kind](x), labels, lines), by_hand(x, labels, lines, everyone))
    one = by_hand(x, labels, np.full(len(x), ""), everyone)
    assert_equal(profiles(KINDS[kind](x), labels, None), one)


@given(seed=st.integers(0, 1000), n=st.integers(12, 40), share=st.floats(0, 1))
def test_only_the_cells_that_count(seed: int, n: int, share: float) -> None:
    x, labels, lines = cells(n, seed=seed)
    counted = np.random.default_rng(seed).random(n) < share
    counted[:4] = True
    assert_equal(profiles(x, labels, lines, cells=counted), by_hand(x, labels, lines, counted))


def test_more_cells_than_a_chunk_holds() -> None:
    x, labels, lines = (np.concatenate([part] * 60) for part in cells(80))
    assert len(x) > 2 * 2048
    assert_equal(profiles(sp.csr_matrix(x), labels, lines), by_hand(x, labels, lines, np.ones(len(x), dtype=bool)))


@pytest.mark.parametrize("kind", KINDS)
def test_file_on_disk_and_view_of_it(kind: str, tmp_path: Path) -> None:
    x, labels, lines = cells()
    ad.AnnData(KINDS[kind](x)).write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    some = np.sort(np.random.default_rng(1).permutation(len(x))[4:60])
    some = np.concatenate([np.arange(4), some[some > 3]])
    for rows, adata in ((np.arange(len(x)), backed), (some, backed[some])):
        found = Profiles.of(LogExpression.from_adata(adata), GENES, Conditions.from_labels(labels[rows]), lines[rows])
        assert_equal(found, by_hand(x[rows], labels[rows], lines[rows], np.ones(len(rows), dtype=bool)))
    backed.file.close()


def test_counts_are_normalised_before_they_are_averaged() -> None:
    x, labels, lines = cells()
    counts = np.random.default_rng(2).poisson(2.0, x.shape).astype(np.float64)
    adata = ad.AnnData(counts.copy())
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    found = profiles(sp.csr_matrix(counts), labels, lines)
    expected = by_hand(np.asarray(adata.X), labels, lines, np.ones(len(x), dtype=bool))
    for i, name in enumerate(found.perturbations):
        mean, variance, n = expected[found.context_names[found.contexts[i]], name]
        np.testing.assert_allclose(found.means[i], mean, rtol=1e-5)
        np.testing.assert_allclose(found.variances[i], variance, rtol=1e-4)
        assert found.n_cells[i] == n


def test_rows_are_by_context_and_then_by_first_appearance() -> None:
    x = np.random.default_rng(0).uniform(0.1, 3, (7, 13))
    labels = np.array(["Z", "ctrl", "B+A", "Z", "ctrl", "A+B", "A"], dtype=object)
    lines = np.array(["k", "k", "k", "a", "a", "a", "a"])
    found = profiles(x, labels, lines)
    assert found.labels == ["a | Z", "a | A+B", "a | A", "k | Z", "k | A+B"]
    assert found.context_names == ("a", "k")
    assert found.contexts.tolist() == [0, 0, 0, 1, 1]
    assert found.perturbed == (("Z",), ("A", "B"), ("A",), ("Z",), ("A", "B"))
    assert (len(found), found.genes) == (5, tuple(GENES))
    assert row_label("A", "") == "A"
    assert profiles(x, labels, None).labels == ["Z", "A+B", "A"]


def test_effects_are_from_the_control_mean_of_the_context() -> None:
    x, labels, lines = cells()
    found = profiles(x, labels, lines)
    for i, context in enumerate(found.contexts):
        np.testing.assert_array_equal(found.controls[i], found.control_means[context])
        np.testing.assert_allclose(found.effects[i] + found.control_means[context], found.means[i], rtol=1e-12)


@given(st.permutations(range(30)))
def test_order_of_cells_changes_nothing_but_the_order_of_rows(order: list[int]) -> None:
    x, labels, lines = cells(30)
    assert_equal(profiles(x[order], labels[order], lines[order]), by_hand(x, labels, lines, np.ones(30, dtype=bool)))


def test_take_keeps_rows_whole() -> None:
    x, labels, lines = cells()
    found = profiles(x, labels, lines)
    rows = np.array([3, 0, 3])
    part = found.take(rows)
    assert part.labels == [found.labels[i] for i in rows]
    assert part.perturbed == tuple(found.perturbed[i] for i in rows)
    for name in ("means", "variances", "n_cells", "effects", "controls"):
        np.testing.assert_array_equal(getattr(part, name), getattr(found, name)[rows])
    assert part.context_names == found.context_names
    assert len(found.take([])) == 0


class TestControl:
    def test_a_context_without_control_cells_is_refused(self) -> None:
        x, labels, lines = cells()
        lines[10], labels[10] = "c line", "NEW"
        with pytest.raises(DataError, match="No control cells of context 'c line'.*control="):
            profiles(x, labels, lines)

    def test_also_where_the_cells_that_count_have_none(self) -> None:
        x, labels, _ = cells()
        with pytest.raises(DataError, match="No control cells"):
            profiles(x, labels, None, cells=labels == "NEW")

    def test_a_context_without_perturbed_cells_needs_none(self) -> None:
        x, labels, lines = cells()
        lines[10], labels[10] = "c line", None
        found = profiles(x, labels, lines)
        assert "c line" not in {label.split(" | ")[0] for label in found.labels}
        assert found.n_controls[found.context_names.index("c line")] == 0

    def test_control_cells_alone_make_no_rows(self) -> None:
        x, labels, _ = cells()
        found = profiles(x, labels, None, cells=labels == "ctrl")
        assert len(found) == 0
        np.testing.assert_allclose(found.control_means[0], x[labels == "ctrl"].mean(axis=0), rtol=1e-5)
