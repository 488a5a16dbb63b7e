import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError


@pytest.fixture
def scored() -> AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {"batch": ["a", "b"] * 30, "label": ["x", "x", "y", "y"] * 15}, index=[str(i) for i in range(60)]
    )
    adata = AnnData(np.zeros((60, 1), dtype=np.float32), obs=obs, obsm={"X_one": rng.normal(size=(60, 3))})
    sg.tl.evaluate_integration(adata, "batch", "label", embeddings="X_one", baselines=(), unintegrated="X_one")
    return adata


def test_the_table_is_a_copy(scored: AnnData) -> None:
    table = sg.get.integration_scores(scored)
    assert list(table.index) == ["X_one"]
    table["total"] = -1.0
    assert (sg.get.integration_scores(scored)["total"] > 0).all()


def test_missing_scores_name_the_call(scored: AnnData) -> None:
    with pytest.raises(MissingKeyError, match=r"no scores in adata.uns\['mine'\]. Call sg.tl.evaluate_integration"):
        sg.get.integration_scores(scored, key="mine")
    with pytest.raises(DataError, match="Pass the modality"):
        sg.get.integration_scores(MuData({"rna": scored}))
