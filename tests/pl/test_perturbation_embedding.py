import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from mudata import MuData
from tests.drawing import assert_inside
from tests.screens import TEST, profiles_of, screen, write_prediction

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.perturb.predictions.plane import embed_in_plane


def predicted_screen(**options: object) -> AnnData:
    adata = screen(**options)  # type: ignore[arg-type]
    write_prediction(adata, contexts=bool(options))
    result = adata.uns["predict_perturbation"]
    training = profiles_of(adata, "train", contexts=bool(options))
    result |= embed_in_plane(training, result["rows"], result["effects"].to_numpy().T)
    return adata


@pytest.fixture(scope="module")
def _scored_once() -> AnnData:
    adata = predicted_screen()
    sg.tl.evaluate_perturbation(adata, de=False, n_bootstrap=20)
    return adata


@pytest.fixture
def scored(_scored_once: AnnData) -> AnnData:
    return _scored_once.copy()


def drawn(adata: AnnData, **options: object) -> Axes:
    ax = sg.pl.perturbation_embedding(adata, show=False, **options)  # type: ignore[arg-type]
    assert isinstance(ax, Axes)
    return ax


def points(ax: Axes) -> dict[str, np.ndarray]:
    """Places by the name in the legend, without its number."""
    found = [part for part in ax.collections if isinstance(part, PathCollection)]
    return {str(part.get_label()).split(" (")[0]: np.asarray(part.get_offsets()) for part in found}


def segments(ax: Axes) -> np.ndarray:
    lines = [np.asarray(line.get_xydata()) for line in ax.lines]
    return np.array([line for line in lines if not {0.0, 1.0} <= set(line.ravel())])  # without the axes through 0


def test_points_are_where_the_prediction_put_them(scored: AnnData) -> None:
    table = scored.uns["predict_perturbation"]["embedding"]
    found = points(drawn(scored))
    expected = table.loc[table["method"] == "training", ["x", "y"]]
    np.testing.assert_allclose(found["training"], expected)
    predicted = table[table["method"] == "predicted"]
    of_group = np.array([("+" in name) for name in predicted["perturbation"]])
    np.testing.assert_allclose(found["combo_seen2"], predicted.loc[of_group, ["x", "y"]])
    np.testing.assert_allclose(found["unseen_single"], predicted.loc[~of_group, ["x", "y"]])
    np.testing.assert_array_equal(found["control"], [[0, 0]])


def test_lines_lead_to_where_perturbations_were_observed(scored: AnnData) -> None:
    ax = drawn(scored)
    directions = scored.uns["predict_perturbation"]["directions"].to_numpy()
    real = profiles_of(scored, "test")
    expected = dict(zip(real.labels, real.effects @ directions, strict=True))
    rows = scored.uns["predict_perturbation"]["rows"].index
    np.testing.assert_allclose(points(ax)["observed"], [expected[row] for row in rows], rtol=1e-4, atol=1e-4)
    table = scored.uns["predict_perturbation"]["embedding"]
    starts = table.loc[table["method"] == "predicted", ["x", "y"]].to_numpy()
    np.testing.assert_allclose(segments(ax)[:, 0], starts)
    np.testing.assert_allclose(segments(ax)[:, 1], points(ax)["observed"])


def test_scores_of_another_prediction_are_not_used(scored: AnnData) -> None:
    scored.uns["evaluate_perturbation"]["params"]["key"] = "another"
    assert "observed" not in points(drawn(scored))
    del scored.uns["evaluate_perturbation"]
    ax = drawn(scored)
    assert "observed" not in points(ax)
    assert len(segments(ax)) == 0


def test_axes_have_the_share_they_explain(scored: AnnData) -> None:
    scored.uns["predict_perturbation"]["explained"] = np.array([0.614, 0.2])
    ax = drawn(scored)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("direction 1 (61 %)", "direction 2 (20 %)")


def test_names_are_of_predictions_and_do_not_overlap(scored: AnnData) -> None:
    ax = drawn(scored, n_labels=3)
    names = [text.get_text() for text in ax.texts]
    assert 1 <= len(names) <= 3
    assert set(names) <= set(TEST)
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert drawn(scored, n_labels=0).texts[:] == []


