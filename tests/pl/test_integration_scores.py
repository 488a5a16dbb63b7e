import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

import scgalore as sg
from scgalore.errors import MissingKeyError


@pytest.fixture
def scored() -> AnnData:
    rng = np.random.default_rng(0)
    labels, batches = np.repeat([0, 1], 60), np.tile([0, 1], 60)
    obs = pd.DataFrame({"batch": batches.astype(str), "label": labels.astype(str)}, index=[str(i) for i in range(120)])
    adata = AnnData(np.zeros((120, 1), dtype=np.float32), obs=obs)
    adata.obsm["X_noise"] = rng.normal(size=(120, 4)) + 5 * batches[:, None]
    adata.obsm["X_good"] = rng.normal(size=(120, 4)) + 5 * labels[:, None]
    sg.tl.evaluate_integration(
        adata, "batch", "label", embeddings=["X_noise", "X_good"], baselines=(), unintegrated="X_noise"
    )
    return adata


def drawn(adata: AnnData) -> Axes:
    ax = sg.pl.integration_scores(adata, show=False)
    assert isinstance(ax, Axes)
    return ax


def test_rows_are_in_the_order_of_the_total_and_hold_every_score(scored: AnnData) -> None:
    ax = drawn(scored)
    rows = {label.get_text(): y for y, label in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)}
    assert list(rows) == ["X_good", "X_noise"]
    for name, scores in sg.get.integration_scores(scored).iterrows():
        here = [text.get_text() for text in ax.texts if text.get_position()[1] == rows[str(name)]]
        assert here == [f"{value:.2f}" for value in scores]


def test_bars_are_as_long_as_the_means(scored: AnnData) -> None:
    ax = drawn(scored)
    bars = [patch for patch in ax.patches if isinstance(patch, Rectangle)][1::2]  # each on top of one that is full
    means = sg.get.integration_scores(scored).loc[["X_good", "X_noise"], ["bio", "batch", "total"]]
    assert [bar.get_width() / 0.9 for bar in bars] == pytest.approx(means.to_numpy().T.ravel())


def test_the_best_of_a_column_is_bold_and_what_is_undefined_a_dash(scored: AnnData) -> None:
    table = scored.uns["evaluate_integration"]["scores"]
    table["kbet"] = np.nan
    table.loc["X_noise", "nmi"] = 2.0
    ax = drawn(scored)
    assert [text.get_position()[1] for text in ax.texts if text.get_text() == "–"] == [0, 1]
    assert [text.get_fontweight() for text in ax.texts if text.get_text() == "2.00"] == ["bold"]


def test_given_axes_are_drawn_on_and_nothing_is_computed(scored: AnnData) -> None:
    before = scored.uns["evaluate_integration"]["scores"].copy()
    _, ax = plt.subplots()
    assert sg.pl.integration_scores(scored, ax=ax) is ax
    pd.testing.assert_frame_equal(scored.uns["evaluate_integration"]["scores"], before)
    with pytest.raises(MissingKeyError, match="Call sg.tl.evaluate_integration"):
        sg.pl.integration_scores(scored, key="mine", ax=ax)
