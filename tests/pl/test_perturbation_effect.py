import numpy as np
import pytest
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from tests.screens import screen, write_prediction

import scgalore as sg
from scgalore.errors import MissingKeyError, OptionError


@pytest.fixture(scope="module")
def _scored_once() -> AnnData:
    adata = screen()
    write_prediction(adata)
    sg.tl.evaluate_perturbation(adata, de=False, n_bootstrap=20)
    return adata


@pytest.fixture
def scored(_scored_once: AnnData) -> AnnData:
    return _scored_once.copy()


def drawn(adata: AnnData, perturbation: str = "G00+G01", **options: object) -> Axes:
    ax = sg.pl.perturbation_effect(adata, perturbation, show=False, **options)  # type: ignore[arg-type]
    assert isinstance(ax, Axes)
    return ax


def test_points_are_observed_and_predicted_effects(scored: AnnData) -> None:
    points = np.asarray(drawn(scored).collections[0].get_offsets())
    observed = scored.uns["evaluate_perturbation"]["observed"]["G00+G01"]
    predicted = scored.uns["predict_perturbation"]["effects"]["G00+G01"]
    np.testing.assert_allclose(points, np.column_stack([observed, predicted]), rtol=1e-6)


def test_title_has_the_score_and_the_number_of_genes(scored: AnnData) -> None:
    points = np.asarray(drawn(scored).collections[0].get_offsets())
    r = np.corrcoef(points.T)[0, 1]
    assert drawn(scored).get_title() == f"G00+G01\nPearson {r:.2f}, 40 genes"
    table = scored.uns["evaluate_perturbation"]["scores"]
    scored.uns["evaluate_perturbation"]["scores"] = table[table["metric"] != "pearson_delta"]
    assert drawn(scored).get_title() == "G00+G01\n40 genes"


def test_names_do_not_overlap_and_are_those_of_the_largest_effects(scored: AnnData) -> None:
    ax = drawn(scored, n_labels=15)
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) > 5
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    observed = scored.uns["evaluate_perturbation"]["observed"]["G00+G01"].abs()
    predicted = scored.uns["predict_perturbation"]["effects"]["G00+G01"].abs()
    largest = np.maximum(observed, predicted).nlargest(15).index
    assert {text.get_text() for text in ax.texts} <= set(largest)
    assert drawn(scored, n_labels=0).texts[:] == []


def test_order_of_genes_in_the_name_does_not_matter(scored: AnnData) -> None:
    assert drawn(scored, "G01+G00").get_title() == drawn(scored).get_title()


def test_contexts_are_told_apart() -> None:
    adata = screen(contexts=("K562", "RPE1"))
    write_prediction(adata, contexts=True)
    sg.tl.evaluate_perturbation(adata, de=False, n_bootstrap=20)
    titles = [drawn(adata, "G01+G00", context=line).get_title() for line in ("K562", "RPE1")]
    assert titles[0].startswith("K562 | G00+G01\nPearson ")
    assert titles[0] != titles[1]
    with pytest.raises(MissingKeyError, match="similar ones: K562 | G05"):
        drawn(adata, "G05")


def test_draws_on_given_axes_and_without_any_effect(scored: AnnData) -> None:
    _, ax = plt.subplots()
    scored.uns["evaluate_perturbation"]["observed"]["G05"] = 0.0
    scored.uns["predict_perturbation"]["effects"]["G05"] = 0.0
    assert drawn(scored, "G05", ax=ax) is ax
    assert ax.texts[:] == []


def test_what_is_not_there_is_named(scored: AnnData) -> None:
    with pytest.raises(MissingKeyError, match="'G30' is not among the 4 scored perturbations"):
        drawn(scored, "G30")
    with pytest.raises(OptionError, match="n_labels=-1"):
        drawn(scored, n_labels=-1)
    del scored.uns["predict_perturbation"]
    with pytest.raises(MissingKeyError, match="no longer contains the scored prediction"):
        drawn(scored)
