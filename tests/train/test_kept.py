"""Models of the best epochs, in the folder of the checkpoint."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from tests.bitwise import differences

import scgalore as sg
from scgalore.errors import OptionError
from scgalore.model import SCGPT
from scgalore.tasks.registry import resolve_call
from scgalore.train.kept import Keeping, KeptModels
from scgalore.train.result import TrainResult


def ended(callback: KeptModels, epoch: int, score: float, *, first: bool = True) -> None:
    trainer: Any = SimpleNamespace(
        current_epoch=epoch, callback_metrics={"loss": torch.tensor(score)}, is_global_zero=first
    )
    callback.on_train_epoch_end(trainer, SimpleNamespace())  # type: ignore[arg-type]


def made(folder: Path, n: int) -> KeptModels:
    def write(path: Path, result: TrainResult) -> None:
        path.mkdir(parents=True, exist_ok=True)

    return KeptModels(folder, Keeping(n, write), "loss", lambda: TrainResult(pd.DataFrame()))


@given(
    scores=st.lists(st.integers(0, 5).map(float), min_size=1, max_size=12),
    n=st.integers(1, 4),
    killed=st.integers(0, 12),
)
def test_those_with_the_lowest_scores_are_there(
    scores: list[float], n: int, killed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    callback, other = made(folder, n), made(folder, n)
    for epoch, score in enumerate(scores):
        state = callback.state_dict()
        ended(callback, epoch, score)
        ended(other, epoch, score, first=False)
        if epoch == killed:  # after it has written, and before its checkpoint
            callback = made(folder, n)
            callback.load_state_dict(state)
            ended(callback, epoch, score)
        best = sorted(range(epoch + 1), key=lambda one: (scores[one], one))[:n]
        assert {path.name for path in (folder / "best").iterdir()} == {f"epoch-{one}" for one in best}
        assert list(callback.scores) == list(other.scores) == best


def test_an_epoch_without_a_score_is_none(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(current_epoch=0, callback_metrics={}, is_global_zero=True)
    callback = made(tmp_path, 1)
    callback.on_train_epoch_end(trainer, SimpleNamespace())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def fitted(model: SCGPT, adata: AnnData, keep_best: int, checkpoint_dir: Path | None, **options: Any) -> None:
    sizes = {"validation_size": 0.2, **{name: options.pop(name) for name in ("validation_size",) if name in options}}
    task, call = resolve_call({"max_epochs": 3, "lr": 3e-3, **options}, task=None, seed=0, function=model.fit, **sizes)
    prepared = task.prepare(task.read(adata, call), model, call)
    model.fit(prepared, keep_best=keep_best, checkpoint_dir=checkpoint_dir)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="rows"),
        pytest.param({"embedding": "full"}, id="full"),
        pytest.param({"adapter": "lora"}, id="lora"),
        pytest.param({"labels_key": "bulk_labels", "prior": "none", "adapter": "lte"}, id="classes_with_lte"),
    ],
)
def test_the_best_is_the_model_in_the_end(
    few: AnnData, make_model: Callable[..., SCGPT], tmp_path: Path, options: dict[str, Any]
) -> None:
    model = make_model([*few.var_names[::-1], "absent"])
    start = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    fitted(model, few, 2, tmp_path / "run", **options)
    kept = {path.name: sg.model.load(path) for path in (tmp_path / "run" / "best").iterdir()}
    assert len(kept) == 2
    best = kept.pop(f"epoch-{model.result.best_epoch}")
    ((name, second),) = kept.items()
    # Products of factors are rounded where they are merged.
    for tensor, same in zip(best.network.state_dict().values(), model.network.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, same, rtol=1e-5, atol=1e-6)
    assert differences(dict(second.network.state_dict()), dict(model.network.state_dict()))
    assert len(second.history) == int(name.removeprefix("epoch-")) + 1
    absent = model.vocab["absent"]
    name = next(name for name, tensor in start.items() if len(tensor) == len(model.vocab))
    torch.testing.assert_close(best.network.state_dict()[name][absent], start[name][absent])
    assert best.classes == model.classes


def test_what_it_needs_is_said(few: AnnData, model: SCGPT, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="keep_best=2 requires checkpoint_dir="):
        fitted(model, few, 2, None)
    with pytest.raises(OptionError, match="keep_best=2 requires validation cells"):
        fitted(model, few, 2, tmp_path, validation_size=0.0)
