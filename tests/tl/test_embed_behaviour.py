from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from mudata import MuData

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.model import SCGPT


def keys(adata: AnnData) -> dict[str, set[str]]:
    return {slot: set(getattr(adata, slot)) for slot in ("obs", "var", "obsm", "varm", "obsp", "layers", "uns")}


def added(adata: AnnData, before: dict[str, set[str]]) -> dict[str, set[str]]:
    return {slot: names - before[slot] for slot, names in keys(adata).items() if names != before[slot]}


class TestKeys:
    def test_default(self, few: AnnData, model: SCGPT) -> None:
        before = keys(few)
        assert sg.tl.embed(few, model) is None
        assert added(few, before) == {"obsm": {"X_scGPT"}, "uns": {"embed"}}
        np.testing.assert_array_equal(few.obsm["X_scGPT"], model.get_latent_representation(few))

    def test_key_added_is_taken_verbatim(self, few: AnnData, model: SCGPT) -> None:
        before = keys(few)
        sg.tl.embed(few, model, key_added="X other")
        assert added(few, before) == {"obsm": {"X other"}, "uns": {"X other"}}

    @pytest.mark.parametrize("key_added", [3, "", "a/b", ["x"]])
    def test_key_that_no_file_holds_is_refused(self, few: AnnData, model: SCGPT, key_added: object) -> None:
        before = keys(few)
        with pytest.raises(OptionError, match="key_added="):
            sg.tl.embed(few, model, key_added=key_added)  # type: ignore[arg-type]
        assert added(few, before) == {}

    def test_uns_tells_how_it_was_made(self, few: AnnData, model: SCGPT, tmp_path: Path) -> None:
        few.var["symbol"] = few.var_names
        few.var_names = [f"row{i}" for i in range(few.n_vars)]
        sg.tl.embed(few, model, gene_symbols="symbol", max_length=20, rng=3)
        content = few.uns["embed"]
        assert content["params"].items() >= {"gene_symbols": "symbol", "max_length": 20, "rng": 3}.items()
        assert content["weights"]["name"] == "random"
        assert content["genes"]["matched"] == 150
        few.write_h5ad(tmp_path / "few.h5ad")
        assert keys(anndata.read_h5ad(tmp_path / "few.h5ad")) == keys(few)


class TestContainers:
    def test_copy_has_the_type_that_was_given(self, few: AnnData, model: SCGPT) -> None:
        before = keys(few)
        copied = sg.tl.embed(few, model, copy=True)
        assert isinstance(copied, AnnData)
        assert added(copied, before) == {"obsm": {"X_scGPT"}, "uns": {"embed"}}
        mdata = MuData({"rna": few})
        copied = sg.tl.embed(mdata, model, copy=True)
        assert isinstance(copied, MuData)
        assert "X_scGPT" in copied["rna"].obsm
        assert added(few, before) == {}

    def test_copy_of_a_view_is_no_view(self, few: AnnData, model: SCGPT) -> None:
        view = few[:20]
        copied = sg.tl.embed(view, model, copy=True)
        assert copied is not None
        assert not copied.is_view
        assert view.is_view

    def test_copy_of_a_backed_file_is_refused(self, few: AnnData, model: SCGPT, tmp_path: Path) -> None:
        few.write_h5ad(tmp_path / "few.h5ad")
        backed = anndata.read_h5ad(tmp_path / "few.h5ad", backed="r")
        with pytest.raises(DataError, match=r"copy=True cannot copy an AnnData in backed mode.*to_memory"):
            sg.tl.embed(backed, model, copy=True)

    def test_view_becomes_an_object_of_its_own(
        self, few: AnnData, model: SCGPT, recwarn: pytest.WarningsRecorder
    ) -> None:
        view, before = few[10:30], keys(few)
        sg.tl.embed(view, model)
        assert not view.is_view
        assert view.obsm["X_scGPT"].shape == (20, 16)
        assert added(few, before) == {}
        assert [str(warning.message) for warning in recwarn] == []

    def test_backed_file_gets_results_in_memory(self, few: AnnData, model: SCGPT, tmp_path: Path) -> None:
        few.write_h5ad(tmp_path / "few.h5ad")
        size = (tmp_path / "few.h5ad").stat().st_size
        backed = anndata.read_h5ad(tmp_path / "few.h5ad", backed="r")
        sg.tl.embed(backed, model)
        np.testing.assert_allclose(backed.obsm["X_scGPT"], model.get_latent_representation(few), atol=1e-6)
        assert (tmp_path / "few.h5ad").stat().st_size == size
        with pytest.raises(DataError, match="view of a backed file"):
            sg.tl.embed(backed[:5], model)

    def test_modality(self, few: AnnData, model: SCGPT) -> None:
        mdata = MuData({"gex": few})
        with pytest.raises(MissingKeyError, match="no modality 'rna'; it has 'gex'"):
            sg.tl.embed(mdata, model)
        sg.tl.embed(mdata, model, mod="gex")
        assert "X_scGPT" in mdata["gex"].obsm


class TestEverythingElseStays:
    @pytest.mark.parametrize("convert", [sp.csr_matrix, sp.csc_matrix, lambda x: x.toarray()])
    def test_matrix(self, few: AnnData, model: SCGPT, convert: Callable[[sp.csr_matrix], object]) -> None:
        few.X = convert(few.X)
        x, before = few.X, few.X.copy()
        sg.tl.embed(few, model)
        assert few.X is x
        assert type(few.X) is type(before)
        assert few.X.dtype == before.dtype
        assert np.abs(few.X - before).sum() == 0

    def test_random_states_and_working_folder(
        self,
        few: AnnData,
        model: SCGPT,
        in_empty_folder: Callable[[], None],
        random_states: Callable[[], tuple[object, ...]],
    ) -> None:
        before = random_states()
        sg.tl.embed(few, model, max_length=20)
        assert random_states() == before
        in_empty_folder()

    def test_model_is_not_changed(self, few: AnnData, model: SCGPT) -> None:
        before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
        sg.tl.embed(few, model)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())


class TestSampling:
    def test_rng_is_obeyed(self, few: AnnData, model: SCGPT) -> None:
        def embed(rng: object) -> np.ndarray:
            sg.tl.embed(few, model, max_length=20, rng=rng)  # type: ignore[arg-type]
            return few.obsm["X_scGPT"]

        np.testing.assert_array_equal(embed(1), embed(np.int32(1)))
        assert np.abs(embed(1) - embed(2)).max() > 1e-3
        assert np.abs(embed(None) - embed(None)).max() > 1e-3
        first = embed(np.random.default_rng(3))
        np.testing.assert_array_equal(embed(np.random.default_rng(3)), first)

    def test_logged_counts_embed_nearly_like_counts(self, few: AnnData, model: SCGPT) -> None:
        few.layers["counts"] = few.X.expm1().rint()
        few.layers["counts"].eliminate_zeros()
        few.layers["logged"] = few.layers["counts"].log1p()
        sg.tl.embed(few, model, layer="counts")
        counts = few.obsm["X_scGPT"]
        sg.tl.embed(few, model, layer="logged")
        cosine = (counts * few.obsm["X_scGPT"]).sum(axis=1)
        assert cosine.min() > 0.99
