import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from scipy.stats import binom

from scgalore.tasks.calibration import (
    MIN_CELLS,
    MOST_POINTS,
    Calibration,
    ErrorCurve,
    calibration_error,
    error_bound,
    fit_temperature,
    softmax,
)


def drawn(
    n: int, *, sharpness: float = 1.0, n_classes: int = 4, scale: float = 2.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and classes drawn with the probabilities that the logits have when divided by ``sharpness``."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=scale, size=(n, n_classes))
    codes = np.array([rng.choice(n_classes, p=p) for p in np.exp(log_softmax(logits, axis=1))])
    return (logits * sharpness).astype(np.float32), codes


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_temperature_undoes_what_made_probabilities_too_sharp(sharpness: float) -> None:
    logits, codes = drawn(4000, sharpness=sharpness)
    assert fit_temperature(logits, codes) == pytest.approx(sharpness, rel=0.08)


def test_temperature_is_that_of_the_lowest_loss() -> None:
    logits, codes = drawn(4000, sharpness=2.0)
    best = fit_temperature(logits, codes)

    def loss(temperature: float) -> float:
        return -float(log_softmax(logits / temperature, axis=1)[np.arange(len(codes)), codes].mean())

    assert loss(best) < min(loss(0.9 * best), loss(1.1 * best), loss(1.0))


@given(st.integers(2, 300), st.integers(2, 6), st.integers(0, 1000))
def test_temperature_is_moderate_however_few_cells_and_however_right(n: int, n_classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(n_classes, size=n)
    logits = (np.eye(n_classes)[codes] * 5).astype(np.float32)  # all right, with a probability near 1
    temperature = fit_temperature(logits, codes)
    assert temperature == 1 if n < MIN_CELLS else 0.1 < temperature < 10
    calibrated = softmax(logits, temperature)
    np.testing.assert_array_equal(calibrated.argmax(axis=1), logits.argmax(axis=1))
    assert calibrated.max() < 1


def test_without_a_temperature_probabilities_have_the_bits_of_softmax() -> None:
    import torch

    logits, _ = drawn(50)
    np.testing.assert_array_equal(softmax(logits), torch.from_numpy(logits).softmax(dim=1).numpy())


def test_calibration_error_of_known_cases() -> None:
    always = np.full(100, 0.8)
    assert calibration_error(always, np.arange(100) < 80) == pytest.approx(0, abs=1e-9)
    assert calibration_error(always, np.arange(100) < 50) == pytest.approx(0.3)
    two = np.repeat([0.6, 1.0], 50)  # errors of opposite sign in different bins do not cancel
    assert calibration_error(two, np.arange(100) < 50) == pytest.approx(0.5 * 0.4 + 0.5 * 1.0)


@given(st.integers(1, 400), st.data())
def test_bound_is_the_rate_at_which_so_few_errors_are_rare(n: int, data: st.DataObject) -> None:
    wrong = data.draw(st.integers(0, n - 1))
    bound = float(error_bound(np.array(wrong), np.array(n)))
    assert wrong / n < bound <= 1
    assert binom.cdf(wrong, n, bound) == pytest.approx(0.05, abs=1e-6)


def test_bound_of_nothing_but_errors_is_one() -> None:
    np.testing.assert_array_equal(error_bound(np.array([3, 0]), np.array([3, 0])), [1, 1])


@given(st.lists(st.tuples(st.sampled_from([0.3, 0.5, 0.5001, 0.7, 0.9, 1.0]), st.booleans()), min_size=1, max_size=80))
def test_curve_counts_cells_at_each_threshold(cells: list[tuple[float, bool]]) -> None:
    confidence, correct = (np.array(column) for column in zip(*cells, strict=True))
    curve = ErrorCurve.of(confidence, correct)
    assert list(curve.thresholds) == sorted(set(confidence), reverse=True)
    for threshold, labelled, wrong in zip(curve.thresholds, curve.labelled, curve.wrong, strict=True):
        assert labelled == (confidence >= threshold).sum()
        assert wrong == (~correct[confidence >= threshold]).sum()


def test_curve_of_many_cells_is_bounded_and_still_counts_right() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(5000)
    correct = rng.random(5000) < confidence
    curve = ErrorCurve.of(confidence, correct)
    assert len(curve.thresholds) <= MOST_POINTS
    assert curve.labelled[-1] == 5000
    for at in (0, 100, -1):
        assert curve.wrong[at] == (~correct[confidence >= curve.thresholds[at]]).sum()


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
def test_promised_rate_is_kept_on_other_cells(rate: float) -> None:
    """In at most about 5 % of repetitions, and some more since the threshold is chosen among many, is the rate exceeded."""
    exceeded, promised = 0, 0
    logits, codes = drawn(20000, scale=8.0, seed=99)
    confidence, correct = softmax(logits).max(axis=1), logits.argmax(axis=1) == codes
    for seed in range(200):
        rows = np.random.default_rng(seed).integers(len(codes), size=300)
        curve = ErrorCurve.of(confidence[rows], correct[rows])
        at, keeps = curve.at(rate)
        labelled = confidence >= curve.thresholds[at]
        promised += keeps
        exceeded += keeps and (~correct[labelled]).mean() > rate
    assert promised > 100
    assert exceeded <= 0.15 * promised


def test_a_stricter_rate_labels_no_more_cells() -> None:
    logits, codes = drawn(500)
    curve = ErrorCurve.of(softmax(logits).max(axis=1), logits.argmax(axis=1) == codes)
    found = [curve.at(rate)[0] for rate in (0.02, 0.05, 0.1, 0.2, 0.4, 0.99)]
    assert found == sorted(found)
    assert curve.at(0.99) == (len(curve.thresholds) - 1, True)


def test_too_few_cells_promise_nothing_and_give_the_lowest_bound() -> None:
    curve = ErrorCurve.of(np.linspace(0.5, 1, 40), np.full(40, True))
    assert curve.at(0.05) == (39, False)  # 59 cells without an error are needed
    assert curve.bounds()[39] == pytest.approx(1 - 0.05 ** (1 / 40))
    assert curve.at(0.08) == (39, True)


@pytest.mark.parametrize(("n", "k"), [(18, None), (19, 1), (100, 5), (399, 20)])
def test_novelty_threshold_is_exceeded_by_one_in_twenty(n: int, k: int | None) -> None:
    logits, codes = drawn(n)
    novelty = np.random.default_rng(1).permutation(n).astype(float)
    found = Calibration.fit(logits, codes, novelty)
    assert found.novelty_threshold == (None if k is None else float(n - k))
    kept = np.full(n, True) if k is None else novelty <= n - k
    assert found.curve.labelled[-1] == kept.sum()
    assert found.curve.wrong[-1] == (logits.argmax(axis=1) != codes)[kept].sum()


def test_calibration_survives_json() -> None:
    logits, codes = drawn(300, sharpness=2.0)
    found = Calibration.fit(logits, codes, np.arange(300.0))
    assert Calibration.from_config(json.loads(json.dumps(found.to_config()))) == found
    assert found.error_after < found.error_before


@pytest.mark.parametrize(
    "change",
    [{"temperature": 0}, {"temperature": float("nan")}, {"curve": {"thresholds": [1], "labelled": [], "wrong": []}}],
)
def test_damaged_calibration_is_refused(change: dict[str, object]) -> None:
    content = Calibration.fit(*drawn(100)).to_config()
    with pytest.raises(ValueError, match=r"temperature|lengths"):
        Calibration.from_config({**content, **change})


def test_table_has_a_row_for_each_part_with_cells() -> None:
    logits, codes = drawn(200, sharpness=3.0)
    table = Calibration.fit(logits[:100], codes[:100]).table(
        logits, codes, {"train": np.arange(0), "validation": np.arange(100), "test": np.arange(100, 200)}
    )
    assert list(table.index) == ["validation", "test"]
    assert table["n"].tolist() == [100, 100]
    assert (table["ece"] < table["ece_uncalibrated"]).all()
    assert table.loc["test", "accuracy"] == (logits.argmax(axis=1) == codes)[100:].mean()
