from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import scgalore as sg
from scgalore.pl._axes import legend_right


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: calls.append(1))
    return calls


@pytest.mark.parametrize("plot", [sg.pl.history, sg.pl.confusion_matrix])
@pytest.mark.parametrize(
    ("show", "given", "is_shown"),
    [
        pytest.param(None, False, True, id="new_figure"),
        pytest.param(None, True, False, id="figure_still_being_composed"),
        pytest.param(True, True, True, id="show"),
        pytest.param(False, False, False, id="return"),
    ],
)
def test_figure_is_shown_or_its_axes_returned(
    tuned: AnnData, shown: list[int], plot: object, show: bool | None, given: bool, is_shown: bool
) -> None:
    ax = plt.subplots()[1] if given else None
    result = plot(tuned, ax=ax, show=show)
    assert (len(shown), result is None) == (is_shown, is_shown)
    assert len(plt.get_fignums()) == 1


def test_scanpys_autoshow_is_followed(tuned: AnnData, shown: list[int]) -> None:
    sc = pytest.importorskip("scanpy")
    before = sc.settings.autoshow
    try:
        sc.settings.autoshow = False
        assert sg.pl.history(tuned) is not None
    finally:
        sc.settings.autoshow = before
    assert shown == []


PLOTS = [sg.pl.history, sg.pl.confusion_matrix]


@pytest.mark.parametrize("plot", PLOTS)
def test_the_figure_can_be_returned_and_is_not_shown(tuned: AnnData, shown: list[int], plot: Any) -> None:
    figure = plot(tuned, return_fig=True)
    assert isinstance(figure, Figure)
    assert shown == []
    ax: Any = plt.figure().subfigures(1, 1).subplots()
    assert plot(tuned, ax=ax, return_fig=True) is ax.figure.figure


@pytest.mark.parametrize("plot", PLOTS)
def test_titles_are_those_of_the_caller(tuned: AnnData, plot: Any) -> None:
    assert plot(tuned, title="mine", show=False).get_title() == "mine"
    assert plot(tuned, title="", show=False).get_title() == ""


@pytest.fixture
def scanpy_settings() -> Iterator[Any]:
    """scanpy's settings, restored afterwards."""
    settings = pytest.importorskip("scanpy").settings
    before = {name: getattr(settings, name) for name in ("figdir", "file_format_figs", "autosave")}
    yield settings
    for name, value in before.items():
        setattr(settings, name, value)


@pytest.mark.parametrize(
    ("save", "expected"),
    [
        (True, "figures/history.svg"),
        ("_mine.png", "figures/history_mine.png"),
        (".png", "figures/history.png"),
        ("mine.png", "mine.png"),
        ("mine", "mine.svg"),
        (Path("a", "b", "mine.pdf"), "a/b/mine.pdf"),
        ("./mine.png", "mine.png"),
        (False, None),
    ],
)
def test_figures_are_saved_where_scanpy_saves_them(
    tuned: AnnData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scanpy_settings: Any,
    save: Any,
    expected: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    scanpy_settings.figdir = "figures"
    scanpy_settings.file_format_figs = "svg"
    assert isinstance(sg.pl.history(tuned, save=save, show=False), Axes)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")] == [expected] * (
        expected is not None
    )
    assert len(plt.get_fignums()) == (expected is None)  # a notebook draws open figures once more


def test_scanpys_autosave_is_followed_for_new_figures(tuned: AnnData, tmp_path: Path, scanpy_settings: Any) -> None:
    scanpy_settings.figdir = tmp_path
    scanpy_settings.autosave = True
    sg.pl.history(tuned, ax=plt.subplots()[1])
    assert list(tmp_path.iterdir()) == []
    sg.pl.history(tuned, show=False)
    assert [path.name for path in tmp_path.iterdir()] == [f"history.{scanpy_settings.file_format_figs}"]


def test_nothing_global_changes(tuned: AnnData) -> None:
    before = dict(mpl.rcParams)
    state = tuned.copy()
    sg.pl.history(tuned, show=False)
    sg.pl.confusion_matrix(tuned, show=False)
    assert dict(mpl.rcParams) == before
    assert list(tuned.uns) == list(state.uns)
    assert tuned.obs.equals(state.obs)
    assert tuned.uns["finetune"]["history"].equals(state.uns["finetune"]["history"])


def test_legend_fits_a_figure_that_no_window_shows() -> None:
    """As the figures of reports, which are made without pyplot."""
    axes = Figure(figsize=(4, 3)).subplots()
    axes.plot([0, 1], label="a long name of a source")
    width = axes.get_position().width
    legend_right(axes, own=False)
    assert 0 < axes.get_position().width < width
