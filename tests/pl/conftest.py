import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

CLASSES = ["B", "CD4+/CD45RO+ Memory", "Dendritic", "NK"]


@pytest.fixture
def tuned() -> AnnData:
    """Ten cells as ``sg.tl.finetune`` leaves them; seven held out, none of class NK among them."""
    truth = ["B", "B", "B", "Dendritic", "Dendritic", "CD4+/CD45RO+ Memory", "CD4+/CD45RO+ Memory", "NK", "NK", "B"]
    predicted = ["B", "B", "NK", "Dendritic", "B", "CD4+/CD45RO+ Memory", "CD4+/CD45RO+ Memory", "NK", "B", "B"]
    adata = AnnData(np.zeros((10, 1), dtype=np.float32))
    adata.obs["cell_type"] = pd.Categorical(truth)
    adata.obs["scgpt_label"] = pd.Categorical(predicted, categories=CLASSES)
    adata.obs["scgpt_split"] = pd.Categorical(["test"] * 7 + ["train"] * 3, categories=["train", "validation", "test"])
    history = pd.DataFrame(
        {
            "lr": [1e-4, 5e-5, 1e-6],
            "seconds": 1.0,
            "train_loss": [2.0, 1.0, 0.5],
            "validation_loss": [1.8, 1.1, 1.2],
            "train_accuracy": [0.2, 0.5, 0.8],
            "validation_accuracy": [0.3, 0.6, 0.65],
        },
        index=pd.RangeIndex(3, name="epoch"),
    )
    adata.uns["finetune"] = {
        "params": {"labels_key": "cell_type"},
        "history": history,
        "training": {"best_epoch": 1, "optimizer_bytes": 1},
        "classes": CLASSES,
        "weights": {"name": "scgpt-mini", "sha256": ""},
    }
    return adata
