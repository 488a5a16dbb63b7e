from typing import Any

import pandas as pd
import pytest

from scgalore.errors import MissingKeyError, OptionError
from scgalore.perturb.labels.reading import condition_texts, label_options, read_conditions

OBS = pd.DataFrame({"drug": ["ctrl", "A+B", "A+B", "A"], "dose": [0, 1, 2.5, 1]})


def test_a_label_is_genes_or_one_compound() -> None:
    assert read_conditions(OBS, pert_key="drug").perturbations == ("A+B", "A")
    found = read_conditions(OBS, pert_key="drug", pert_kind="compound", dose_key="dose")
    assert found.perturbations == ("A+B@1", "A+B@2.5", "A@1")
    assert read_conditions(OBS, pert_key="drug", pert_kind="compound").perturbations == ("A+B@1", "A@1")


def test_cells_are_counted_by_label_and_dose() -> None:
    assert condition_texts(OBS, {"pert_key": "drug"}).tolist() == OBS["drug"].tolist()
    texts = condition_texts(OBS, {"pert_key": "drug", "dose_key": "dose"}).tolist()
    assert texts == ["ctrl", "A+B@1", "A+B@2.5", "A@1"]


def test_parameters_of_earlier_versions_are_of_genes() -> None:
    options = label_options({"pert_key": "drug", "control": "ctrl", "split_key": "split"})
    assert options == {"pert_key": "drug", "control": "ctrl", "separator": None, "pert_kind": "gene", "dose_key": None}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        pytest.param(
            {"dose_key": "dose"}, OptionError, "dose_key='dose' belongs to pert_kind='compound'", id="gene_dose"
        ),
        pytest.param(
            {"pert_kind": "drug"}, OptionError, "pert_kind='drug': choose one of 'gene', 'compound'", id="kind"
        ),
        pytest.param({"pert_kind": "compound", "separator": "_"}, OptionError, "is one compound", id="separator"),
        pytest.param(
            {"pert_kind": "compound", "dose_key": "mM"}, MissingKeyError, "dose_key='mM' is not a column", id="key"
        ),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_conditions(OBS, pert_key="drug", **options)
