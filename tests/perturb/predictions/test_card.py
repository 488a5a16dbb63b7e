import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scgalore.perturb.baselines.choice import COLUMNS
from scgalore.perturb.predictions.card import model_card, score_table

PARAMS: dict[str, Any] = {"prior": "mixed", "control": "ctrl", "context_key": "line", "added_genes": ["X"] * 1234}
STATS: dict[str, Any] = {
    "wall_clock_seconds": 81.5,
    "stopped_because": "no better epoch in 3",
    "epochs": 7,
    "best_epoch": 3,
    "cells_seen": 123_456,
    "training_cells": 4_321,
    "training_perturbations": 17,
    "validation_perturbations": 5,
    "gradient_steps": 987,
    "optimizer_bytes": 7_654_321,
    "validation_pearson_delta": {"model": 0.5678, "additive": 0.1234, "prior (mixed)": 0.4567},
}
PARTS = {"train": [f"T{i}" for i in range(17)], "validation": ["V"] * 5, "test": ["S"] * 9}
WEIGHTS = {"name": "my-model", "base": "scgpt-mini"}


def rows_of(card: str) -> dict[str, str]:
    return dict(re.findall(r"^\| (.+?) \| (.+?) \|$", card, flags=re.MULTILINE))


@pytest.fixture
def summary() -> pd.DataFrame:
    rows = [
        ("model", "all", "pearson_delta", 0.41234),
        ("model", "all", "mse", 0.00012345),
        ("model", "all", "mae", 0.5),
        ("additive", "all", "pearson_delta", 0.5),
        ("additive", "all", "mse", 0.0002),
        ("additive", "all", "mae", 0.6),
        ("model", "unseen_single", "pearson_delta", 0.9),
        ("ceiling", "all", "pearson_delta", 0.8),
    ]
    return pd.DataFrame(rows, columns=["method", "group", "metric", "mean"])


class TestModelCard:
    def test_holds_the_numbers_of_its_run(self) -> None:
        card = model_card(PARAMS, STATS, PARTS, WEIGHTS)
        rows = rows_of(card)
        for name, value in STATS.items():
            if not isinstance(value, dict):
                shown = rows[name.replace("_", " ")]
                assert shown.replace(",", "") == str(value)
        assert rows["cells seen"] == "123,456"
        assert rows["perturbations"] == "17 train, 5 validation, 9 test"
        assert rows["prior (corrected by the network)"] == "mixed"
        assert (rows["control"], rows["context"]) == ("ctrl", "line")
        assert rows["genes new to the vocabulary"] == "1,234"
        assert rows["base model"] == "scgpt-mini"
        assert card.startswith("# my-model: ")

    def test_the_best_score_stands_out_and_none_is_left_out(self) -> None:
        rows = rows_of(model_card(PARAMS, STATS, PARTS, WEIGHTS))
        assert (rows["**model**"], rows["additive"], rows["prior (mixed)"]) == ("0.568", "0.123", "0.457")
        baseline_won = {**STATS, "validation_pearson_delta": {"model": 0.2, "additive": 0.3}}
        rows = rows_of(model_card(PARAMS, baseline_won, PARTS, WEIGHTS))
        assert (rows["**additive**"], rows["model"]) == ("0.300", "0.200")

    def test_says_which_epoch_or_that_the_prior_won(self) -> None:
        card = model_card(PARAMS, STATS, PARTS, WEIGHTS)
        assert "The weights are those after epoch 3." in card
        assert "adds nothing" not in card
        for best in (0, -1):
            card = model_card(PARAMS, {**STATS, "best_epoch": best}, PARTS, WEIGHTS)
            assert ("the network adds nothing" in card) is (best < 0)
            assert ("The weights are those after epoch" in card) is (best >= 0)

    def test_without_validation_there_are_no_scores(self) -> None:
        card = model_card(PARAMS, {**STATS, "validation_pearson_delta": {}}, PARTS, WEIGHTS)
        assert "There were no validation perturbations." in card
        assert "Pearson delta, mean over" not in card

    def test_one_context_and_weights_without_a_base(self) -> None:
        rows = rows_of(model_card({**PARAMS, "context_key": None}, STATS, PARTS, {"name": "scgpt-mini"}))
        assert rows["context"] == "one"
        assert rows["base model"] == "scgpt-mini"

    def test_scores_of_test_perturbations_stand_in_it_when_they_are_given(self, summary: pd.DataFrame) -> None:
        summary["n"] = np.where(summary["group"] == "all", 9, 4)
        card = model_card(PARAMS, STATS, PARTS, WEIGHTS, {"summary": summary})
        assert "9 held-out test perturbations" in card
        assert score_table(summary) in card
        without = model_card(PARAMS, STATS, PARTS, WEIGHTS)
        assert "held-out test perturbations" not in without

    def test_tables_are_tables(self) -> None:
        lines = model_card(PARAMS, STATS, PARTS, WEIGHTS).splitlines()
        for i, line in enumerate(lines):
            if line == "| --- | --- |":
                assert lines[i - 2] == ""
                assert lines[i - 1].startswith("| ")
                assert lines[i + 1].startswith("| ")


