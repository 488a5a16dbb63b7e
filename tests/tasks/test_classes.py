"""What is said of labels and splits before a model of classes is trained."""

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

import scgalore as sg
from scgalore.errors import DataError
from scgalore.pipeline.cells import draw_rows
from scgalore.tasks.registry import resolve_call


def said(adata: AnnData, caplog: pytest.LogCaptureFixture, **options: Any) -> list[str]:
    """Warnings of reading, which comes before anything is loaded."""
    arguments: dict[str, Any] = {name: options.pop(name) for name in ("labels_key", "values_key") if name in options}
    task, call = resolve_call(arguments, task=None, seed=0, function=sg.tl.finetune, **options)
    task.read(adata, call)
    return _of_labels(caplog)


def _of_labels(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Warnings that are about labels, and not about the few genes of these cells."""
    found = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    return [message for message in found if "genes matched" not in message]


@pytest.fixture
def typed(few: AnnData) -> AnnData:
    few.obs["l"] = np.tile(["T", "B", "NK"], 30)
    few.obs["part"] = np.repeat(["train", "validation", "test"], [60, 15, 15])
    return few


def test_usual_labels_give_no_warning(typed: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    assert said(typed, caplog, labels_key="l") == []
    assert said(typed, caplog, labels_key="l", split_key="part") == []


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("Unknown", r"'Unknown' \(15 cells\), which would be learned"),
        ("T ", r"'T' \(\d+ cells\) and 'T ' \(15 cells\)"),
        ("nk", r"'NK' \(\d+ cells\) and 'nk' \(15 cells\)"),
        (" Mono", r"leading or trailing spaces: ' Mono' \(15 cells\)"),
    ],
)
@pytest.mark.parametrize("dtype", ["object", "category"])
def test_doubtful_labels(typed: AnnData, caplog: pytest.LogCaptureFixture, label: str, says: str, dtype: str) -> None:
    typed.obs["l"] = np.where(np.arange(90) % 6 == 0, label, typed.obs["l"])
    typed.obs["l"] = typed.obs["l"].astype(dtype)
    (message,) = said(typed, caplog, labels_key="l")
    assert message.startswith("adata.obs['l'] has ")
    assert re.search(says, message)


def test_a_class_without_training_cells(typed: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    typed.obs.loc[typed.obs["part"] == "test", "l"] = "Mono"
    (message,) = said(typed, caplog, labels_key="l", split_key="part")
    assert "1 of 4 classes have no training cells and cannot be learned: 'Mono' (15 cells)" in message


def test_a_class_of_one_cell(typed: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    typed.obs["l"] = ["Mono", *typed.obs["l"][1:]]
    (message,) = said(typed, caplog, labels_key="l")
    assert "classes with a single cell (1 in total)" in message


@pytest.mark.parametrize("task", [{"labels_key": "l"}, {"values_key": "n_genes"}, {}])
@pytest.mark.parametrize("part", ["validation", "test"])
def test_an_empty_part(typed: AnnData, caplog: pytest.LogCaptureFixture, task: dict[str, str], part: str) -> None:
    typed.obs["part"] = typed.obs["part"].replace(part, "train")
    (message,) = said(typed, caplog, split_key="part", **task)
    assert f"adata.obs['part'] has no {part} cells" in message
    assert {"validation": "last epoch is kept", "test": "cannot be evaluated"}[part] in message


def test_a_part_that_was_not_wanted_is_not_missed(typed: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    assert said(typed, caplog, labels_key="l", validation_size=0.0, test_size=0.0) == []
    (message,) = said(typed, caplog, labels_key="l", validation_size=0.001, test_size=0.0)
    assert "The split has no validation cells, so the last epoch is kept" in message


def test_a_stream_is_looked_at_too(typed: AnnData, model: Any, caplog: pytest.LogCaptureFixture) -> None:
    typed.obs["l"] = np.tile(["T", "Unassigned", "NK"], 30)
    batches = sg.data.stream([typed], model.vocab, labels_key="l", classes=["T", "Unassigned", "NK", "B"])
    untrained, untyped = said(batches, caplog, labels_key="l")
    assert "'B' (0 cells)" in untrained
    assert "'Unassigned' (30 cells)" in untyped


def test_training_cells_of_one_class(typed: AnnData) -> None:
    typed.obs.loc[typed.obs["part"] == "train", "l"] = "T"
    with pytest.raises(DataError, match="All training cells are of one class, 'T'"):
        sg.tl.finetune(typed, "not-loaded", labels_key="l", split_key="part")


@pytest.mark.parametrize("word", ["nan", "", "NA"])
def test_words_for_missing_are_no_class(typed: AnnData, word: str) -> None:
    typed.obs["l"] = [word, *typed.obs["l"][1:]]
    with pytest.raises(DataError, match="1 of 90 cells have no label"):
        sg.tl.finetune(typed, "not-loaded", labels_key="l")


def test_each_warning_comes_once(typed: AnnData, model: Any, caplog: pytest.LogCaptureFixture) -> None:
    typed.obs["l"] = ["Mono", *np.tile(["T", "Unknown", "NK"], 30)[1:]]
    sg.tl.finetune(typed, model, labels_key="l", max_epochs=1, batch_size=32)
    warnings = _of_labels(caplog)
    assert len(warnings) == len(set(warnings)) == 2


@pytest.mark.parametrize("dtype", [float, "Int64", "category", object])
def test_a_run_draws_and_splits_numbers_by_their_names(typed: AnnData, dtype: Any) -> None:
    """As the pipeline does it: cells without a label are left out, and the others keep whole-number names."""
    typed.obs["l"] = pd.Series([0, 1, 10, None] * 22 + [0, 1], dtype="Int64", index=typed.obs_names).astype(dtype)
    task, call = resolve_call({"labels_key": "l"}, task=None, seed=0, function=sg.tl.finetune)
    drawn = typed[draw_rows(typed.obs, task.draw_keys(call.arguments), most=30, seed=0)].copy()
    task.split(drawn, call, "part")
    assert drawn.obs["l"].cat.categories.tolist() == ["0", "1", "10"]
    assert drawn.obs["l"].value_counts().to_dict() == {"0": 10, "1": 10, "10": 10}


@given(st.lists(st.sampled_from([0, 1, 10, "B"]), min_size=40, max_size=60), st.randoms(use_true_random=False))
def test_cells_are_drawn_within_labels_of_any_type(labels: list[Any], random: Any) -> None:
    """1, 1.0 and "1" are one group, so a column that mixes them is drawn like one that does not."""
    mixed = [random.choice([x, float(x), str(x)]) if isinstance(x, int) else x for x in labels]
    rows = [
        draw_rows(pd.DataFrame({"l": pd.Series(column, dtype=object)}), ["l"], most=20, seed=0).tolist()
        for column in (labels, mixed, list(map(str, labels)))
    ]
    assert rows[0] == rows[1] == rows[2]
