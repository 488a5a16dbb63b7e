from typing import Literal

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mudata import MuData
from tests.drawing import assert_inside

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError


@pytest.fixture
def chosen(pbmc: AnnData) -> AnnData:
    sg.tl.select_genes(pbmc, 200, must_include=["CD3D", "CD8A"])
    return pbmc


def test_shares_are_those_of_the_ranked_list(chosen: AnnData) -> None:
    ax = sg.pl.gene_selection(chosen, show=False)
    assert isinstance(ax, Axes)
    table = chosen.uns["select_genes"]["sources"]
    _, labels = ax.get_legend_handles_labels()
    assert labels == [f"{name.replace('_', ' ')} ({n})" for name, n in table["n_selected"].items()]
    best = chosen.var[chosen.var["selected"]]
    expected = best["selected_source"].value_counts()
    below = 0.0
    for band, name in zip(ax.collections, table.index, strict=True):
        outline = np.asarray(band.get_paths()[0].vertices)
        heights = outline[outline[:, 0] == 200, 1]
        assert heights.min() == pytest.approx(below)
        below = heights.max()
        assert below - heights.min() == pytest.approx(100 * expected[name] / 200)
    assert below == pytest.approx(100)
    assert {np.asarray(line.get_xdata())[0] for line in ax.lines} == {200}


def test_curves_have_no_sawtooth(chosen: AnnData) -> None:
    ax = sg.pl.gene_selection(chosen, show=False)
    assert isinstance(ax, Axes)
    sources = chosen.var.dropna(subset="selected_rank").sort_values("selected_rank")["selected_source"].astype(str)
    counted = np.cumsum(sources.to_numpy() == "variable") / np.arange(1, len(sources) + 1)
    for band in ax.collections:
        heights = np.asarray(band.get_paths()[0].vertices)
        upper = heights[np.argsort(heights[:, 0], kind="stable")]
        assert upper[0, 0] == 20
    turns = np.abs(np.diff(counted[19:])).sum()
    variable = outline_of(ax, list(chosen.uns["select_genes"]["sources"].index).index("variable"))
    assert np.abs(np.diff(variable)).sum() < 60 * turns


def outline_of(ax: Axes, i: int) -> np.ndarray:
    """Heights of a band."""
    path = np.asarray(ax.collections[i].get_paths()[0].vertices)
    places = np.unique(path[:, 0])
    return np.array([np.ptp(path[path[:, 0] == x, 1]) for x in places])


def test_many_sources_with_long_names_fit(chosen: AnnData) -> None:
    names = [f"genes of a pathway with a long name, number {i}" for i in range(30)]
    chosen.var["selected_source"] = np.resize(names, chosen.n_vars)
    chosen.uns["select_genes"]["sources"] = pd.DataFrame({"n_selected": 1}, index=names)
    ax = sg.pl.gene_selection(chosen, show=False)
    assert isinstance(ax, Axes)
    assert len(ax.get_legend().get_texts()) == 30
    assert_inside(ax.get_legend(), ax.title, ax.xaxis.label, ax.yaxis.label)
    given = sg.pl.gene_selection(chosen, ax=plt.figure(figsize=(20, 4)).subplots(), show=False)
    assert isinstance(given, Axes)
    assert_inside(given.get_legend())


@pytest.mark.parametrize("layout", ["constrained", None])
def test_it_draws_on_figures_that_pyplot_does_not_know(chosen: AnnData, layout: Literal["constrained"] | None) -> None:
    ax = Figure(figsize=(7, 4.5), layout=layout).subplots()
    assert sg.pl.gene_selection(chosen, ax=ax, show=False) is ax
    assert_inside(ax.get_legend())


def test_it_draws_on_given_axes_and_changes_nothing(chosen: AnnData) -> None:
    before = chosen.copy()
    _, ax = plt.subplots()
    assert sg.pl.gene_selection(chosen, ax=ax) is ax
    assert list(chosen.uns) == list(before.uns)
    assert chosen.var.equals(before.var)


def test_another_key_is_read(pbmc: AnnData) -> None:
    sg.tl.select_genes(pbmc, 50, "expressed", key_added="mine")
    ax = sg.pl.gene_selection(pbmc, "mine", show=False)
    assert isinstance(ax, Axes)
    assert "50 of 765" in ax.get_title()


def test_what_is_missing_is_named(pbmc: AnnData) -> None:
    with pytest.raises(MissingKeyError, match=r"sg\.tl\.select_genes\(adata\)"):
        sg.pl.gene_selection(pbmc)
    with pytest.raises(MissingKeyError, match="key_added='mine'"):
        sg.pl.gene_selection(pbmc, "mine")
    with pytest.raises(DataError, match=r"mdata\['rna'\]"):
        sg.pl.gene_selection(MuData({"rna": AnnData(np.ones((2, 2), dtype=np.float32))}))
