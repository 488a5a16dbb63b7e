"""Names of contexts, perturbations, genes, classes and columns are kept as they are, whatever characters they hold."""

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests import screens
from tests.tiny_plugin import tiny_model
from tests.trained_screens import GENES, counts

import scgalore as sg
from scgalore._uns import to_uns

KEY = "predict_perturbation"
# One is the start of the other, which HDF5 would take for a group and a data set of the same name.
CONTEXTS = ("CD4", "CD4/CD8")
RENAMED = {"G00": "HLA/A", "G01": "a.b", "G05": "G05/1", "X2": "../x"}


def renamed(label: str) -> str:
    return "+".join(sorted(RENAMED.get(gene, gene) for gene in label.split("+")))


@pytest.fixture(scope="module")
def predicted() -> AnnData:
    adata = counts(contexts=CONTEXTS, n_cells=6, n_control=12)
    adata.var_names = [RENAMED.get(gene, gene) for gene in adata.var_names]
    adata.obs["cell/line"] = adata.obs["cell_line"]
    adata.obs["per/turbation"] = [renamed(label) for label in adata.obs["perturbation"]]
    model = tiny_model([RENAMED.get(gene, gene) for gene in GENES])
    sg.tl.finetune(
        adata, model, pert_key="per/turbation", context_key="cell/line", split_key="split", max_epochs=1, batch_size=32
    )
    sg.tl.predict_perturbation(adata, model=model)
    sg.tl.evaluate_perturbation(adata, de=False, n_bootstrap=5, baselines=["control mean"])
    del adata.obs["cell/line"], adata.obs["per/turbation"]  # anndata itself writes no such column
    return adata


@pytest.fixture(params=["memory", "h5ad", pytest.param("zarr", marks=pytest.mark.slow)])
def read(request: pytest.FixtureRequest, predicted: AnnData, tmp_path: Path) -> AnnData:
    """As it was written, and after it was in a file."""
    if request.param == "memory":
        return predicted
    if request.param == "h5ad":
        predicted.write_h5ad(tmp_path / "a.h5ad")
        return ad.read_h5ad(tmp_path / "a.h5ad")
    predicted.write_zarr(tmp_path / "a.zarr")
    return ad.read_zarr(tmp_path / "a.zarr")


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_every_table_has_the_true_names(read: AnnData) -> None:
    rows = read.uns[KEY]["rows"]
    expected = [f"{context} | {renamed(name)}" for context in CONTEXTS for name in ("G01+G04", "G05", "X2")]
    assert sorted(rows.index) == sorted(expected)
    effects = sg.get.perturbation_effects(read)
    assert effects.index.tolist() == rows.index.tolist()
    assert effects.columns.tolist() == read.var_names.tolist()
    assert "HLA/A" in effects.columns
    assert list(read.uns[f"{KEY}_rank_genes_groups"]["names"].dtype.names) == rows.index.tolist()
    scores = sg.get.perturbation_scores(read)
    assert set(scores["context"].astype(str)) == set(CONTEXTS)
    assert set(scores["perturbation"].astype(str)) == {renamed(name) for name in ("G01+G04", "G05", "X2")}
    assert np.isfinite(effects["HLA/A"]["CD4/CD8 | G05/1"])


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_plots_find_them(read: AnnData) -> None:
    for name, context in ((renamed("G05"), "CD4/CD8"), ("CD4/CD8 | G05/1", None)):
        ax = sg.pl.perturbation_effect(read, name, context=context, show=False)
        assert ax is not None
        assert ax.get_title().startswith("CD4/CD8 | G05/1")
    ax = sg.pl.perturbation_embedding(read, context="CD4/CD8", show=False)
    assert ax is not None
    assert {"observed (3)"} <= {text.get_text() for text in ax.get_legend().get_texts()}


def test_cells_are_drawn_by_them(predicted: AnnData) -> None:
    predicted = predicted.copy()
    predicted.obs["cell/line"] = predicted.obs["cell_line"]
    predicted.obs["per/turbation"] = [renamed(label) for label in predicted.obs["perturbation"]]
    cells = sg.get.perturbed_cells(predicted, "CD4/CD8 | G05/1", n_cells=3, with_control=False)
    assert set(cells.obs["condition"]) == {"CD4/CD8 | G05/1"}
    assert cells.uns["rank_genes_groups"]["names"].dtype.names == ("CD4/CD8 | G05/1",)


names = st.lists(st.text("AB/ _.", min_size=1, max_size=5), min_size=2, max_size=4, unique=True)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=names)
def test_effects_have_the_names_of_their_rows(labels: list[str], tmp_path: Path) -> None:
    adata = screens.screen(n_cells=2, n_control=3, n_genes=5)
    tables = {
        name: pd.DataFrame(np.arange(5.0 * len(labels)).reshape(5, -1), columns=labels) for name in ("means", "effects")
    }
    rows = pd.DataFrame({"perturbation": labels, "context": "", "group": ""}, index=labels)
    adata.uns[KEY] = to_uns({"params": {}, "rows": rows, **tables})
    adata.write_h5ad(tmp_path / "a.h5ad")
    for found in (adata, ad.read_h5ad(tmp_path / "a.h5ad")):
        effects = sg.get.perturbation_effects(found)
        assert effects.index.tolist() == labels
        assert effects.loc[labels[-1]].tolist() == tables["effects"][labels[-1]].tolist()


