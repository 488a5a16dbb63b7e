from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from scgalore.errors import DataError
from scgalore.mapping.reference import Cells, Column, Reference

MADE = {"model": {"name": "a model"}, "tokens": {}, "keys": {}}
CENTRES = np.random.default_rng(9).normal(size=(5, 10))


def embedding(types: Any, *, noise: float = 0.5, shift: float = 0.0, seed: int = 0) -> Any:
    """Cells around the centre of their type."""
    rng = np.random.default_rng(seed)
    return (CENTRES[types] + noise * rng.normal(size=(len(types), 10)) + shift).astype(np.float32)


def cells(types: Any, batches: Any = None) -> Cells:
    column = Column(tuple("abcde"), np.asarray(types, dtype=np.int32))
    of_batch = None if batches is None else Column(("0", "1"), np.asarray(batches, dtype=np.int32))
    return Cells(np.arange(len(types)).astype("S"), {"type": column}, of_batch)


TYPES = np.random.default_rng(3).integers(0, 4, 600)  # none of the fifth


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.of_embedding(embedding(TYPES), cells(TYPES), made=MADE)


def test_labels_of_new_cells(reference: Reference) -> None:
    query = np.random.default_rng(4).integers(0, 4, 300)
    found = reference.find(embedding(query, seed=1))
    probabilities = reference.probabilities(found, "type")
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (probabilities.argmax(axis=1) == query).mean() > 0.9


def test_probabilities_are_those_of_right_labels(reference: Reference) -> None:
    """Noisy cells, so that many labels are wrong: the mean probability of the label is the share of right ones."""
    types = np.random.default_rng(5).integers(0, 4, 2000)
    noisy = Reference.of_embedding(embedding(types, noise=1.5), cells(types), made=MADE)
    query = np.random.default_rng(6).integers(0, 4, 2000)
    probabilities = noisy.probabilities(noisy.find(embedding(query, noise=1.5, seed=1)), "type")
    accuracy = (probabilities.argmax(axis=1) == query).mean()
    assert accuracy < 0.9
    assert abs(probabilities.max(axis=1).mean() - accuracy) < 0.06
    assert abs(noisy.accuracies["type"] - accuracy) < 0.03
    assert noisy.calibrations["type"].error_after < 0.06


def test_cells_of_a_new_type_are_far(reference: Reference) -> None:
    query = np.repeat([0, 1, 2, 3, 4], 100)
    novelty = reference.novelty(reference.find(embedding(query, seed=2)))
    assert roc_auc_score(query == 4, novelty) > 0.95
    assert reference.gap_threshold is not None
    assert 0.01 < (novelty[query < 4] > reference.gap_threshold).mean() < 0.12
    assert 0.8 < np.median(novelty[query < 4]) < 1.2


def test_other_batches_say_what_far_is() -> None:
    """A query from a new batch is far from all cells that are near to their own batch, and not from what batches are to each other."""
    rng = np.random.default_rng(0)
    batches, shifts = np.repeat([0, 1], 300), rng.normal(size=(3, 10))
    where = embedding(TYPES) + shifts[batches].astype(np.float32)
    query = embedding(rng.integers(0, 4, 300), seed=8) + shifts[2].astype(np.float32)
    far = {}
    for name, of in (("alone", None), ("batches", batches)):
        made = Reference.of_embedding(where, cells(TYPES, of), made=MADE)
        assert made.gap_threshold is not None
        far[name] = (made.novelty(made.find(query)) > made.gap_threshold).mean()
    assert far["batches"] < far["alone"] / 2


def test_extended_reference_knows_new_types(reference: Reference) -> None:
    new = np.full(80, 4)
    larger = reference.extended(embedding(new, seed=7), cells(new))
    query = embedding(np.full(50, 4), seed=8)
    assert (larger.probabilities(larger.find(query), "type").argmax(axis=1) == 4).all()
    assert (reference.probabilities(reference.find(query), "type").argmax(axis=1) != 4).all()
    assert (larger.n_obs, reference.n_obs) == (680, 600)
    np.testing.assert_array_equal(larger.space.axes, reference.space.axes)


def test_columns_are_joined_by_the_names_of_classes() -> None:
    one, other = Column(("a", "b"), np.array([0, 1], np.int32)), Column(("c", "a"), np.array([1, 0, 0], np.int32))
    joined = one.extended(other)
    assert joined.classes == ("a", "b", "c")
    assert [joined.classes[code] for code in joined.codes] == ["a", "b", "a", "c", "c"]


def test_sets_of_genes_are_kept_once(reference: Reference) -> None:
    first, second = np.array([1, 2], np.int32), np.array([2, 9], np.int32)
    new = np.full(40, 4)
    one = replace(reference, cells=replace(reference.cells, genes=(first,)))
    larger = one.extended(embedding(new, seed=7), replace(cells(new), genes=(second, first.copy())))
    assert [genes.tolist() for genes in larger.cells.genes] == [[1, 2], [2, 9]]


@pytest.mark.parametrize("batches", [None, TYPES % 2])
def test_cells_are_not_there_twice(batches: Any) -> None:
    """Embeddings that are computed again differ by rounding; other cells may have the same names, several times."""
    where, of_cells = embedding(TYPES), cells(TYPES, batches)
    reference = Reference.of_embedding(where, of_cells, made=MADE)
    larger = reference.extended(embedding(TYPES, seed=1), of_cells).extended(embedding(TYPES, seed=2), of_cells)
    again = where * np.random.default_rng(1).normal(1, 1e-3, where.shape).astype(np.float32)
    for one in (reference, larger):
        with pytest.raises(DataError, match="600 cells would be in the reference twice, such as '0'"):
            one.extended(again, of_cells)
    again[1:] = embedding(TYPES, seed=3)[1:]
    with pytest.raises(DataError, match="^1 cells would be"):
        larger.extended(again, of_cells)
    renamed = replace(of_cells, names=np.char.add(of_cells.names, b"'"))
    assert larger.extended(again, renamed).n_obs == 2400


def test_few_cells_say_nothing_of_far() -> None:
    few = Reference.of_embedding(embedding(TYPES[:12]), cells(TYPES[:12]), made=MADE)
    assert few.gap_threshold is None
    assert few.n_neighbors == 11


def test_batches_without_each_other_are_refused() -> None:
    with pytest.raises(DataError, match="another batch"):
        Reference.of_embedding(embedding(TYPES), cells(TYPES, np.zeros(600)), made=MADE)
