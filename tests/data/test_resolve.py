import warnings
from pathlib import Path

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest

from scgalore.data.resolve import first_modality, resolve_adata, write_obs
from scgalore.errors import DataError, MissingKeyError, OptionError

pytestmark = [
    # mudata announces changes of its next version at every update and read.
    pytest.mark.filterwarnings("ignore::FutureWarning:mudata", "ignore::UserWarning:mudata"),
    pytest.mark.filterwarnings("ignore::anndata.ImplicitModificationWarning"),  # `fill` writes into views
]


def modality(names, n_vars=3):
    adata = ad.AnnData(np.ones((len(names), n_vars), dtype=np.float32))
    adata.obs_names = names
    adata.var_names = [f"{n_vars}_{i}" for i in range(n_vars)]
    return adata


@pytest.fixture
def mdata():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mudata.MuData({"rna": modality(["a", "b", "c", "d"]), "prot": modality(["c", "a", "e"], n_vars=2)})


def fill(adata):
    n = adata.n_obs
    adata.obs["label"] = pd.Categorical(list("xyxy")[:n], categories=["x", "y", "unused"])
    adata.obs["score"] = np.arange(n, dtype=np.float32)
    adata.obs["count"] = np.arange(n)
    adata.obs["held_out"] = np.arange(n) % 2 == 0
    return ["label", "score", "count", "held_out"]


def test_anndata_is_itself():
    adata = modality(["a", "b"])
    assert resolve_adata(adata, mod="ignored") is adata
    view = adata[:1]
    assert resolve_adata(view) is view
    keys = fill(adata)
    write_obs(adata, adata, keys)
    assert adata.obs.columns.tolist() == keys


def test_a_modality_is_not_a_copy(mdata):
    assert resolve_adata(mdata) is mdata["rna"]
    assert resolve_adata(mdata, mod="prot") is mdata["prot"]


@pytest.mark.parametrize("mod", ["rna", "prot"])
@pytest.mark.parametrize("names", [None, ["a", "b", "c"], ["e", "c", "a"]], ids=["whole", "view", "reordered-view"])
def test_columns_reach_the_mudata_by_name_and_survive_a_file(mdata, mod, names, tmp_path):
    data = mdata if names is None else mdata[names]
    adata = resolve_adata(data, mod=mod)
    keys = fill(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_obs(data, adata, keys, mod)
    data.write(tmp_path / "x.h5mu")
    for found in (data, mudata.read_h5mu(tmp_path / "x.h5mu")):
        for key in keys:
            column = found.obs[f"{mod}:{key}"]
            for name in data.obs_names:
                value = column[name]
                assert pd.isna(value) if name not in adata.obs_names else value == adata.obs.loc[name, key]
    assert data.obs[f"{mod}:label"].cat.categories.tolist() == adata.obs["label"].cat.categories.tolist()


def test_columns_of_complete_modalities_keep_their_type():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = mudata.MuData({"rna": modality(["a", "b"])})
    keys = fill(mdata["rna"])
    write_obs(mdata, mdata["rna"], keys)
    assert [str(mdata.obs[f"rna:{key}"].dtype) for key in keys] == ["category", "float32", "int64", "bool"]


def test_unknown_modality_lists_those_there_are(mdata):
    with pytest.raises(MissingKeyError, match="no modality 'gex'; it has 'rna', 'prot'"):
        resolve_adata(mdata, mod="gex")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("pbmc.h5ad", "found str; read the file first"),
        (Path("pbmc.h5ad"), "read the file first"),
        (np.ones((2, 2)), "found ndarray; wrap it"),
        (pd.DataFrame({"a": [1]}), "found DataFrame; wrap it"),
        (None, "found NoneType."),
    ],
    ids=["path", "pathlib", "array", "frame", "none"],
)
def test_other_things_are_refused(data, says):
    with pytest.raises(TypeError, match=says):
        resolve_adata(data)


def test_raw_is_refused_with_the_call_that_helps():
    adata = modality(["a"])
    adata.raw = adata
    with pytest.raises(TypeError, match=r"adata.raw.to_adata\(\)"):
        resolve_adata(adata.raw)


@pytest.mark.parametrize("slot", ["obs", "var"])
def test_tables_that_are_not_in_memory_are_refused(slot, monkeypatch):
    class Dataset2D:  # what anndata.experimental.read_lazy has in the place of a table
        pass

    adata = modality(["a", "b"])
    monkeypatch.setattr(ad.AnnData, slot, Dataset2D())
    with pytest.raises(DataError, match=rf"adata.{slot} is a Dataset2D.*adata.to_memory\(\)"):
        resolve_adata(adata)


def test_repeated_names_are_found_before_any_work():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = mudata.MuData({"rna": modality(["a", "b"])})
        mdata.mod["rna"].obs_names = ["a", "a"]
    with pytest.raises(DataError, match="repeated obs_names"):
        resolve_adata(mdata)


def test_two_modalities_are_told_from_one(mdata):
    assert first_modality(mdata, "rna") == ("rna", None)
    mod, second = first_modality(mdata, ("rna", "prot"))
    assert mod == "rna"
    assert second is mdata["prot"]
    for mod in (["rna"], ["rna", "rna"], ["rna", "prot", "atac"], ["rna", 3], 3, None):
        with pytest.raises(OptionError, match="expected the name of one modality, or of two"):
            first_modality(mdata, mod)
    with pytest.raises(MissingKeyError, match="'atac'"):
        first_modality(mdata, ["rna", "atac"])
    with pytest.raises(OptionError, match="found an AnnData"):
        first_modality(mdata["rna"], ["rna", "prot"])
