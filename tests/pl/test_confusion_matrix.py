from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError

TYPES = {
    "int": lambda x: x,
    "float": lambda x: x.astype(float),
    "text": lambda x: x.astype(str),
    "decimals": lambda x: x.astype(float).astype(str),
    "int categories": lambda x: x.astype("category"),
    "float categories": lambda x: x.astype(float).astype("category"),
    "nullable": lambda x: x.astype("Int64"),
}


def drawn(adata: AnnData, **options: object) -> Axes:
    ax = sg.pl.confusion_matrix(adata, show=False, **options)  # type: ignore[arg-type]
    assert isinstance(ax, Axes)
    return ax


def written(ax: Axes) -> pd.DataFrame:
    """Texts of the squares by the names of their row and column, as a reader would look them up."""
    rows = [label.get_text() for label in ax.get_yticklabels()]
    columns = [label.get_text() for label in ax.get_xticklabels()]
    table = pd.DataFrame("", index=rows, columns=columns)
    for text in ax.texts:
        column, row = text.get_position()
        assert table.iloc[int(row), int(column)] == ""
        table.iloc[int(row), int(column)] = text.get_text()
    return table


MEMORY = "CD4+/CD45RO+ Memory"


def test_percentages_of_the_held_out_cells(tuned: AnnData) -> None:
    ax = drawn(tuned)
    expected = pd.DataFrame(
        [["67", "", "", "33"], ["", "100", "", ""], ["50", "", "50", ""], ["", "", "", ""]],
        index=["B (3)", f"{MEMORY} (2)", "Dendritic (2)", "NK (0)"],
        columns=["B", MEMORY, "Dendritic", "NK"],
    )
    pd.testing.assert_frame_equal(written(ax), expected)
    assert ax.get_title() == "7 test cells, accuracy 0.714"
    shares = np.array(ax.images[0].get_array())
    np.testing.assert_allclose(shares.sum(axis=1), [100, 100, 100, 0])
    assert shares[0, 3] == pytest.approx(100 / 3)


def test_unknown_cells_are_the_last_column_and_neither_right_nor_wrong(tuned: AnnData) -> None:
    tuned.obs["scgpt_label"] = tuned.obs["scgpt_label"].cat.add_categories("unknown")
    tuned.obs.loc[tuned.obs_names[[2, 3]], "scgpt_label"] = "unknown"  # one that was wrong, one that was right
    tuned.uns["finetune"]["unknown"] = {"error_rate": 0.1}
    ax = drawn(tuned, normalize=False)
    table = written(ax)
    assert list(table.columns) == ["B", MEMORY, "Dendritic", "unknown"]
    assert list(table.index) == ["B (3)", f"{MEMORY} (2)", "Dendritic (2)"]
    assert table["unknown"].tolist() == ["1", "", "1"]
    assert ax.get_title() == "7 test cells, 2 unknown, otherwise accuracy 0.800"


def test_a_class_of_that_name_is_a_class(tuned: AnnData) -> None:
    for column in ("cell_type", "scgpt_label"):
        tuned.obs[column] = tuned.obs[column].cat.rename_categories({"Dendritic": "unknown"})
    tuned.uns["finetune"]["classes"] = ["B", MEMORY, "unknown", "NK"]
    ax = drawn(tuned)
    assert ax.get_title() == "7 test cells, accuracy 0.714"
    assert list(written(ax).columns) == ["B", MEMORY, "unknown", "NK"]


def test_all_unknown_has_no_accuracy(tuned: AnnData) -> None:
    tuned.obs["scgpt_label"] = pd.Categorical(["unknown"] * 10)
    tuned.uns["finetune"]["unknown"] = {"error_rate": 0.1}
    ax = drawn(tuned)
    assert written(ax)["unknown"].tolist() == ["100", "100", "100"]
    assert ax.get_title() == "7 test cells, all unknown"


@pytest.mark.parametrize("part", ["all", "train", "test"])
def test_numbers_of_cells_are_those_of_a_crosstab(tuned: AnnData, part: str) -> None:
    obs = tuned.obs if part == "all" else tuned.obs[tuned.obs["scgpt_split"] == part]
    table = written(drawn(tuned, part=part, normalize=False)).replace("", "0").astype(int)
    table.index = pd.Index([name.rpartition(" (")[0] for name in table.index])
    expected = pd.crosstab(obs["cell_type"].astype(str), obs["scgpt_label"].astype(str))
    assert table.to_numpy().sum() == len(obs)
    for truth, row in expected.iterrows():
        for predicted, n in row.items():
            assert table.loc[str(truth), str(predicted)] == n


