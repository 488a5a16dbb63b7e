import os
import subprocess
import sys

import pytest

CODE = """
import anndata, numpy as np, pandas as pd, torch
from scgalore.tasks.figures import umap
adata = anndata.AnnData(np.ones((40, 2), "float32"), obs=pd.DataFrame({"part": pd.Categorical(["a", "b"] * 20)}))
adata.obs_names = adata.obs_names.astype(str)
adata.obsm["X_scGPT"] = np.random.default_rng(0).normal(size=(40, 8)).astype("float32")
((_, draw),) = umap(["part"], ["part"], adata.n_obs).values()
draw(adata)
print(adata.obsm["X_umap"].shape, torch.get_num_threads())
"""


@pytest.mark.slow
def test_a_picture_does_not_change_the_threads_that_the_next_run_trains_with() -> None:
    # numba sets torch's number of threads where it has more of its own, once in a process.
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split("\n")[0] == "(40, 2) 1", done.stderr[-2000:]
