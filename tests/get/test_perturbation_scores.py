import pytest
from anndata import AnnData
from mudata import MuData
from tests.screens import screen, write_prediction

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError


@pytest.fixture
def scored() -> AnnData:
    adata = screen()
    write_prediction(adata)
    sg.tl.evaluate_perturbation(adata, de=False, n_bootstrap=20)
    return adata


def test_scores_are_tidy(scored: AnnData) -> None:
    table = sg.get.perturbation_scores(scored)
    assert list(table.columns) == ["method", "perturbation", "context", "group", "metric", "value"]
    assert not table.duplicated(["method", "perturbation", "context", "metric"]).any()


def test_summary_has_one_row_for_each_method_metric_and_group(scored: AnnData) -> None:
    table = sg.get.perturbation_scores(scored, summary=True)
    assert {"mean", "low", "high", "n", "n_nan", "gap_closed"} <= set(table.columns)
    assert not table.duplicated(["method", "metric", "group"]).any()


@pytest.mark.parametrize("summary", [True, False])
def test_changing_the_table_changes_nothing_else(scored: AnnData, summary: bool) -> None:
    table = sg.get.perturbation_scores(scored, summary=summary)
    table["metric"] = "none"
    assert "none" not in set(sg.get.perturbation_scores(scored, summary=summary)["metric"])


def test_missing_scores_name_the_call(scored: AnnData) -> None:
    with pytest.raises(MissingKeyError, match=r"no scores in adata.uns\['mine'\]. Call sg.tl.evaluate_perturbation"):
        sg.get.perturbation_scores(scored, key="mine")
    with pytest.raises(DataError, match="Pass the modality"):
        sg.get.perturbation_scores(MuData({"rna": scored}))