def test_rows_and_columns_follow_the_models_order(tuned: AnnData) -> None:
    tuned.uns["finetune"]["classes"] = np.array(["NK", "Dendritic", MEMORY, "B"])
    assert list(written(drawn(tuned)).columns) == ["NK", "Dendritic", MEMORY, "B"]


def test_written_and_read_again_it_is_the_same_plot(tuned: AnnData, tmp_path: Path) -> None:
    tuned.write_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(written(drawn(ad.read_h5ad(tmp_path / "a.h5ad"))), written(drawn(tuned)))


def test_annotation_beside_labels_of_its_own(tuned: AnnData) -> None:
    tuned.uns["annotate"] = {"params": {}, "classes": ["B", MEMORY, "Dendritic", "NK"], "weights": {}}
    tuned.obs["expert"] = tuned.obs["cell_type"].astype(object)
    tuned.obs.loc[tuned.obs_names[:2], "expert"] = [None, "Platelet"]
    ax = drawn(tuned, key="annotate", labels_key="expert", part="all")
    assert (
        ax.get_title() == "9 cells, accuracy 0.556"
    )  # of the ten, one has no label and one a label unknown to the model
    assert written(ax).loc["Platelet (1)", "B"] == "100"
    with pytest.raises(OptionError, match="labels_key="):
        sg.pl.confusion_matrix(tuned, key="annotate")


@given(
    truth=st.sampled_from(list(TYPES)), predicted=st.sampled_from(list(TYPES)), classes=st.sampled_from(["{}", "{}.0"])
)
def test_numbers_are_one_class_in_every_type(truth: str, predicted: str, classes: str) -> None:
    adata = AnnData(np.zeros((6, 1), dtype=np.float32))
    adata.obs["l"] = TYPES[truth](pd.Series([0, 1, 2, 10, 10, 1], index=adata.obs_names))
    adata.obs["scgpt_label"] = TYPES[predicted](pd.Series([0, 1, 2, 2, 10, 2], index=adata.obs_names))
    names = [classes.format(n) for n in (10, 2, 1, 0)]
    adata.uns["annotate"] = {"params": {}, "classes": names, "weights": {}}
    ax = drawn(adata, key="annotate", labels_key="l", part="all")
    assert ax.get_title() == "6 cells, accuracy 0.667"
    assert list(written(ax).columns) == ["10", "2", "1", "0"]
    plt.close("all")


def test_a_column_with_gaps_counts_its_labelled_cells(tuned: AnnData) -> None:
    tuned.uns["annotate"] = {"params": {}, "classes": ["0", "1"], "weights": {}}
    tuned.obs["scgpt_label"] = pd.Categorical(["0"] * 5 + ["1"] * 5)
    for gap in (np.nan, None):
        tuned.obs["l"] = pd.Series([0, 1, gap, 0, 0, 1, 1, 1, 1, 1], index=tuned.obs_names)
        assert drawn(tuned, key="annotate", labels_key="l", part="all").get_title() == "9 cells, accuracy 0.889"
    tuned.obs["l"] = ["0", "1", "nan", "0", "0", "1", "", "1", "1", "1"]
    assert drawn(tuned, key="annotate", labels_key="l", part="all").get_title() == "8 cells, accuracy 0.875"


