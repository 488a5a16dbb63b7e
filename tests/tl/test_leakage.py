"""Test cells decide nothing: neither what is learnt nor what is predicted hangs on their expression.

Each test trains twice, on data that differ in the test cells alone. That the comparison can tell is shown by leaks that are
put in on purpose.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray
from tests.trained_screens import GENES, TRAINING, counts, log_normalised, screen_of, untrained

import scgalore as sg
from scgalore.perturb.baselines.effects import Effects
from scgalore.perturb.labels.profiles import Profiles
from scgalore.perturb.labels.screen import Screen
from scgalore.tasks.perturbation import fitting
from scgalore.tasks.perturbation.networks import RowsOfCells

if TYPE_CHECKING:
    from scgalore.model import CellModel

RUN: dict[str, Any] = {"task": "perturbation", **TRAINING, "batch_key": "batch", "max_epochs": 3, "split_key": "split"}
NAMES = ["G05", "G01+G04", "X2", "G00", "G00+G01"]


rows_of = RowsOfCells.of  # as it is before a leak


def by_perturbation() -> AnnData:
    return log_normalised(counts())


def by_cell() -> AnnData:
    """Cells of every perturbation in every part; control cells are known and train."""
    adata = by_perturbation()
    parts = np.array(["train", "test", "validation", "train"])[np.arange(adata.n_obs) % 4]
    adata.obs["split"] = np.where(adata.obs["perturbation"] == "control", "train", parts)
    return adata


def by_context() -> AnnData:
    """A line in which nothing but control is known."""
    adata = log_normalised(counts(contexts=("A", "B", "C")))
    part = adata.obs["cell_line"].astype(str).map({"A": "train", "B": "validation", "C": "test"})
    adata.obs["split"] = part.where(adata.obs["perturbation"] != "control", "train")
    return adata


SPLITS: dict[str, tuple[Callable[[], AnnData], dict[str, Any]]] = {
    "perturbations": (by_perturbation, {}),
    "cells": (by_cell, {}),
    "contexts": (by_context, {"context_key": "cell_line"}),
}


def held_out(adata: AnnData) -> NDArray[np.int64]:
    return np.flatnonzero(adata.obs["split"] == "test")


def permuted(adata: AnnData) -> AnnData:
    """Test cells have each other's expression."""
    changed, rows = adata.copy(), held_out(adata)
    x = changed.X.toarray()
    x[rows] = x[np.random.default_rng(0).permutation(rows)]
    changed.X = sp.csr_matrix(x)
    return changed


def noisy(adata: AnnData) -> AnnData:
    """Test cells have the expression of nothing."""
    changed, rows = adata.copy(), held_out(adata)
    x = changed.X.toarray()
    x[rows] = np.random.default_rng(0).exponential(2, (len(rows), adata.n_vars)).clip(max=9)
    changed.X = sp.csr_matrix(x)
    return changed


CHANGES = {"permuted": permuted, "noise": noisy}


def effects_equal(one: Effects, other: Effects) -> None:
    assert list(one.by_context) == list(other.by_context)
    for ours, theirs in zip(
        (one.pooled, *one.by_context.values()), (other.pooled, *other.by_context.values()), strict=True
    ):
        assert ours.own == theirs.own
        np.testing.assert_array_equal(ours.weights, theirs.weights)
        for rule, other_rule in zip(ours.rules, theirs.rules, strict=True):
            assert rule.names == other_rule.names
            for name in ("intercept", "unknown", "rows"):
                np.testing.assert_array_equal(getattr(rule, name), getattr(other_rule, name))


def assert_nothing_changes(original: AnnData, changed: AnnData, *, prior: str = "chosen", **read: Any) -> None:
    """Train on both, predict with both, and compare all there is to the last bit."""
    assert (original.X != changed.X).nnz > 0
    rows = held_out(original)
    others = np.setdiff1d(np.arange(original.n_obs), rows)
    assert (original.X[others] != changed.X[others]).nnz == 0
    models: list[CellModel] = []
    for adata in (original, changed):
        models.append(sg.tl.finetune(adata, untrained(), **RUN, prior=prior, **read))
        sg.tl.predict_perturbation(adata, NAMES, model=models[-1])
    profiles = [rows_of(screen_of(adata, **read)) for adata in (original, changed)]
    for part in ("train", "validation"):
        ours, theirs = (getattr(rows_of, part) for rows_of in profiles)
        assert ours.perturbations == theirs.perturbations
        np.testing.assert_array_equal(ours.means, theirs.means)
        np.testing.assert_array_equal(ours.control_means, theirs.control_means)
    one, other = models
    pd.testing.assert_frame_equal(
        one.history.drop(columns="seconds"), other.history.drop(columns="seconds"), check_exact=True
    )
    for name, tensor in one.network.state_dict().items():
        np.testing.assert_array_equal(tensor, other.network.state_dict()[name], err_msg=name)
    assert one.memory is not None
    assert other.memory is not None
    ours, theirs = ({**memory.stats, "wall_clock_seconds": 0} for memory in (one.memory, other.memory))
    assert ours == theirs
    if one.memory.prior is not None and other.memory.prior is not None:
        effects_equal(one.memory.prior, other.memory.prior)
    for name in ("means", "effects", "control_means"):
        pd.testing.assert_frame_equal(
            original.uns["predict_perturbation"][name], changed.uns["predict_perturbation"][name], check_exact=True
        )


