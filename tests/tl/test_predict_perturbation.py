import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from mudata import MuData
from tests.original_plugin import Original
from tests.trained_screens import GENES, PARTS, TRAINING, counts, log_normalised, trained, untrained

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.model import SCGPT, CellModel

KEY = "predict_perturbation"
TWO_LINES: dict[str, Any] = {"context_key": "cell_line"}


@pytest.fixture(scope="module")
def trained_once() -> tuple[AnnData, CellModel]:
    """A screen of one context, and a model without validation, so that its network says something."""
    adata = log_normalised(counts())
    adata.obs["split"] = np.where(adata.obs["split"] == "test", "test", "train")
    model = trained(adata, fit={"hold_out": False}, patience=None)
    assert not model.network.starts_at_zero
    return adata, model


@pytest.fixture
def adata(trained_once: tuple[AnnData, CellModel]) -> AnnData:
    return trained_once[0].copy()


@pytest.fixture
def model(trained_once: tuple[AnnData, CellModel]) -> CellModel:
    return trained_once[1]


def slots(adata: AnnData) -> dict[str, set[str]]:
    return {slot: set(getattr(adata, slot)) for slot in ("obs", "var", "obsm", "varm", "obsp", "layers", "uns")}


def effects(adata: AnnData, key: str = KEY) -> pd.DataFrame:
    table = adata.uns[key]["effects"]
    assert isinstance(table, pd.DataFrame)
    return table


class TestContent:
    def test_genes_are_rows_and_perturbations_are_columns(self, adata: AnnData, model: CellModel) -> None:
        before = slots(adata)
        assert sg.tl.predict_perturbation(adata, ["G05", "G00+G01"], model=model) is None
        assert slots(adata) == before | {"uns": before["uns"] | {KEY, f"{KEY}_rank_genes_groups"}}
        content = adata.uns[KEY]
        for table in (content["means"], content["effects"]):
            assert table.index.tolist() == list(GENES)
            assert table.columns.tolist() == content["rows"].index.tolist() == ["G05", "G00+G01"]
            assert set(table.dtypes) == {np.dtype("float32")}
        assert content["control_means"].shape == (len(GENES), 1)
        assert content["weights"] == model.provenance
        assert content["version"] == sg.__version__

    def test_means_are_control_means_and_effects(self, adata: AnnData, model: CellModel) -> None:
        sg.tl.predict_perturbation(adata, ["G05", "X1+X2"], model=model)
        content = adata.uns[KEY]
        control = adata.X[(adata.obs["perturbation"] == "control").to_numpy()].toarray().mean(axis=0)
        np.testing.assert_allclose(content["control_means"].iloc[:, 0], control, rtol=1e-6, atol=1e-6)
        for name in ("G05", "X1+X2"):
            np.testing.assert_allclose(content["means"][name], control + content["effects"][name], rtol=1e-6, atol=1e-6)
            assert (content["means"][name] >= -1e-6).all()

    def test_rows_say_what_is_known_of_each(self, adata: AnnData, model: CellModel) -> None:
        sg.pp.split_perturbations(adata, "custom", parts={"test": ["G05", "G01+G04", "X2"]})
        sg.tl.predict_perturbation(adata, ["G05", "X1", "X2+G00+G01"], model=model)
        rows = adata.uns[KEY]["rows"]
        assert rows["perturbation"].tolist() == rows.index.tolist() == ["G05", "X1", "G00+G01+X2"]
        assert rows["n_genes_perturbed"].tolist() == [1, 1, 3]
        assert rows["measured"].tolist() == [False, True, False]
        assert set(rows["context"]) == {""}

    def test_without_names_the_test_part_is_predicted(self, adata: AnnData, model: CellModel) -> None:
        sg.tl.predict_perturbation(adata, model=model)
        assert set(effects(adata)) == set(PARTS["test"])
        del adata.obs["split"]
        sg.tl.predict_perturbation(adata, model=model)
        assert set(effects(adata)) == {name for part in PARTS.values() for name in part}

    def test_scanpy_reads_the_ranked_genes(self, adata: AnnData, model: CellModel) -> None:
        sc = pytest.importorskip("scanpy")
        sg.tl.predict_perturbation(adata, ["G05", "G01+G04"], model=model, key_added="mine")
        table = sc.get.rank_genes_groups_df(adata, "G01+G04", key="mine_rank_genes_groups")
        assert set(table["names"]) == set(GENES)
        ours = effects(adata, "mine")["G01+G04"]
        np.testing.assert_allclose(table["scores"], ours.loc[table["names"]], rtol=0, atol=1e-6)

    def test_everything_survives_h5ad(self, adata: AnnData, model: CellModel, tmp_path: Path) -> None:
        sg.tl.predict_perturbation(adata, model=model)
        adata.write_h5ad(tmp_path / "screen.h5ad")
        read = anndata.read_h5ad(tmp_path / "screen.h5ad")
        for name in ("means", "effects", "control_means"):
            pd.testing.assert_frame_equal(read.uns[KEY][name], adata.uns[KEY][name])
        assert read.uns[KEY]["rows"]["perturbation"].tolist() == adata.uns[KEY]["rows"]["perturbation"].tolist()
        assert read.uns[KEY]["params"].keys() == adata.uns[KEY]["params"].keys()


