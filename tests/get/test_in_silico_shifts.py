import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData
from tests.in_silico import changed

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError


def test_one_group_or_all_as_a_copy() -> None:
    adata = changed()
    assert len(sg.get.in_silico_shifts(adata)) == 80
    table = sg.get.in_silico_shifts(adata, "1")
    assert (len(table), table.index[0], set(table["group"])) == (40, 0, {"1"})
    table["shift"] = -1.0
    assert (sg.get.in_silico_shifts(adata)["shift"] > 0).all()
    pd.testing.assert_frame_equal(sg.get.in_silico_shifts(adata, 1), sg.get.in_silico_shifts(adata, "1"))


def test_what_is_not_there_names_the_call() -> None:
    with pytest.raises(MissingKeyError, match=r"in adata.uns\['mine'\]. Call sg.tl.perturb_in_silico"):
        sg.get.in_silico_shifts(changed(), key="mine")
    with pytest.raises(MissingKeyError, match="This table has no group 'B'; choose from '0', '1'"):
        sg.get.in_silico_shifts(changed(), "B")
    with pytest.raises(DataError, match="Pass the modality"):
        sg.get.in_silico_shifts(MuData({"rna": AnnData(np.zeros((2, 2)))}))
