import pandas as pd
import pytest
from mudata import MuData
from tests.screens import screen, write_prediction

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError


def test_effects_have_one_perturbation_a_row() -> None:
    adata = screen()
    write_prediction(adata)
    table = sg.get.perturbation_effects(adata)
    assert list(table.columns) == list(adata.var_names)
    assert list(table.index) == list(adata.uns["predict_perturbation"]["rows"].index)
    effects = adata.uns["predict_perturbation"]["effects"]
    pd.testing.assert_frame_equal(table.T, effects)


def test_changing_the_table_changes_nothing_else() -> None:
    adata = screen()
    write_prediction(adata, key="mine")
    before = sg.get.perturbation_effects(adata, key="mine")
    mine = sg.get.perturbation_effects(adata, key="mine")
    mine.iloc[:, :] = 0
    pd.testing.assert_frame_equal(sg.get.perturbation_effects(adata, key="mine"), before)


def test_missing_prediction_names_the_call() -> None:
    adata = screen()
    with pytest.raises(MissingKeyError, match=r"no prediction in adata.uns\['mine'\]. Call sg.tl.predict_perturbation"):
        sg.get.perturbation_effects(adata, key="mine")
    with pytest.raises(DataError, match="Pass the modality"):
        sg.get.perturbation_effects(MuData({"rna": adata}))