@pytest.fixture
def far(scored: AnnData) -> AnnData:
    """The same with one prediction a hundred times as far from control as all others are."""
    table = scored.uns["predict_perturbation"]["embedding"].reset_index(drop=True)
    first = int(np.flatnonzero(table["method"] == "predicted")[0])
    table.loc[first, ["x", "y"]] = 100 * table[["x", "y"]].abs().to_numpy().max()
    scored.uns["predict_perturbation"]["embedding"] = table
    return scored


def test_one_far_prediction_does_not_flatten_the_others(far: AnnData) -> None:
    table = far.uns["predict_perturbation"]["embedding"]
    ax = drawn(far)
    near = table[["x", "y"]].to_numpy()[table["x"] < table["x"].max()]
    for limits, values in ((ax.get_xlim(), near[:, 0]), (ax.get_ylim(), near[:, 1])):
        assert limits[0] < values.min()
        assert values.max() < limits[1] < 10 * np.abs(near).max()
    assert "beyond the axes (1)" in [text.get_text() for text in ax.get_legend().get_texts()]
    name = str(table.loc[table["x"].idxmax(), "perturbation"])
    assert name in [text.get_text() for text in ax.texts]


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_points_stand_out_from_the_background(scored: AnnData, style: str) -> None:
    with plt.style.context(style):
        ax = drawn(scored)
    behind = np.mean(to_rgb(ax.get_facecolor()))
    for part in ax.collections:
        color = part.get_facecolor() if len(part.get_facecolor()) else part.get_edgecolor()
        assert abs(np.mean(np.asarray(color)[0, :3]) - behind) > 0.2, part.get_label()


@pytest.mark.parametrize("n", [3, 12, 30])
def test_every_group_has_a_colour_and_the_legend_fits(scored: AnnData, n: int) -> None:
    result = scored.uns["predict_perturbation"]
    table, rows = result["embedding"], result["rows"]
    names = [f"perturbations of group number {i}" for i in range(n)]
    predicted = table[table["method"] == "predicted"].iloc[np.arange(n) % len(rows)]
    result["embedding"] = pd.concat([table[table["method"] == "training"], predicted], ignore_index=True)
    for slot in ("means", "effects"):
        result[slot] = result[slot].iloc[:, np.arange(n) % len(rows)].set_axis(names, axis=1)
    result["rows"] = pd.DataFrame({"perturbation": names, "context": "", "group": names}, index=names)
    ax = drawn(scored)
    colors = {
        tuple(np.asarray(part.get_facecolor())[0])
        for part in ax.collections
        if str(part.get_label()).startswith("perturb")
    }
    assert len(colors) == n
    assert_inside(ax.get_legend())


def test_one_context_can_be_drawn_alone() -> None:
    adata = predicted_screen(contexts=("K562", "RPE1"))
    table = adata.uns["predict_perturbation"]["embedding"]
    both, one = points(drawn(adata)), points(drawn(adata, context="RPE1"))
    assert len(both["training"]) == 2 * len(one["training"])
    expected = table.loc[(table["method"] == "training") & (table["context"] == "RPE1"), ["x", "y"]]
    np.testing.assert_allclose(one["training"], expected)
    with pytest.raises(MissingKeyError, match="context='A549'; choose from 'K562', 'RPE1'"):
        drawn(adata, context="A549")


def test_predictions_without_groups_have_one_colour(scored: AnnData) -> None:
    scored.uns["predict_perturbation"]["rows"]["group"] = ""
    assert len(points(drawn(scored))["predicted"]) == len(TEST)


def test_draws_on_given_axes(scored: AnnData) -> None:
    _, ax = plt.subplots()
    assert drawn(scored, ax=ax) is ax


def test_what_is_not_there_is_named(scored: AnnData) -> None:
    with pytest.raises(OptionError, match="n_labels=-1"):
        drawn(scored, n_labels=-1)
    with pytest.raises(MissingKeyError, match="Call sg.tl.predict_perturbation"):
        drawn(scored, key="mine")
    with pytest.raises(DataError, match="Pass the modality"):
        drawn(MuData({"rna": scored}))
