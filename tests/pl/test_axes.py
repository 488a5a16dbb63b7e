import matplotlib as mpl
import pytest
from anndata import AnnData
from matplotlib import pyplot as plt

import scgalore as sg


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


def test_nothing_global_changes(tuned: AnnData) -> None:
    before = dict(mpl.rcParams)
    state = tuned.copy()
    sg.pl.history(tuned, show=False)
    sg.pl.confusion_matrix(tuned, show=False)
    assert dict(mpl.rcParams) == before
    assert list(tuned.uns) == list(state.uns)
    assert tuned.obs.equals(state.obs)
    assert tuned.uns["finetune"]["history"].equals(state.uns["finetune"]["history"])
