from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from anndata import AnnData
from lightning.pytorch.loggers import CSVLogger

from scgalore.errors import OptionError
from scgalore.model import SCGPT
from scgalore.train.loggers import loggers_of

RUN: dict[str, Any] = {"max_epochs": 2, "batch_size": 8, "accelerator": "cpu", "validation_size": 0.2}


def logged(folder: Path) -> list[pd.DataFrame]:
    return [pd.read_csv(path) for path in sorted(folder.rglob("metrics.csv"))]


def test_csv_has_steps_and_the_rows_of_the_history(model: SCGPT, few: AnnData, tmp_path: Path) -> None:
    model.train(few, **RUN, checkpoint_dir=tmp_path, logger="csv")
    (table,) = logged(tmp_path / "logs" / "csv")
    assert table["step_loss"].notna().sum() >= 2
    epochs = table[table["validation_loss"].notna()]
    assert epochs["validation_loss"].to_numpy() == pytest.approx(model.history["validation_loss"].to_numpy(), rel=1e-5)


def test_a_run_that_is_continued_adds_a_version(make_model: Callable[..., SCGPT], few: AnnData, tmp_path: Path) -> None:
    make_model(few.var_names).train(few, **RUN, checkpoint_dir=tmp_path, logger="csv")
    longer = {**RUN, "max_epochs": 3, "resume": True}
    make_model(few.var_names).train(few, **longer, checkpoint_dir=tmp_path, logger="csv")
    first, second = logged(tmp_path / "logs" / "csv")
    assert (first["validation_loss"].notna().sum(), second["validation_loss"].notna().sum()) == (2, 1)


def test_tensorboard_and_an_object_at_once(model: SCGPT, few: AnnData, tmp_path: Path) -> None:
    own = CSVLogger(tmp_path / "own")
    model.train(few, **RUN, checkpoint_dir=tmp_path / "run", logger=["tensorboard", own])
    assert list((tmp_path / "run" / "logs" / "tensorboard").rglob("events.out.tfevents.*"))
    assert len(logged(tmp_path / "own")) == 1


def test_loggers_change_no_number(make_model: Callable[..., SCGPT], few: AnnData, tmp_path: Path) -> None:
    plain, watched = make_model(few.var_names), make_model(few.var_names)
    plain.train(few, **RUN)
    watched.train(few, **RUN, checkpoint_dir=tmp_path, logger="csv")
    assert plain.history["train_loss"].tolist() == watched.history["train_loss"].tolist()


@pytest.mark.parametrize("logger", ["wandb", 3, ["csv", "lines"]])
def test_what_is_no_logger_is_refused(logger: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="logger=.*'csv', 'tensorboard'"):
        loggers_of(logger, tmp_path)


def test_a_name_needs_a_folder(model: SCGPT, few: AnnData) -> None:
    with pytest.raises(OptionError, match="requires checkpoint_dir="):
        model.train(few, **RUN, logger="csv")
    assert not model.is_trained
