import numpy as np
import pandas as pd
import pytest

from scgalore.demo.report import RANDOM, Report, compare, score_table, strongest
from scgalore.tasks.baselines import LOGISTIC
from scgalore.tasks.findings import markdown_table


def table(**f1: list[float]) -> pd.DataFrame:
    """Scores by method; accuracy is 0.1 higher."""
    rows = [
        {"seed": seed, "method": method, "accuracy": value + 0.1, "macro_f1": value, "n": 140 + seed}
        for method, values in f1.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("mine", "verdict"),
    [
        pytest.param([0.70, 0.75, 0.65], "equals theirs within the noise (difference +0.000", id="equal"),
        pytest.param([0.69, 0.75, 0.65], "within the noise (difference -0.003", id="slightly_below"),
        pytest.param([0.65, 0.69, 0.61], "fails to reach theirs, by 0.050, which is more than", id="below"),
        pytest.param([0.75, 0.81, 0.69], "exceeds theirs, by 0.050, which is more than", id="above"),
        pytest.param([0.40, 0.75, 0.85], "within the noise (difference -0.033", id="wild"),
    ],
)
def test_verdict_holds_the_difference_against_its_spread(mine: list[float], verdict: str) -> None:
    accuracy, f1 = compare(table(mine=mine, theirs=[0.70, 0.75, 0.65]), "mine", "theirs")
    assert verdict in accuracy
    assert verdict in f1
    assert (accuracy.split(":")[0], f1.split(":")[0]) == ("accuracy", "macro F1")


def test_spread_is_that_of_the_paired_differences() -> None:
    # Both methods vary much between seeds, but always together.
    sentence = compare(table(mine=[0.4, 0.6, 0.8], theirs=[0.43, 0.62, 0.82]), "mine", "theirs")[1]
    sd = np.std([-0.03, -0.02, -0.02], ddof=1)
    assert "fails to reach" in sentence
    assert f"{sd:.3f}" in sentence


def test_one_seed_gives_no_verdict() -> None:
    assert "is 0.300 below theirs. One seed" in compare(table(mine=[0.4], theirs=[0.7]), "mine", "theirs")[1]


def test_score_table_has_mean_and_spread() -> None:
    text = score_table(table(mine=[0.5, 0.6, 0.7], theirs=[0.8]))
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in text.splitlines()}
    assert rows["mine"] == ["0.700 ± 0.100", "0.600 ± 0.100", "3", "140-142"]
    assert rows["theirs"] == ["0.900", "0.800", "1", "140"]


def test_the_comparison_is_with_the_stronger_baseline() -> None:
    scores = table(a=[0.5, 0.9], b=[0.6, 0.7], c=[1.0, 1.0])
    assert strongest(scores, ["a", "b"]) == "a"


def test_tables_are_aligned() -> None:
    lines = markdown_table(("what", "n"), [("a long name", "1"), ("b", "1,000")]).splitlines()
    assert lines == [
        "| what        | n     |",
        "| ----------- | ----- |",
        "| a long name | 1     |",
        "| b           | 1,000 |",
    ]


def report(
    scores: pd.DataFrame, optimizer: str = "galore", peak: int | None = 2_000_000_000, max_length: int | None = None
) -> str:
    return Report(
        method="mine",
        optimizer=optimizer,
        scores=scores,
        sizes={"cells": 700, "held out": 140, "genes": 760, "classes": 10},
        settings={"max_epochs": 3, "lr": None, "max_length": max_length},
        weights={"name": "scgpt-mini", "sha256": "abc"},
        optimizer_bytes=250_000,
        adamw_bytes=1_000_000,
        table_rows=(700, 8003),
        seconds={"fine-tuning": 3.0, "umap": 4.25},
        peak=peak,
        versions={"python": "3.11"},
    ).text()


def test_report_says_what_was_found() -> None:
    scores = table(**{"mine": [0.7, 0.8], LOGISTIC[0]: [0.6, 0.65], LOGISTIC[1]: [0.5, 0.5]})
    text = report(scores)
    for part in (
        "with each of 2 seeds",
        "(max_epochs 3)",
        "760 genes",
        f"mine minus {LOGISTIC[0]}",
        "| total       | 7.2     |",
        "2,000 MB",
        "galore 0.25 MB, 25% of the 1.00 MB of AdamW",
        "| sha256 of the weights | abc",
    ):
        assert part in text
    assert "What pretraining buys" not in text
    assert "at most 64 tokens" in report(scores, max_length=64)
    assert "What pretraining buys" in report(pd.concat([scores, table(**{RANDOM: [0.1, 0.1]})]))


@pytest.mark.parametrize(("mine", "explained"), [([0.5, 0.6], True), ([0.8, 0.9], False)])
def test_reason_is_given_only_for_a_model_that_falls_behind(mine: list[float], explained: bool) -> None:
    text = report(table(**{"mine": mine, LOGISTIC[0]: [0.7, 0.75], LOGISTIC[1]: [0.5, 0.5]}))
    assert ("A likely reason" in text) is explained


def test_report_says_what_is_not_known() -> None:
    text = report(table(**{"mine": [0.7], LOGISTIC[0]: [0.6], LOGISTIC[1]: [0.5]}), optimizer="adamw", peak=None)
    assert "not known on this system" in text
    assert "Optimizer state: adamw 0.25 MB." in text