class TestWhatIsPredicted:
    def test_gene_that_is_not_measured(self, adata: AnnData, model: CellModel) -> None:
        assert "X2" not in adata.var_names
        fewer = adata[:, [gene for gene in GENES if gene != "G05"]].copy()
        sg.tl.predict_perturbation(fewer, ["X2", "G05", "G06"], model=model)
        table = effects(fewer)
        assert np.isfinite(table.to_numpy()).all()
        # The prior says the same of the three: the difference is the network's, which sees their flags.
        assert all((table[one] - table[other]).abs().max() > 1e-6 for one, other in (("X2", "G05"), ("X2", "G06")))

    def test_names_of_one_perturbation_are_merged(self, adata: AnnData, model: CellModel) -> None:
        names = ["G00+G01", "G05", "G01+G00", "G05", "G05+control", " G00 + G01"]
        sg.tl.predict_perturbation(adata, names, model=model)
        assert list(effects(adata)) == ["G00+G01", "G05"]

    def test_single_name_is_a_list_of_one(self, adata: AnnData, model: CellModel) -> None:
        sg.tl.predict_perturbation(adata, "G01+G00", model=model)
        assert list(effects(adata)) == ["G00+G01"]

    def test_single_perturbed_cell_is_enough_to_train_on(self) -> None:
        adata = log_normalised(counts())
        names = adata.obs["perturbation"]
        kept = (names == "control") | ~names.duplicated()
        adata = adata[kept].copy()
        model = sg.tl.finetune(adata, untrained(), task="perturbation", split_key="split", **TRAINING)
        assert model.memory is not None
        assert model.memory.stats["training_cells"] == len(PARTS["train"])
        sg.tl.predict_perturbation(adata, model=model)
        assert np.isfinite(effects(adata).to_numpy()).all()

    def test_object_with_control_cells_alone(self, adata: AnnData, model: CellModel) -> None:
        controls = adata[adata.obs["perturbation"] == "control"].copy()
        sg.tl.predict_perturbation(adata, ["G05"], model=model)
        sg.tl.predict_perturbation(controls, ["G05"], model=model)
        pd.testing.assert_frame_equal(effects(controls), effects(adata), atol=1e-6, rtol=0)

    def test_control_may_be_spelt_otherwise_in_other_data(self, adata: AnnData, model: CellModel) -> None:
        other = adata.copy()
        other.obs["perturbation"] = other.obs["perturbation"].cat.rename_categories({"control": "non-targeting"})
        for x in (adata, other):
            sg.tl.predict_perturbation(x, ["G05"], model=model)
        pd.testing.assert_frame_equal(effects(other), effects(adata))
        assert other.uns[KEY]["params"]["control"] == "non-targeting"

    def test_each_context_with_control_cells(self) -> None:
        adata = log_normalised(counts(contexts=("A", "B")))
        model = sg.tl.finetune(adata, untrained(), task="perturbation", split_key="split", **TRAINING, **TWO_LINES)
        sg.tl.predict_perturbation(adata, ["G05", "G00"], model=model)
        assert list(effects(adata)) == ["A | G05", "A | G00", "B | G05", "B | G00"]
        assert adata.uns[KEY]["rows"]["context"].tolist() == ["A", "A", "B", "B"]
        assert adata.uns[KEY]["control_means"].columns.tolist() == ["A", "B"]
        only_b = adata[adata.obs["cell_line"] == "B"].copy()
        sg.tl.predict_perturbation(only_b, ["G00"], model=model)
        np.testing.assert_allclose(effects(only_b)["B | G00"], effects(adata)["B | G00"], rtol=0, atol=1e-6)

    def test_fewer_control_cells_are_drawn_by_seed(self, adata: AnnData, model: CellModel) -> None:
        tables = []
        for rng in (0, 0, 1):
            sg.tl.predict_perturbation(adata, ["G05"], model=model, n_controls=4, rng=rng)
            tables.append(effects(adata))
        pd.testing.assert_frame_equal(tables[0], tables[1])
        assert not tables[0].equals(tables[2])