class TestPrior:
    CHOICE = pd.DataFrame(
        [
            ("unseen", "mixed", 14, 0.0123, 0.3, 0.2, 0.6, 0.0, 0.0, False, "mixed 0.61"),
            ("unseen", "stack", 14, 0.0101, 0.4, 0.3, 0.7, -0.0022, 0.0005, True, "ridge 0.20, mixed 0.31"),
        ],
        columns=list(COLUMNS),
    )

    def test_table_of_the_choice_is_in_the_card(self) -> None:
        rows = rows_of(model_card(PARAMS, STATS, PARTS, WEIGHTS, choice=self.CHOICE))
        assert "mixed" not in rows
        card = model_card(PARAMS, STATS, PARTS, WEIGHTS, choice=self.CHOICE)
        assert "| unseen | mixed | 14 | 0.0123 | 0.3 | 0.2 | 0.6 | +0 ± 0 | mixed 0.61 |" in card
        assert (
            "| unseen | **stack** | 14 | 0.0101 | 0.4 | 0.3 | 0.7 | -0.0022 ± 0.0005 | ridge 0.20, mixed 0.31 |" in card
        )
        assert "## Prior" not in model_card(PARAMS, STATS, PARTS, WEIGHTS, choice=self.CHOICE.iloc[:0])

    def test_line_of_perturbed_genes_is_in_the_card(self) -> None:
        own = {"intercept": 0.1, "slope": -0.834, "n": 12}
        card = model_card({**PARAMS, "own_gene": own}, STATS, PARTS, WEIGHTS)
        assert "changes by 0.1 -0.834 times its control expression, as fitted to 12 measured targets" in card
        assert "measured targets" not in model_card({**PARAMS, "own_gene": {**own, "n": 0}}, STATS, PARTS, WEIGHTS)


class TestScoreTable:
    def test_has_a_row_a_method_and_the_metrics_asked_for(self, summary: pd.DataFrame) -> None:
        lines = score_table(summary, ("pearson_delta", "mse")).splitlines()
        assert lines == [
            "| method | pearson_delta | mse |",
            "| --- | --- | --- |",
            "| model | 0.4123 | 0.0001234 |",
            "| additive | 0.5 | 0.0002 |",
            "| ceiling | 0.8 |  |",
        ]

    def test_keeps_the_order_of_methods_when_they_are_categories(self, summary: pd.DataFrame) -> None:
        for column in ("method", "metric", "group"):
            summary[column] = pd.Categorical(summary[column])
        lines = score_table(summary).splitlines()
        assert [line.split(" | ")[0] for line in lines[2:]] == ["| model", "| additive", "| ceiling"]
        assert "mae" not in lines[0]
