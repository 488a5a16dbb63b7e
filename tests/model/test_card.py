"""The model card of any model; what publishing adds to it is tested with the hub."""

import pandas as pd

from scgalore.model.card import _settings
from scgalore.train import TrainResult


def test_settings_that_are_not_numbers() -> None:
    result = TrainResult(pd.DataFrame(), best_epoch=2, steps=1500, converged=True, cpu_kernels="own")
    text = "\n".join(_settings({}, result))
    rows = dict(line.strip("| ").split(" | ") for line in text.splitlines() if " | " in line and "---" not in line)
    assert {"steps": "1,500", "converged": "`true`", "cpu_kernels": "`own`"}.items() <= rows.items()
    assert "after epoch 2" in text
