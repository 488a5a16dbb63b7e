from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from tests.screens import TEST, screen, write_prediction

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.perturb.predictions.ranking import ranked_genes


def predicted_screen(**options: Any) -> AnnData:
    """A screen with a prediction; means are never negative, as predict_perturbation writes them."""
    adata = screen(**options)
    write_prediction(adata, contexts=bool(options))
    result = adata.uns["predict_perturbation"]
    clipped = result["means"].clip(lower=0)
    result["effects"] += clipped - result["means"]
    result["means"] = clipped
    return adata


@pytest.fixture(scope="module")
def _predicted_once() -> AnnData:
    return predicted_screen()


@pytest.fixture
def predicted(_predicted_once: AnnData) -> AnnData:
    return _predicted_once.copy()


@pytest.fixture(scope="module")
def lines() -> AnnData:
    return predicted_screen(contexts=("K562", "RPE1"))


def drawn(cells: AnnData, condition: str) -> AnnData:
    return cells[(cells.obs["condition"] == condition) & cells.obs["predicted"]]


def same(a: AnnData, b: AnnData) -> bool:
    return list(a.obs_names) == list(b.obs_names) and abs(a.X - b.X).max() == 0


def test_means_of_the_cells_are_the_predicted_ones(predicted: AnnData) -> None:
    cells = sg.get.perturbed_cells(predicted, n_cells=400)
    means = predicted.uns["predict_perturbation"]["means"]
    for name in TEST:
        found = np.asarray(drawn(cells, name).X.mean(axis=0)).ravel()
        common = means[name].to_numpy() > 0.05
        np.testing.assert_allclose(found[common], means[name].to_numpy()[common], rtol=1e-4)


def test_control_cells_come_along_as_they_are(predicted: AnnData) -> None:
    cells = sg.get.perturbed_cells(predicted)
    real = cells[~cells.obs["predicted"]]
    assert (real.obs["perturbation"] == "control").all()
    own = predicted[predicted.obs["perturbation"] == "control"]
    assert list(real.obs_names) == list(own.obs_names)
    assert abs(real.X - own.X.astype(np.float32)).max() == 0
    without = sg.get.perturbed_cells(predicted, with_control=False)
    assert without.obs["predicted"].all()
    assert without.n_obs == cells.n_obs - own.n_obs


def test_cells_look_like_those_of_the_object(predicted: AnnData) -> None:
    predicted.var["chromosome"] = "1"
    cells = sg.get.perturbed_cells(predicted)
    pd.testing.assert_frame_equal(cells.var, predicted.var)
    assert cells.X.format == "csr"
    assert cells.X.dtype == np.float32
    assert cells.X.min() >= 0
    assert list(cells.obs.columns) == ["perturbation", "context", "condition", "predicted"]
    assert cells.obs_names.is_unique


def test_numbers_of_cells_are_those_measured(predicted: AnnData) -> None:
    fewer = predicted[~((predicted.obs["perturbation"] == "G05") & (np.arange(predicted.n_obs) % 4 > 0))].copy()
    fewer = fewer[fewer.obs["perturbation"] != "G04"].copy()
    sizes = sg.get.perturbed_cells(fewer, with_control=False).obs["perturbation"].value_counts().to_dict()
    assert sizes == {"G00+G01": 20, "G02+G03": 20, "G05": 5, "G04": 20}  # G04: the median
    alone = fewer[fewer.obs["perturbation"] == "control"].copy()
    assert set(sg.get.perturbed_cells(alone, with_control=False).obs["perturbation"].value_counts()) == {40}
    assert sg.get.perturbed_cells(fewer, "G05", n_cells=3, with_control=False).n_obs == 3


def test_order_of_genes_and_of_perturbations_does_not_matter(predicted: AnnData) -> None:
    both = sg.get.perturbed_cells(predicted, ["G01+G00", "G05"])
    assert list(both.obs["perturbation"].cat.categories) == ["G00+G01", "G05", "control"]
    for name in ("G00+G01", "G05"):
        assert same(drawn(both, name), drawn(sg.get.perturbed_cells(predicted, name), name))
    assert same(both, sg.get.perturbed_cells(predicted, ["G00+G01", "G05", "G05", "G01+G00"]))


def test_seed_is_that_of_the_prediction_unless_another_is_given(predicted: AnnData) -> None:
    assert same(sg.get.perturbed_cells(predicted), sg.get.perturbed_cells(predicted, rng=0))
    assert not same(sg.get.perturbed_cells(predicted), sg.get.perturbed_cells(predicted, rng=1))
    predicted.uns["predict_perturbation"]["params"]["rng"] = 1
    assert same(sg.get.perturbed_cells(predicted), sg.get.perturbed_cells(predicted, rng=1))


def test_perturbations_do_not_share_draws(predicted: AnnData) -> None:
    means = predicted.uns["predict_perturbation"]["means"]
    means["G04"] = means["G05"]
    cells = sg.get.perturbed_cells(predicted)
    assert abs(drawn(cells, "G04").X - drawn(cells, "G05").X).max() > 0