@pytest.mark.parametrize(
    "change", [name if name == "noise" else pytest.param(name, marks=pytest.mark.slow) for name in CHANGES]
)
@pytest.mark.parametrize("split", SPLITS)
def test_test_cells_decide_nothing(split: str, change: str) -> None:
    make, read = SPLITS[split]
    original = make()
    assert_nothing_changes(original, CHANGES[change](original), **read)


@pytest.mark.parametrize("prior", ["additive", "ridge", "linear", "none"])
def test_with_no_prior_either(prior: str) -> None:
    original = by_perturbation()
    assert_nothing_changes(original, noisy(original), prior=prior)


def test_split_is_drawn_from_labels_alone() -> None:
    adatas = [by_perturbation(), noisy(by_perturbation())]
    for adata in adatas:
        del adata.obs["split"]
        sg.tl.finetune(adata, untrained(), **{**RUN, "split_key": None})
    assert adatas[0].obs["split"].tolist() == adatas[1].obs["split"].tolist()


# Leaks that the comparison must find -------------------------------------------------------------------------------


def prior_of_all_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prior that predictions are made with has seen the test perturbations."""
    profiles = Screen.profiles

    def leaking(self: Screen, *parts: str) -> Profiles:
        return profiles(self) if parts == ("train", "validation") else profiles(self, *parts)

    monkeypatch.setattr(Screen, "profiles", leaking)


def with_test_part_in(part: str, screen: Screen) -> Screen:
    if screen.parts is None:
        pytest.fail("The screen has no split.")
    return replace(screen, parts=np.where(screen.parts == "test", part, screen.parts))


def training_on_the_test_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test perturbations are rows of the training part, so that the prior and the network learn them."""
    split = fitting._split
    monkeypatch.setattr(RowsOfCells, "of", lambda screen: rows_of(with_test_part_in("train", screen)))
    monkeypatch.setattr(fitting, "_split", lambda screen: split(with_test_part_in("train", screen)))


def validation_on_the_test_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """The epoch is chosen by what it is to be tested on."""
    split = fitting._split
    monkeypatch.setattr(RowsOfCells, "of", lambda screen: rows_of(with_test_part_in("validation", screen)))
    monkeypatch.setattr(fitting, "_split", lambda screen: split(with_test_part_in("validation", screen)))


def baselines_scored_on_the_test_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """The statistics of the run tell how well rules do on the test perturbations."""
    scores, profiles, seen = fitting._validation_scores, Screen.profiles, []

    def noting(self: Screen, *parts: str) -> Profiles:
        seen.append(profiles(self, "test"))
        return profiles(self, *parts)

    def leaking(rows: RowsOfCells, columns: Any, vectors: Any) -> dict[str, float]:
        return scores(replace(rows, validation=seen[-1]), columns, vectors)

    monkeypatch.setattr(Screen, "profiles", noting)
    monkeypatch.setattr(fitting, "_validation_scores", leaking)


def controls_from_the_test_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions start from cells that were perturbed."""
    pools = Screen.pools

    def leaking(self: Screen) -> Any:
        found = pools(self)
        return replace(
            found, of_context=tuple(np.union1d(c, np.flatnonzero(self.parts == "test")) for c in found.of_context)
        )

    monkeypatch.setattr(Screen, "pools", leaking)


LEAKS = {
    "prior": prior_of_all_cells,
    "training": training_on_the_test_part,
    "validation": validation_on_the_test_part,
    "baselines": baselines_scored_on_the_test_part,
    "controls": controls_from_the_test_part,
}


@pytest.mark.parametrize("leak", LEAKS)
def test_leak_is_found(leak: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = by_perturbation()
    changed = noisy(original)
    LEAKS[leak](monkeypatch)
    with pytest.raises(AssertionError):
        assert_nothing_changes(original, changed)


def test_comparison_sees_training_cells() -> None:
    original = by_perturbation()
    changed = original.copy()
    own = np.flatnonzero((original.obs["perturbation"] == "G00").to_numpy())
    x = changed.X.toarray()
    x[own] = x[own][:, ::-1]
    changed.X = sp.csr_matrix(x)
    for adata in (original, changed):
        adata.obs["split"] = adata.obs["split"].astype(str)
        sg.tl.predict_perturbation(adata, NAMES, model=sg.tl.finetune(adata, untrained(), **RUN))
    one, other = (adata.uns["predict_perturbation"]["effects"] for adata in (original, changed))
    assert ((one - other).abs().max() > 1e-6).all()
    assert len(one) == len(GENES)
