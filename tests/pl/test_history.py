from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError


def drawn(adata: AnnData, **options: object) -> Axes:
    ax = sg.pl.history(adata, show=False, **options)  # type: ignore[arg-type]
    assert isinstance(ax, Axes)
    return ax


def curves(ax: Axes) -> dict[str, list[tuple[float, float]]]:
    return {str(line.get_label()): [(x, y) for x, y in np.asarray(line.get_xydata()).tolist()] for line in ax.lines}


@pytest.mark.parametrize(("metric", "kept"), [("loss", 1.1), ("accuracy", 0.6)])
def test_curves_are_those_of_the_history(tuned: AnnData, metric: str, kept: float) -> None:
    ax = drawn(tuned, metric=metric)
    table = tuned.uns["finetune"]["history"]
    assert curves(ax) == {
        "training": list(enumerate(table[f"train_{metric}"])),
        "validation": list(enumerate(table[f"validation_{metric}"])),
        "weights kept (epoch 1)": [(1.0, kept)],
    }
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", metric)
    assert all(tick == round(tick) for tick in ax.get_xticks())


def test_without_validation_no_epoch_is_called_the_best(tuned: AnnData) -> None:
    table = tuned.uns["finetune"]["history"]
    tuned.uns["finetune"]["history"] = table.drop(columns=["validation_loss", "validation_accuracy"])
    assert list(curves(drawn(tuned))) == ["training"]


def test_no_epoch_is_marked_where_the_weights_of_the_start_were_kept(tuned: AnnData) -> None:
    tuned.uns["finetune"]["training"]["best_epoch"] = -1
    assert curves(drawn(tuned))["weights kept: initial"] == []


def test_phases_of_a_curriculum_begin_at_lines_with_their_genes(tuned: AnnData) -> None:
    table = tuned.uns["finetune"]["history"]
    tuned.uns["finetune"]["history"] = table.assign(n_genes=[500.0] * (len(table) - 1) + [1200.0])
    ax = drawn(tuned)
    assert [text.get_text() for text in ax.texts] == ["500 genes", "1,200 genes"]
    last = len(table) - 1
    assert [np.asarray(line.get_xdata())[0] for line in ax.lines if line.get_linestyle() == ":"] == [last - 0.5]


def test_numbers_of_genes_in_short_phases_do_not_overlap(tuned: AnnData) -> None:
    table = pd.DataFrame(
        {"train_loss": 1.0, "n_genes": np.repeat([300.0, 500.0, 800.0, 1200.0, 12000.0], [2, 1, 2, 1, 34])}
    )
    tuned.uns["finetune"]["history"] = table.rename_axis("epoch")
    ax = drawn(tuned, title="all")
    boxes = [text.get_window_extent() for text in (*ax.texts, ax.title)]
    assert len(boxes) > 2
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert len([line for line in ax.lines if line.get_linestyle() == ":"]) == 4


def test_written_and_read_again_it_is_the_same_plot(tuned: AnnData, tmp_path: Path) -> None:
    tuned.write_h5ad(tmp_path / "a.h5ad")
    assert curves(drawn(ad.read_h5ad(tmp_path / "a.h5ad"))) == curves(drawn(tuned))


def test_masked_expression_has_its_own_metrics(tuned: AnnData) -> None:
    tuned.uns["finetune"]["history"] = tuned.uns["finetune"]["history"].rename(
        columns={"train_accuracy": "train_masked_mse", "validation_accuracy": "validation_masked_mse"}
    )
    ax = drawn(tuned, metric="masked_mse")
    assert ax.get_ylabel() == "masked mse"
    with pytest.raises(MissingKeyError, match=r"No 'accuracy'.*\['loss', 'masked_mse'\]"):
        sg.pl.history(tuned, metric="accuracy")


def test_missing_results_name_the_call(tuned: AnnData) -> None:
    with pytest.raises(MissingKeyError, match=r"uns\['mine'\].*key_added='mine'.*existing results: 'finetune'"):
        sg.pl.history(tuned, key="mine")
    with pytest.raises(MissingKeyError, match=r"sg\.tl\.finetune\(adata, \.\.\.\) first\."):
        sg.pl.history(AnnData(np.zeros((1, 1))))


def test_annotation_has_no_history(tuned: AnnData) -> None:
    tuned.uns["annotate"] = {"params": {}, "weights": {}}
    with pytest.raises(MissingKeyError, match=r"no training history.*sg\.tl\.finetune"):
        sg.pl.history(tuned, key="annotate")


def test_other_containers_are_refused() -> None:
    with pytest.raises(DataError, match=r"mdata\['rna'\]"):
        sg.pl.history({"finetune": {}})


def test_given_axes_are_used_and_pyplot_is_left_alone(tuned: AnnData) -> None:
    from matplotlib import pyplot as plt

    ax = Figure().subplots()
    assert sg.pl.history(tuned, ax=ax) is ax
    assert plt.get_fignums() == []
