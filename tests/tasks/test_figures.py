import os
import subprocess
import sys

import pytest

CODE = """
import anndata, numpy as np, pandas as pd, torch
from matplotlib import pyplot as plt
from scgalore.tasks.figures import umap
adata = anndata.AnnData(np.ones((40, 2), "float32"), obs=pd.DataFrame({"part": pd.Categorical(["a", "b"] * 20), "age": np.arange(40.0)}))
adata.obs_names = adata.obs_names.astype(str)
adata.obsm["X_scGPT"] = np.random.default_rng(0).normal(size=(40, 8)).astype("float32")
((_, draw),) = umap(["part", "age"], ["part", "age"], adata.n_obs, use_rep="X_scGPT").values()
figure = draw(adata)
print(adata.obsm["X_umap"].shape, torch.get_num_threads(), len(figure.axes), plt.get_fignums())
"""


@pytest.mark.slow
def test_a_picture_changes_neither_pyplot_nor_the_threads_that_the_next_run_trains_with() -> None:
    # numba sets torch's number of threads where it has more of its own, once in a process.
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split("\n")[0] == "(40, 2) 1 3 []", done.stderr[-2000:]
