import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from scgalore.tasks.label_scores import LabelScores


def answers(truth: np.ndarray, share: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(truth)) < share, truth, rng.integers(0, 6, len(truth)))


@given(n=st.integers(5, 200), n_classes=st.integers(1, 5), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_scores_are_those_of_scikit_learn(n: int, n_classes: int, share: float, seed: int) -> None:
    truth = np.random.default_rng(seed).integers(0, n_classes, n)
    predicted = answers(truth, share, seed)
    row = LabelScores.of({"a": predicted}, truth, seed=0).row("a")
    assert row["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    f1 = f1_score(truth, predicted, labels=np.unique(truth), average="macro", zero_division=0)
    assert row["macro_f1"] == pytest.approx(f1)


def test_standard_error_of_accuracy_is_the_binomial_one() -> None:
    truth = np.random.default_rng(0).integers(0, 5, 400)
    row = LabelScores.of({"a": answers(truth, 0.7, 1)}, truth, seed=0).row("a")
    assert row["accuracy_se"] == pytest.approx(np.sqrt(row["accuracy"] * (1 - row["accuracy"]) / 400), rel=0.1)
    assert 0.005 < row["macro_f1_se"] < 0.06


def test_differences_are_paired() -> None:
    truth = np.random.default_rng(0).integers(0, 5, 300)
    a = answers(truth, 0.7, 1)
    b = a.copy()
    b[:3] = (truth[:3] + 1) % 5  # nearly the same answers: the difference is known far better than either
    scores = LabelScores.of({"a": a, "b": b, "again": a}, truth, seed=0)
    assert scores.difference("a", "again") == dict.fromkeys(("accuracy", "accuracy_se", "macro_f1", "macro_f1_se"), 0.0)
    difference = scores.difference("a", "b")
    assert difference["accuracy"] == pytest.approx(scores.row("a")["accuracy"] - scores.row("b")["accuracy"])
    assert difference["accuracy_se"] < scores.row("a")["accuracy_se"] / 3