class TestPerCell:
    def test_writes_an_embedding_of_each_cell(self, adata: AnnData, model: CellModel) -> None:
        adata.obs["wanted"] = ["control", "G05", "X2+G01"] * (adata.n_obs // 3)
        sg.tl.predict_perturbation(adata, model=model, per_cell="wanted")
        cells = adata.obsm["X_scGPT_perturbed"]
        assert (cells.shape, cells.dtype) == ((adata.n_obs, 16), np.dtype("float32"))
        np.testing.assert_allclose(np.linalg.norm(cells, axis=1), 1, atol=1e-5)
        assert set(effects(adata)) == {"G05", "G01+X2"}
        adata.obs["wanted"] = "control"
        sg.tl.predict_perturbation(adata, ["G05"], model=model, per_cell="wanted", key_added="none")
        same = np.abs(adata.obsm["none_perturbed"] - cells).max(axis=1) < 1e-5
        assert same.tolist() == [True, False, False] * (adata.n_obs // 3)

    def test_column_must_be_there(self, adata: AnnData, model: CellModel) -> None:
        before = slots(adata)
        with pytest.raises(MissingKeyError, match="per_cell='wanted' is not a column"):
            sg.tl.predict_perturbation(adata, model=model, per_cell="wanted")
        adata.obs["wanted"] = "NOSUCH"
        with pytest.raises(DataError, match="no token for the gene 'NOSUCH'"):
            sg.tl.predict_perturbation(adata, ["G05"], model=model, per_cell="wanted")
        assert slots(adata) == before | {"obs": before["obs"] | {"wanted"}}


class TestModel:
    @pytest.fixture
    def own(self) -> tuple[AnnData, CellModel]:
        adata = counts()
        return adata, sg.tl.finetune(adata, untrained(), task="perturbation", split_key="split", **TRAINING)

    def test_is_found_in_memory_while_somebody_holds_it(self, own: tuple[AnnData, CellModel]) -> None:
        adata, model = own
        other = adata.copy()
        sg.tl.predict_perturbation(adata)
        sg.tl.predict_perturbation(other, model=model)
        pd.testing.assert_frame_equal(effects(adata), effects(other))

    def test_that_nobody_holds_and_no_folder_has_is_missed(self) -> None:
        adata = counts()
        model = sg.tl.finetune(adata, untrained(), task="perturbation", split_key="split", **TRAINING)
        del model
        gc.collect()
        before = slots(adata)
        with pytest.raises(MissingKeyError, match="is no longer in memory. Keep the model"):
            sg.tl.predict_perturbation(adata)
        assert slots(adata) == before

    def test_is_read_from_its_folder_after_that(self, tmp_path: Path) -> None:
        adata = counts()
        model = sg.tl.finetune(
            adata, untrained(), task="perturbation", split_key="split", **TRAINING, save_dir=tmp_path / "model"
        )
        sg.tl.predict_perturbation(adata, key_added="first")
        del model
        gc.collect()
        adata.write_h5ad(tmp_path / "screen.h5ad")
        read = anndata.read_h5ad(tmp_path / "screen.h5ad")
        sg.tl.predict_perturbation(read)
        pd.testing.assert_frame_equal(effects(read), effects(adata, "first"), check_exact=True)
        shutil.rmtree(tmp_path / "model")
        with pytest.raises(MissingKeyError, match="no longer in memory, and the folder .* does not exist"):
            sg.tl.predict_perturbation(read)

    def test_that_was_never_recorded_is_missed(self, adata: AnnData) -> None:
        adata.uns.pop("finetune", None)
        with pytest.raises(MissingKeyError, match=r"model= is missing, and adata\.uns records none"):
            sg.tl.predict_perturbation(adata)

    def test_of_another_task_is_refused(self, adata: AnnData) -> None:
        with pytest.raises(OptionError, match="random was not trained on perturbations"):
            sg.tl.predict_perturbation(adata, ["G05"], model=untrained())

    def test_of_upstream_needs_no_screen(self, original: Original) -> None:
        """A checkpoint of the original's generator, whose output is the expression itself."""
        model = SCGPT.from_pretrained(original.folder("perturb/default.pt"))
        assert model.memory is None
        theirs = original.arrays("perturb")
        known = [i for i, gene in enumerate(theirs["gene_names"].tolist()) if gene in model.vocab]
        x = theirs["expr"][:, known]
        genes = theirs["gene_names"][known].tolist()
        adata = AnnData(sp.csr_matrix(x), pd.DataFrame({"perturbation": "ctrl"}, index=list(map(str, range(len(x))))))
        adata.var_names = genes
        sg.tl.predict_perturbation(adata, [genes[2], f"{genes[0]}+{genes[1]}"], model=model, n_controls=len(x))
        pair = "+".join(sorted(genes[:2]))
        tokens = torch.tensor([[model.vocab.cls_id, *(model.vocab[gene] for gene in genes)]]).expand(len(x), -1)
        values = torch.from_numpy(np.concatenate([np.full((len(x), 1), -2, dtype=np.float32), x], axis=1))
        flags = torch.zeros_like(tokens)
        flags[:, 1:3] = 1
        with torch.no_grad():
            encoded = model.network.encode(tokens, values, flags=flags)
            output = model.network.expression(encoded, values)[0][:, 1:].mean(dim=0).numpy()
        np.testing.assert_allclose(adata.uns[KEY]["means"][pair], np.maximum(output, 0), rtol=0, atol=1e-5)
        assert not adata.uns[KEY]["rows"]["measured"].any()


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown gene": ({"perturbations": ["G05", "G01+NOSUCH"]}, DataError, "no token for the gene 'NOSUCH'"),
    "nothing": ({"perturbations": []}, OptionError, "perturbations is empty"),
    "empty part": ({"perturbations": ["G05+"]}, DataError, r"'G05\+' has an empty part"),
    "gene twice": ({"perturbations": ["G05+G05"]}, DataError, "names a gene twice"),
    "control": ({"control": "NT"}, OptionError, "control='NT' is none of"),
    "column": ({"pert_key": "guide"}, MissingKeyError, "pert_key='guide' is not a column"),
    "context": ({"context_key": "line"}, MissingKeyError, "context_key='line' is not a column"),
    "split": ({"split_key": "parts"}, MissingKeyError, "split_key='parts' is not a column"),
    "no control cell asked for": ({"n_controls": 0}, OptionError, "n_controls=0"),
    "tokens": ({"batch_tokens": 0}, OptionError, "batch_tokens=0"),
    "key": ({"key_added": "a/b"}, OptionError, "'/'"),
    "folder": ({"model": "no such folder"}, OptionError, "'no such folder' is neither"),
}


class TestRefusals:
    @pytest.mark.parametrize("case", REFUSED)
    def test_nothing_is_written(self, adata: AnnData, model: CellModel, case: str) -> None:
        options, error, message = REFUSED[case]
        before = slots(adata)
        with pytest.raises(error, match=message):
            sg.tl.predict_perturbation(adata, **{"model": model, **options})
        assert slots(adata) == before

    def test_data_without_control_cells(self, adata: AnnData, model: CellModel) -> None:
        perturbed = adata[adata.obs["perturbation"] != "control"].copy()
        with pytest.raises(DataError, match="No label of control among"):
            sg.tl.predict_perturbation(perturbed, ["G05"], model=model)

    def test_context_without_control_cells(self) -> None:
        adata = log_normalised(counts(contexts=("A", "B")))
        model = sg.tl.finetune(adata, untrained(), task="perturbation", split_key="split", **TRAINING, **TWO_LINES)
        lacking = adata[(adata.obs["perturbation"] != "control") | (adata.obs["cell_line"] == "A")].copy()
        with pytest.raises(DataError, match="No control cells of context 'B'"):
            sg.tl.predict_perturbation(lacking, ["G05"], model=model)


class TestContainers:
    def test_copy_leaves_the_original(self, adata: AnnData, model: CellModel) -> None:
        before = slots(adata)
        copied = sg.tl.predict_perturbation(adata, ["G05"], model=model, copy=True)
        assert isinstance(copied, AnnData)
        assert KEY in copied.uns
        assert slots(adata) == before

    def test_modality(self, adata: AnnData, model: CellModel) -> None:
        protein = AnnData(np.ones((adata.n_obs, 2)), pd.DataFrame(index=adata.obs_names))
        mdata = MuData({"gex": adata, "prot": protein})
        sg.tl.predict_perturbation(mdata, ["G05"], model=model, mod="gex")
        assert KEY in mdata["gex"].uns
        assert KEY not in mdata["prot"].uns


def test_random_states_are_the_users(
    adata: AnnData,
    model: CellModel,
    random_states: Callable[[], tuple[object, ...]],
    in_empty_folder: Callable[[], None],
) -> None:
    before = random_states()
    sg.tl.predict_perturbation(adata, ["G05"], model=model, n_controls=5)
    assert random_states() == before
    in_empty_folder()


def to_base(adata: AnnData, base: float) -> AnnData:
    """The same logarithms to another base, with the record that scanpy writes of it."""
    adata.X = adata.X / np.float32(np.log(base))
    adata.uns["log1p"] = {"base": None if base == np.e else base}
    return adata


@pytest.fixture(scope="module")
def predicted() -> tuple[AnnData, CellModel]:
    """A screen in logarithms to base 2 with a prediction, and the model that made it."""
    adata = to_base(log_normalised(counts()), 2.0)
    model = sg.tl.finetune(adata, untrained(), task="perturbation", split_key="split", prior="additive", **TRAINING)
    sg.tl.predict_perturbation(adata, ["G00"], model=model)
    return adata, model


class TestScaleOfTheLogarithm:
    """Screens in logarithms to base 2, and what is made of predictions for them."""

    def test_means_are_on_the_scale_of_the_data(self, predicted: tuple[AnnData, CellModel]) -> None:
        content = predicted[0].uns[KEY]
        control = predicted[0].X[(predicted[0].obs["perturbation"] == "control").to_numpy()].toarray().mean(axis=0)
        np.testing.assert_allclose(content["control_means"].iloc[:, 0], control, rtol=1e-5)
        assert content["params"]["log_base"] == 2

    def test_fold_changes_undo_the_logarithm(self, predicted: tuple[AnnData, CellModel]) -> None:
        adata = predicted[0]
        sc = pytest.importorskip("scanpy")
        table = sc.get.rank_genes_groups_df(adata, "G00", key=f"{KEY}_rank_genes_groups").set_index("names")
        means, control = adata.uns[KEY]["means"]["G00"], adata.uns[KEY]["control_means"].iloc[:, 0]
        expected = np.log2((2**means - 1 + 1e-9) / (2**control - 1 + 1e-9))
        np.testing.assert_allclose(table["logfoldchanges"].loc[list(GENES)], expected, rtol=1e-3, atol=1e-3)

    def test_drawn_cells_say_what_they_are(self, predicted: tuple[AnnData, CellModel]) -> None:
        cells = sg.get.perturbed_cells(predicted[0], n_cells=5)
        assert cells.uns["log1p"] == {"base": 2}
        own = predicted[0][cells.obs_names[~cells.obs["predicted"]]].X.toarray()
        np.testing.assert_allclose(cells[~cells.obs["predicted"]].X.toarray(), own, rtol=1e-6)

    @pytest.mark.parametrize("base", [np.e, 10.0, None], ids=["natural", "ten", "counts"])
    def test_other_cells_are_brought_to_the_scale_of_the_model(
        self, predicted: tuple[AnnData, CellModel], base: float | None
    ) -> None:
        adata, model = predicted
        other = counts() if base is None else to_base(log_normalised(counts()), base)
        sg.tl.predict_perturbation(other, ["G00"], model=model)
        for name in ("means", "effects", "control_means"):
            np.testing.assert_allclose(other.uns[KEY][name], adata.uns[KEY][name], rtol=1e-3, atol=2e-4)

    def test_scores_are_of_the_same_scale(self, predicted: tuple[AnnData, CellModel]) -> None:
        adata, model = predicted
        natural = log_normalised(counts())
        for cells in (adata := adata.copy(), natural):
            sg.tl.predict_perturbation(cells, model=model)
            sg.tl.evaluate_perturbation(cells, de=False, n_bootstrap=5)
        tables = [sg.get.perturbation_scores(cells)["value"] for cells in (adata, natural)]
        np.testing.assert_allclose(tables[1], tables[0], rtol=1e-2, atol=1e-3)

    def test_a_saved_model_remembers(self, predicted: tuple[AnnData, CellModel], tmp_path: Path) -> None:
        predicted[1].save(tmp_path / "model")
        read = sg.model.load(tmp_path / "model")
        assert read.memory.params["log_base"] == 2


class TestReading:
    def test_it_is_read_as_for_training_unless_told_otherwise(self, adata: AnnData) -> None:
        screen = counts()
        sums = np.asarray(screen.X.sum(axis=1)).ravel()
        screen.obs["depth"] = 2 * sums
        model = sg.tl.finetune(
            screen,
            untrained(),
            task="perturbation",
            split_key="split",
            data_type="counts",
            depth_key="depth",
            **TRAINING,
        )
        sg.tl.predict_perturbation(screen, ["G00"], model=model)
        read = screen.uns[KEY]["params"]
        assert (read["data_type"], read["depth_key"]) == ("counts", "depth")
        control = (screen.obs["perturbation"] == "control").to_numpy()
        expected = np.log1p(screen.X.toarray() / sums[:, None] * 5e3)[control].mean(axis=0)
        np.testing.assert_allclose(screen.uns[KEY]["control_means"].iloc[:, 0], expected, rtol=1e-5)
        sg.tl.predict_perturbation(screen, ["G00"], model=model, data_type="log1p")
        assert screen.uns[KEY]["params"]["data_type"] == "log1p"

    def test_genes_that_were_cut_are_predicted_as_in_whole_cells(self) -> None:
        sc = pytest.importorskip("scanpy")
        whole, kept = counts(), list(GENES[:20])
        sc.pp.calculate_qc_metrics(whole, inplace=True, percent_top=None)
        part = whole[:, kept].copy()
        for cells in (whole, part):
            model = sg.tl.finetune(
                cells, untrained(), task="perturbation", split_key="split", prior="additive", **TRAINING
            )
            sg.tl.predict_perturbation(cells, ["G00"], model=model)
        for name in ("control_means", "means"):
            found, expected = part.uns[KEY][name], whole.uns[KEY][name].loc[kept]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 if name == "control_means" else 0.5)