def test_clusters_can_be_compared_and_have_no_accuracy(tuned: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    tuned.obs["leiden"] = pd.Categorical([0, 1] * 5)
    ax = drawn(tuned, labels_key="leiden", part="all")
    assert ax.get_title() == "10 cells, no label in common"
    assert "the accuracy is undefined: the labels are '0', '1', the classes 'B'" in caplog.text
    assert [row.rpartition(" (")[0] for row in written(ax).index][-2:] == ["0", "1"]


def test_key_added_names_all_slots(tuned: AnnData) -> None:
    tuned.uns["mine"] = tuned.uns.pop("finetune")
    tuned.obs = tuned.obs.rename(columns={"scgpt_label": "mine_label", "scgpt_split": "mine_split"})
    assert written(drawn(tuned, key="mine")).loc["B (3)", "B"] == "67"


def test_small_shares_are_not_rounded_away() -> None:
    adata = AnnData(np.zeros((1000, 1), dtype=np.float32))
    adata.obs["cell_type"] = ["a"] * 999 + ["b"]
    adata.obs["scgpt_label"] = ["b"] + ["a"] * 998 + ["b"]
    adata.uns["finetune"] = {"params": {"labels_key": "cell_type"}, "classes": ["a", "b"], "weights": {}}
    assert list(written(drawn(adata, part="all")).loc["a (999)"]) == ["100", "<1"]


@pytest.mark.parametrize("n_classes", [2, 10, 40])
def test_texts_neither_overlap_nor_leave_the_figure(n_classes: int) -> None:
    names = [f"CD4-positive, alpha-beta memory T cell {i}" for i in range(n_classes)]
    adata = AnnData(np.zeros((n_classes, 1), dtype=np.float32))
    adata.obs["cell_type"] = adata.obs["scgpt_label"] = names
    adata.uns["finetune"] = {"params": {"labels_key": "cell_type"}, "classes": names, "weights": {}}
    ax = drawn(adata, part="all")
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    inside = figure.bbox.padded(1)
    for label in [*ax.get_xticklabels(), *ax.get_yticklabels(), ax.title, ax.xaxis.label, ax.yaxis.label]:
        box = label.get_window_extent()
        assert inside.contains(box.x0, box.y0), label
        assert inside.contains(box.x1, box.y1), label
    heights = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert all(below.y1 <= above.y0 for above, below in zip(heights, heights[1:], strict=False))
    square = ax.get_window_extent().width / n_classes
    assert all(text.get_window_extent().width < square for text in ax.texts)


def marks(ax: Axes) -> list[str]:
    return [str(line.get_color()) for line in ax.artists + ax.lines if line.get_marker() == "s"]


def test_classes_have_the_colours_that_scanpy_keeps(tuned: AnnData) -> None:
    assert marks(drawn(tuned)) == []
    tuned.uns["cell_type_colors"] = np.array(["#111111", "#222222", "#333333", "#444444"])
    assert marks(drawn(tuned)) == 2 * ["#111111", "#222222", "#333333", "#444444"]
    assert marks(drawn(tuned, palette={"NK": "red"})) == 2 * ["#111111", "#222222", "#333333", "red"]
    with pytest.raises(OptionError, match="'no colour', which is not a color"):
        drawn(tuned, palette=["no colour"])
    with pytest.raises(OptionError, match="palette='nothing' is not a matplotlib colormap"):
        drawn(tuned, palette="nothing")


@pytest.mark.parametrize("cmap", ["Blues", "magma"])
def test_numbers_stand_out_from_their_squares(tuned: AnnData, cmap: str) -> None:
    ax = drawn(tuned, cmap=cmap)
    colors = ax.images[0].to_rgba(np.asarray(ax.images[0].get_array()))
    for text in ax.texts:
        column, row = (int(x) for x in text.get_position())
        background = np.mean(colors[row, column, :3])
        assert abs(background - np.mean(to_rgb(text.get_color()))) > 0.35


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        pytest.param(lambda a: a.uns.clear(), MissingKeyError, r"sg\.tl\.finetune\(adata, \.\.\.\)", id="no_results"),
        pytest.param(lambda a: a.obs.pop("cell_type"), MissingKeyError, "'cell_type'.*labels_key", id="no_truth"),
        pytest.param(lambda a: a.obs.pop("scgpt_label"), MissingKeyError, r"sg\.tl\.annotate", id="no_prediction"),
        pytest.param(lambda a: a.obs.pop("scgpt_split"), MissingKeyError, "part='all'", id="no_split"),
        pytest.param(lambda a: a.obs.__setitem__("scgpt_split", "train"), DataError, "'train': 10", id="no_test_cells"),
    ],
)
def test_what_is_missing_is_named(tuned: AnnData, change: object, error: type[Exception], match: str) -> None:
    change(tuned)
    with pytest.raises(error, match=match):
        sg.pl.confusion_matrix(tuned)


def test_unknown_part_lists_the_parts(tuned: AnnData) -> None:
    with pytest.raises(OptionError, match="'train', 'validation', 'test', 'all'"):
        sg.pl.confusion_matrix(tuned, part="held out")  # type: ignore[arg-type]
