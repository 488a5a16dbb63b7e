"""The model card of any model; what publishing adds to it is tested with the hub."""

import pandas as pd

from scgalore.model.card import _settings, score_sections
from scgalore.train import TrainResult


def test_settings_that_are_not_numbers() -> None:
    result = TrainResult(pd.DataFrame(), best_epoch=2, steps=1500, converged=True, cpu_kernels="own")
    text = "\n".join(_settings({}, result))
    rows = {
        name: value
        for _, name, value, _ in (map(str.strip, line.split("|")) for line in text.splitlines() if line.count("|") == 3)
    }
    assert {"steps": "1,500", "converged": "`true`", "cpu_kernels": "`own`"}.items() <= rows.items()
    assert "after epoch 2" in text


def test_scores_of_perturbations_are_left_to_their_own_card() -> None:
    scores = pd.DataFrame({"method": ["model"], "metric": ["mse"], "mean": [0.1]})
    assert score_sections({"scores": scores}) == []
    embeddings = pd.DataFrame({"bio": [0.7], "batch": [0.8]}, index=["X_pca"])
    (row,) = (line for line in score_sections({"scores": embeddings})[1].splitlines() if "X_pca" in line)
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["X_pca", "0.700", "0.800"]
