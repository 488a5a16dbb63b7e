import anndata as ad
import pandas as pd
import pytest
import scipy.sparse as sp
from tests.parity_plugin import compare

import scgalore as sg


@pytest.fixture(scope="module")
def theirs(original):
    return original.arrays("embed")


@pytest.fixture
def adata(theirs):
    return ad.AnnData(sp.csr_matrix(theirs["X"]), var=pd.DataFrame(index=theirs["var_names"].astype(str)))


def test_embeddings_of_the_original(original, theirs, adata, agree):
    sg.tl.embed(adata, original.folder())
    agree("embed/X_scGPT", adata.obsm["X_scGPT"], theirs["X_scGPT"])
    dropped = adata.uns["embed"]["genes"]["dropped"]
    agree("embed/kept_var_names", adata.var_names.difference(dropped, sort=False), theirs["kept_var_names"])
    assert adata.uns["embed"]["genes"]["matched"] == 140


@pytest.mark.parametrize("batch_size", [1, 5])
def test_batches_do_not_matter(original, theirs, adata, batch_size):
    sg.tl.embed(adata, original.folder(), batch_size=batch_size, key_added="again")
    assert compare("X_scGPT", adata.obsm["again"], theirs["X_scGPT"]).holds