def test_each_context_has_its_own_control(lines: AnnData) -> None:
    cells = sg.get.perturbed_cells(lines, "G05")
    conditions = ["K562 | G05", "RPE1 | G05", "K562 | control", "RPE1 | control"]
    assert list(cells.obs["condition"].cat.categories) == conditions
    for line in ("K562", "RPE1"):
        real = cells[cells.obs["condition"] == f"{line} | control"]
        own = (lines.obs["cell_line"] == line) & (lines.obs["perturbation"] == "control")
        assert list(real.obs_names) == list(lines.obs_names[own])
    one = sg.get.perturbed_cells(lines, "K562 | G05")
    assert set(one.obs["context"]) == {"K562"}
    assert same(drawn(one, "K562 | G05"), drawn(cells, "K562 | G05"))


def test_counts_are_read_as_they_were_for_the_prediction(predicted: AnnData) -> None:
    # Logarithms of counts that sum to 10,000 a cell give the same cells as the counts themselves.
    x = predicted.X.copy()
    x.data = np.rint(np.expm1(x.data) * 7)
    counts = AnnData(x, obs=predicted.obs, var=predicted.var, uns=predicted.uns)
    logged = counts.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    difference = sg.get.perturbed_cells(counts).X - sg.get.perturbed_cells(logged).X
    assert abs(difference).max() < 1e-4


def test_record_is_that_of_the_prediction(predicted: AnnData) -> None:
    result = predicted.uns["predict_perturbation"]
    whole = ranked_genes(result["effects"], result["means"], groupby="perturbation")
    mine = sg.get.perturbed_cells(predicted, ["G05", "G00+G01"]).uns["rank_genes_groups"]
    assert mine["names"].dtype.names == ("G05", "G00+G01")
    for name in mine["names"].dtype.names:
        for field in ("names", "scores", "logfoldchanges"):
            assert list(mine[field][name]) == list(whole[field][name])


@pytest.mark.filterwarnings("ignore")  # scanpy's, about dendrograms
@pytest.mark.parametrize("case", ["one context", "contexts", "symbols", "read from a file"])
def test_plots_of_scanpy_work(predicted: AnnData, lines: AnnData, case: str, tmp_path: Path) -> None:
    adata = lines if case == "contexts" else predicted
    if case == "symbols":
        adata.var["symbol"] = adata.var_names
        adata.var_names = [f"ENSG{i:011d}" for i in range(adata.n_vars)]
        adata.uns["predict_perturbation"]["params"]["gene_symbols"] = "symbol"
    if case == "read from a file":
        adata.write_h5ad(tmp_path / "a.h5ad")
        adata = anndata.read_h5ad(tmp_path / "a.h5ad")
    cells = sg.get.perturbed_cells(adata)
    sc.pl.rank_genes_groups(cells, n_genes=3, show=False)
    axes = sc.pl.rank_genes_groups_dotplot(cells, n_genes=2, dendrogram=False, show=False)["mainplot_ax"]
    shown = {text.get_text() for text in axes.get_yticklabels()}
    assert shown == set(cells.obs["condition"].cat.categories)
    sc.pl.rank_genes_groups_heatmap(cells, n_genes=2, dendrogram=False, show=False)
    first = cells.obs["condition"].cat.categories[0]
    table = sc.get.rank_genes_groups_df(cells, first)
    effects = adata.uns["predict_perturbation"]["effects"][first]
    assert table["scores"].iloc[0] == pytest.approx(effects.max())
    assert table["names"].iloc[0] == cells.var_names[effects.argmax()]


def test_object_is_left_alone(predicted: AnnData) -> None:
    before = predicted.copy()
    cells = sg.get.perturbed_cells(predicted)
    cells.X[:] = 0
    cells.var["new"] = 1
    assert abs(predicted.X - before.X).max() == 0
    assert list(predicted.var.columns) == list(before.var.columns)
    assert list(predicted.uns) == list(before.uns)


def test_what_cannot_be_drawn_is_refused(predicted: AnnData, lines: AnnData) -> None:
    with pytest.raises(OptionError, match="n_cells=0"):
        sg.get.perturbed_cells(predicted, n_cells=0)
    with pytest.raises(OptionError, match="perturbations is empty"):
        sg.get.perturbed_cells(predicted, [])
    with pytest.raises(MissingKeyError, match=r"'G5' is not among the 4 perturbations.*similar ones: G05"):
        sg.get.perturbed_cells(predicted, "G5")
    with pytest.raises(MissingKeyError, match="no prediction"):
        sg.get.perturbed_cells(predicted, key="mine")
    with pytest.raises(DataError, match="40 genes, which differ from the 39"):
        sg.get.perturbed_cells(predicted[:, 1:].copy())
    gone = lines[~((lines.obs["perturbation"] == "control") & (lines.obs["cell_line"] == "RPE1"))].copy()
    with pytest.raises(DataError, match="no longer has control cells of context 'RPE1'"):
        sg.get.perturbed_cells(gone, "RPE1 | G05")
    del predicted.obs["perturbation"]
    with pytest.raises(MissingKeyError, match="pert_key='perturbation' is not a column"):
        sg.get.perturbed_cells(predicted)