class TestClasses:
    @pytest.fixture
    def cells(self, few: AnnData) -> AnnData:
        few.obs["cell/type"] = few.obs["bulk_labels"].cat.rename_categories(lambda name: f"{name}/x")
        return few

    def test_labels_stay(self, cells: AnnData, tmp_path: Path) -> None:
        model = sg.tl.finetune(cells, "scgpt-mini", labels_key="cell/type", max_epochs=1, test_size=0.0)
        assert all(str(name).endswith("/x") for name in cells.obs["scgpt_label"].cat.categories)
        model.save(tmp_path / "model")
        again = sg.model.load(tmp_path / "model")
        assert list(again.predict(cells).columns) == list(cells.uns["finetune"]["classes"])
        del cells.obs["cell/type"]
        cells.write_h5ad(tmp_path / "a.h5ad")
        found = ad.read_h5ad(tmp_path / "a.h5ad")
        assert set(found.obs["scgpt_label"]) <= set(found.uns["finetune"]["classes"])


class TestRepeated:
    """Columns of obs that are there twice are refused by name; cells that are there twice are read."""

    @pytest.mark.parametrize(
        ("tool", "key"),
        [
            *(("finetune", key) for key in ("perturbation", "cell_line", "batch", "split")),
            *(("select_genes", key) for key in ("perturbation", "cell_line", "batch", "split")),
            *(("split_perturbations", key) for key in ("perturbation", "cell_line")),
        ],
    )
    def test_column(self, key: str, tool: str) -> None:
        adata = counts(n_cells=2, n_control=4)
        adata.obs = pd.concat([adata.obs, adata.obs[[key]]], axis=1)
        asked: dict[str, Any] = {"pert_key": "perturbation", "context_key": "cell_line"}
        if tool != "split_perturbations":
            asked |= {"batch_key": "batch", "split_key": "split"}
        call = {
            "finetune": lambda: sg.tl.finetune(adata, "scgpt-mini", task="perturbation", **asked),
            "select_genes": lambda: sg.tl.select_genes(adata, 5, "hvg", **asked),
            "split_perturbations": lambda: sg.pp.split_perturbations(adata, key_added="new", **asked),
        }[tool]
        with pytest.raises(sg.errors.DataError, match=rf"adata\.obs has 2 columns named '{key}'"):
            call()
        assert "new" not in adata.obs

    @pytest.mark.parametrize("key", ["labels_key", "values_key", "split_key"])
    def test_column_of_a_cell_task(self, few: AnnData, key: str) -> None:
        few.obs["part"], few.obs["n"] = "train", np.arange(float(few.n_obs))
        column = {"labels_key": "bulk_labels", "values_key": "n", "split_key": "part"}[key]
        few.obs = pd.concat([few.obs, few.obs[[column]]], axis=1)
        asked: dict[str, Any] = (
            {key: column} if key != "split_key" else {"labels_key": "bulk_labels", "split_key": "part"}
        )
        with pytest.raises(sg.errors.DataError, match=rf"adata\.obs has 2 columns named '{column}'"):
            sg.tl.finetune(few, "never looked at", **asked)

    def test_cells_of_one_name(self, few: AnnData) -> None:
        expected = few.copy()
        few.obs_names = ["cell"] * few.n_obs
        for adata in (few, expected):
            sg.tl.finetune(adata, "scgpt-mini", labels_key="bulk_labels", max_epochs=1)
        np.testing.assert_array_equal(few.obsm["X_scGPT"], expected.obsm["X_scGPT"])
        assert few.obs["scgpt_label"].tolist() == expected.obs["scgpt_label"].tolist()


@pytest.mark.parametrize("value", [None, True, 3, "text", ["a"], np.arange(3), pd.DataFrame({"a": [1]}), {}], ids=str)
def test_odd_records_are_left_alone_and_disturb_nothing(value: Any) -> None:
    adata = counts(n_cells=3, n_control=6)
    keys = ("log1p", "split", "finetune_2", "select_genes", "perturbation_colors", "predict_perturbation_2")
    adata.uns |= dict.fromkeys(keys, value)
    model = sg.tl.finetune(adata, tiny_model(GENES), task="perturbation", max_epochs=1, batch_size=32)
    sg.tl.predict_perturbation(adata, ["G05"], model=model)
    sg.tl.select_genes(adata, 5, "hvg", pert_key="perturbation", key_added="mine")
    assert all(adata.uns[key] is value for key in keys)


@pytest.mark.parametrize("column", ["cell_line", "batch", "per"])
def test_missing_labels_are_named(column: str) -> None:
    adata = counts(n_cells=3, n_control=6, contexts=("A", "B"))
    adata.obs["per"] = adata.obs["perturbation"]
    model = sg.tl.finetune(
        adata, tiny_model(GENES), task="perturbation", split_key="split", max_epochs=1, batch_size=32
    )
    adata.obs[column] = adata.obs[column].astype(object)
    adata.obs.loc[["cell3", "cell40"], column] = [None, np.nan]
    read: dict[str, Any] = {"cell_line": {"context_key": column}, "per": {"per_cell": column}, "batch": {}}[column]
    calls = [lambda: sg.tl.predict_perturbation(adata, ["G00"], model=model, **read)] if read else []
    if column != "per":
        asked: dict[str, Any] = {"context_key" if column == "cell_line" else "batch_key": column}
        calls += [
            lambda: sg.tl.finetune(adata, "never looked at", task="perturbation", split_key="split", **asked),
            lambda: sg.tl.select_genes(adata, 5, "perturbation", pert_key="perturbation", split_key="split", **asked),
        ]
    for call in calls:
        with pytest.raises(sg.errors.DataError, match=rf"adata\.obs\['{column}'\] is empty for 2 of "):
            call()
