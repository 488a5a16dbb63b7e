import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from tests.drawing import assert_apart, assert_inside
from tests.screens import screen, write_prediction

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.perturb.baselines.effects import BASELINES


@pytest.fixture(scope="module")
def _scored_once() -> AnnData:
    adata = screen()
    write_prediction(adata)
    sg.tl.evaluate_perturbation(adata, de=False, n_bootstrap=20)
    return adata


@pytest.fixture
def scored(_scored_once: AnnData) -> AnnData:
    return _scored_once.copy()


def one(adata: AnnData, metric: str = "pearson_delta", **options: object) -> Axes:
    ax = sg.pl.perturbation_scores(adata, metric, show=False, **options)  # type: ignore[arg-type]
    assert isinstance(ax, Axes)
    return ax


def drawn_means(ax: Axes) -> dict[str, float]:
    names = {round(y): label.get_text() for y, label in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)}
    points = [line for line in ax.lines if line.get_marker() in ("o", "D")]
    return {names[round(float(p.get_ydata()[0]))]: float(p.get_xdata()[0]) for p in points}  # type: ignore[index,arg-type]


def test_every_baseline_stands_beside_the_model(scored: AnnData) -> None:
    means = sg.get.perturbation_scores(scored, summary=True).query("group == 'all' and metric == 'pearson_delta'")
    expected = means.set_index("method")["mean"].drop("ceiling").to_dict()
    assert drawn_means(one(scored)) == pytest.approx(expected)
    assert list(expected) == ["model", *BASELINES]


def test_the_ceiling_is_a_line_and_the_model_stands_out(scored: AnnData) -> None:
    ax = one(scored)
    means = sg.get.perturbation_scores(scored, summary=True).set_index(["group", "metric", "method"])["mean"]
    lines = [line for line in ax.lines if line.get_label() == "ceiling of the data"]
    assert [line.get_xdata()[0] for line in lines] == [means["all", "pearson_delta", "ceiling"]]  # type: ignore[index]
    assert [t.get_text() for t in ax.get_yticklabels() if t.get_fontweight() == "bold"] == ["model"]
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["ceiling of the data"]


def test_undefined_scores_are_counted_in_the_picture(scored: AnnData) -> None:
    assert "4 of 4 undefined" in [text.get_text() for text in one(scored).texts]
    assert [text.get_text() for text in one(scored, "mse").texts] == []


def test_a_panel_for_each_metric(scored: AnnData) -> None:
    axes = sg.pl.perturbation_scores(scored, show=False)
    assert isinstance(axes, list)
    assert [ax.get_title() for ax in axes] == ["pearson_delta", "pearson_centroid", "mse", "wmse", "pds_cosine"]
    axes = sg.pl.perturbation_scores(scored, ["mae", "mse"], group="combo_seen2", show=False)
    assert isinstance(axes, list)
    means = sg.get.perturbation_scores(scored, summary=True).set_index(["group", "metric", "method"])["mean"]
    assert drawn_means(axes[0])["model"] == pytest.approx(means["combo_seen2", "mae", "model"])
    assert axes[0].get_xlabel() == "lower is better"


@pytest.mark.parametrize("metrics", [None, "pearson_delta"])
def test_names_of_many_baselines_do_not_overlap(scored: AnnData, metrics: str | None) -> None:
    table = scored.uns["evaluate_perturbation"]["summary"]
    more = [table[table["method"] == "ridge"].assign(method=f"a baseline with a long name {i}") for i in range(30)]
    scored.uns["evaluate_perturbation"]["summary"] = pd.concat([table, *more], ignore_index=True)
    made = sg.pl.perturbation_scores(scored, metrics, show=False)
    ax = made[0] if isinstance(made, list) else made
    assert isinstance(ax, Axes)
    assert_inside(*ax.get_yticklabels(), ax.get_legend(), ax.title)
    assert_apart(*ax.get_yticklabels(), ax.title, ax.get_legend())
    assert_apart(*ax.texts)


def test_draws_one_metric_on_given_axes(scored: AnnData) -> None:
    _, ax = plt.subplots()
    assert one(scored, ax=ax) is ax
    with pytest.raises(OptionError, match="ax= is for a single metric, but there are 5"):
        sg.pl.perturbation_scores(scored, ax=ax)


def test_scores_without_a_ceiling_are_drawn(scored: AnnData) -> None:
    table = scored.uns["evaluate_perturbation"]["summary"]
    scored.uns["evaluate_perturbation"]["summary"] = table[table["method"] != "ceiling"]
    assert np.isfinite(list(drawn_means(one(scored)).values())).all()


def test_what_is_not_there_is_named(scored: AnnData) -> None:
    with pytest.raises(MissingKeyError, match="no scores for metric 'r2'; choose from pearson_delta"):
        sg.pl.perturbation_scores(scored, "r2")
    with pytest.raises(MissingKeyError, match="no scores for group 'combo_seen0'; choose from all, "):
        sg.pl.perturbation_scores(scored, group="combo_seen0")
    with pytest.raises(MissingKeyError, match="Call sg.tl.evaluate_perturbation"):
        sg.pl.perturbation_scores(scored, key="mine")
    with pytest.raises(DataError, match="Expected an AnnData"):
        sg.pl.perturbation_scores(scored.X)
