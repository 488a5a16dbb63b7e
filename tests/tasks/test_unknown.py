import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgalore.errors import OptionError
from scgalore.tasks.calibration import Calibration, ErrorCurve
from scgalore.tasks.unknown import UnknownRule


def calibration(confidence: np.ndarray, correct: np.ndarray) -> Calibration:
    return Calibration(1.0, len(correct), 0.1, 0.1, ErrorCurve.of(confidence, correct))


@given(st.integers(1, 200), st.integers(0, 1000), st.floats(0.01, 0.99))
def test_a_promise_is_a_bound_below_the_rate_at_the_lowest_such_threshold(n: int, seed: int, rate: float) -> None:
    rng = np.random.default_rng(seed)
    confidence = rng.random(n)
    correct = rng.random(n) < confidence
    rule = UnknownRule.of(rate, ["a", "b"], calibration(confidence, correct), None)
    labelled = confidence >= rule.threshold
    assert (rule.promise["labelled"], rule.promise["wrong"]) == (labelled.sum(), (labelled & ~correct).sum())
    assert rule.promise["promised"] == (rule.promise["error_bound"] <= rate)
    everything = UnknownRule.of(0.999999, ["a", "b"], calibration(confidence, correct), None)
    assert everything.threshold <= rule.threshold


def test_where_all_labels_may_stay_no_probability_is_too_low() -> None:
    rule = UnknownRule.of(0.05, ["a", "b"], calibration(np.linspace(0.6, 1, 100), np.ones(100, dtype=bool)), None)
    assert rule.threshold == 0
    assert rule.promise["promised"]


@pytest.mark.parametrize(
    ("n", "wrong_first", "match"),
    [(58, 0, "58 validation cells are too few, at least 59"), (300, 30, "too many of the 300 validation cells")],
)
def test_a_warning_says_why_a_rate_is_not_promised(
    n: int, wrong_first: int, match: str, caplog: pytest.LogCaptureFixture
) -> None:
    confidence = np.linspace(1, 0.5, n)
    rule = UnknownRule.of(0.05, ["a", "b"], calibration(confidence, np.arange(n) >= wrong_first), None)
    assert match in caplog.text
    assert rule.promise["promised"] is False
    assert f"{rule.promise['wrong']:,} of {rule.promise['labelled']:,} labelled" in caplog.text


@pytest.mark.parametrize("classes", [["a", "unknown"], ["unknown", "b"]])
def test_a_class_of_the_same_name_is_refused(classes: list[str]) -> None:
    with pytest.raises(OptionError, match="class named 'unknown'"):
        UnknownRule.of(0.5, classes, calibration(np.ones(9), np.ones(9, dtype=bool)), None)
