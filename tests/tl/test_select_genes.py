"""What ``sg.tl.select_genes`` writes, where, and when it refuses."""

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from mudata import MuData
from tests.selection.test_ranking import NAMES, counts

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError


def selected(adata: AnnData, key: str = "selected") -> set[str]:
    return set(adata.var_names[adata.var[key]])


def complete(adata: AnnData) -> AnnData:
    """The same cells with a record that no gene was left out, without which so few are warned of."""
    adata.obs["total_counts"] = np.asarray(adata.X.sum(axis=1)).ravel()
    return adata


@pytest.mark.parametrize("n_genes", [1, 7, 30, 59])
def test_exactly_so_many_are_selected_and_they_are_the_best(n_genes: int) -> None:
    adata = counts()
    sg.tl.select_genes(adata, n_genes)
    assert adata.var["selected"].sum() == n_genes
    assert (adata.var["selected_rank"][adata.var["selected"]] < n_genes).all()
    assert adata.uns["select_genes"]["sources"]["n_selected"].sum() == n_genes


@pytest.mark.parametrize("n_genes", [60, 61, 3000, np.int64(10**12)])
@pytest.mark.parametrize("split", [False, True])
def test_all_expressed_genes_are_selected_where_more_are_asked_for(
    n_genes: int, split: bool, caplog: pytest.LogCaptureFixture
) -> None:
    adata = complete(counts())  # of 60 genes, one is never expressed
    expressed = np.asarray((adata.X > 0).sum(axis=0)).ravel() > 0
    if split:
        adata.obs["part"] = np.where(np.arange(adata.n_obs) < 5, "train", "test")
        expressed = np.asarray((adata.X[:5] > 0).sum(axis=0)).ravel() > 0
    with caplog.at_level(logging.WARNING, logger="scgalore"):
        sg.tl.select_genes(adata, n_genes, split_key="part" if split else None)
    assert adata.var["selected"].tolist() == expressed.tolist()
    assert adata.uns["select_genes"]["n_selected"] == expressed.sum()
    assert adata.uns["select_genes"]["params"]["n_genes"] == n_genes
    [record] = caplog.records
    assert f"n_genes={n_genes:,}" in record.getMessage()
    assert f"all {expressed.sum()} ranked genes" in record.getMessage()


def test_as_many_as_are_expressed_need_no_message(caplog: pytest.LogCaptureFixture) -> None:
    adata = complete(counts())
    with caplog.at_level(logging.WARNING, logger="scgalore"):
        sg.tl.select_genes(adata, 59)
    assert adata.var["selected"].sum() == 59
    assert caplog.records == []


@pytest.mark.parametrize(
    ("name", "strategy", "warned"),
    [
        ("AAACCTGAGA-{}", "biological", True),
        ("{}", "biological", True),
        ("{}", "hvg", False),
        (None, "biological", False),
    ],
)
def test_names_that_no_list_knows_are_warned_of(
    name: str | None, strategy: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    adata = counts()
    if name is not None:
        adata.var_names = [name.format(i) for i in range(adata.n_vars)]
    with caplog.at_level(logging.WARNING, logger="scgalore"):
        sg.tl.select_genes(adata, 20, strategy)
    found = [record.getMessage() for record in caplog.records if "none of the gene sets" in record.getMessage()]
    assert len(found) == warned
    assert all(adata.var_names[0] in message for message in found)


def test_the_default_call_runs_on_data_of_few_genes(pbmc: AnnData) -> None:
    sg.tl.select_genes(pbmc)
    assert pbmc.var["selected"].sum() == (pbmc.X.getnnz(axis=0) > 0).sum()


def test_selections_are_nested_whatever_their_size() -> None:
    adata = counts()
    for n_genes in (10, 25, 50):
        sg.tl.select_genes(adata, n_genes, key_added=f"best{n_genes}")
    assert selected(adata, "best10") < selected(adata, "best25") < selected(adata, "best50")
    pd.testing.assert_series_equal(adata.var["best10_rank"], adata.var["best50_rank"], check_names=False)


def test_five_hundred_are_asked_for_and_five_hundred_come(pbmc: AnnData) -> None:
    wanted = [*pbmc.var_names[::40], "NOT_A_GENE"]
    sg.tl.select_genes(pbmc, 500, must_include=wanted)
    assert pbmc.var["selected"].sum() == 500
    assert set(wanted) - {"NOT_A_GENE"} <= selected(pbmc)
    assert pbmc.uns["select_genes"]["absent"]["must_include"] == ["NOT_A_GENE"]


def test_results_survive_a_file(tmp_path: Path) -> None:
    adata = counts()
    sg.tl.select_genes(adata, 20, gene_sets={"mine/own": NAMES[10:30]}, must_include=["GENE3"])
    adata.write_h5ad(tmp_path / "x.h5ad")
    found = ad.read_h5ad(tmp_path / "x.h5ad")
    pd.testing.assert_frame_equal(found.var, adata.var)
    assert found.var["selected"].dtype == bool
    assert found.var["selected_source"].dtype == "category"
    assert found.var["selected_rank"].isna().tolist() == [name == NAMES[-1] for name in NAMES]
    assert found.uns["select_genes"]["params"]["n_genes"] == 20
    assert found.uns["select_genes"]["sources"].loc["must_include", "n_selected"] == 1


def test_keys_are_those_asked_for() -> None:
    adata = counts()
    sg.tl.select_genes(adata, 20, key_added="mine")
    assert set(adata.var) == {"mine", "mine_rank", "mine_source"}
    assert set(adata.uns) == {"mine"}


def test_copies_leave_the_object_alone_and_views_become_objects() -> None:
    adata = counts()
    made = sg.tl.select_genes(adata, 20, copy=True)
    assert made is not None
    assert list(adata.var) == []
    assert made.var["selected"].sum() == 20
    view = adata[:100]
    sg.tl.select_genes(view, 20)
    assert view.var["selected"].sum() == 20
    assert list(adata.var) == []


def test_a_file_that_is_open_is_written_to_in_memory(tmp_path: Path) -> None:
    counts().write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    sg.tl.select_genes(backed, 20)
    assert backed.var["selected"].sum() == 20
    backed.file.close()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_mudata_shows_the_columns_of_its_modality(tmp_path: Path) -> None:
    import mudata

    rna = counts()
    protein = AnnData(
        np.ones((rna.n_obs, 3), dtype=np.float32), obs=rna.obs[[]], var=pd.DataFrame(index=["GENE1", "P1", "P2"])
    )
    # The default from mudata 0.4 on.
    with mudata.set_options(pull_on_update=False) if hasattr(mudata, "set_options") else nullcontext():
        data = MuData({"rna": rna, "protein": protein})
    sg.tl.select_genes(data, 20)
    shown = data.var["rna:selected"]
    assert shown.sum() == 20
    # A protein of the same name as a gene is none of the genes.
    assert shown[-3:].isna().all()
    assert (
        data.var["rna:selected_rank"].to_numpy()[: rna.n_vars].tolist()[:5]
        == data["rna"].var["selected_rank"].tolist()[:5]
    )
    data.write_h5mu(tmp_path / "x.h5mu")


@pytest.mark.parametrize("given", ["dict", "gmt", "names", "name", "GeneSet"])
def test_gene_sets_in_any_form(given: str, tmp_path: Path) -> None:
    adata = counts()
    genes = ["GENE7", "GENE8", "GENE30"]
    (tmp_path / "mine.gmt").write_text("mine\tmy genes\t" + "\t".join(genes) + "\n")
    forms: dict[str, Any] = {
        "dict": {"mine": genes},
        "gmt": tmp_path / "mine.gmt",
        "names": ["hallmark_hypoxia"],
        "name": "hallmark_hypoxia",
        "GeneSet": {"mine": sg.genes.GeneSet("mine", tuple(genes))},
    }
    sg.tl.select_genes(adata, 20, "hvg", gene_sets=forms[given])
    source = "hallmark_hypoxia" if "name" in given else "mine"
    assert source in set(adata.var["selected_source"])
    assert adata.uns["select_genes"]["params"]["gene_sets"] == [source]


def test_the_split_of_a_screen_is_used_by_itself() -> None:
    adata = counts()
    sg.pp.split_perturbations(adata, "custom", parts={"test": ["GENE2"]})
    sg.tl.select_genes(adata, 20, "perturbation", pert_key="perturbation")
    params = adata.uns["select_genes"]["params"]
    assert params["split_key"] == "split"
    assert adata.uns["select_genes"]["n_cells"] == (adata.obs["split"] == "train").sum()
    # What was perturbed in test cells alone is no target.
    assert adata.var["selected_source"][["TP53", "STAT1", "GENE1", "GENE2"]].tolist()[:3] == ["targets"] * 3
    assert adata.var.loc["GENE2", "selected_source"] != "targets"
    sg.tl.select_genes(adata, 20, key_added="all")
    assert adata.uns["all"]["n_cells"] == adata.n_obs


def test_it_says_what_it_found_and_what_it_did_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="scgalore"):
        sg.tl.select_genes(counts(), 20, must_include=["GENE3", "nowhere"])
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "20 of 59 expressed genes" in text
    assert "1 must_include" in text
    assert "not in the data (must_include): nowhere" in text


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_genes": 0}, OptionError, "at least 1"),
        ({"n_genes": -1}, OptionError, "at least 1"),
        ({"n_genes": "3000"}, OptionError, "whole number"),
        ({"n_genes": None}, OptionError, "whole number"),
        ({"n_genes": True}, OptionError, "whole number"),
        ({"n_genes": 20.0}, OptionError, "whole number"),
        ({"n_genes": 1, "must_include": ["GENE1", "GENE2"]}, OptionError, "must_include has 2 genes"),
        ({"must_include": "GENE1"}, OptionError, "list of gene names"),
        ({"gene_sets": {"variable": ["GENE1"]}}, OptionError, "name of another source"),
        ({"gene_sets": {"cell_cycle": ["GENE1"]}}, OptionError, "name of another source"),
        ({"gene_sets": {"mine": "GENE1"}}, OptionError, r"gene_sets\['mine'\]"),
        ({"gene_sets": 7}, OptionError, "path of a GMT file"),
        ({"gene_sets": ["hallmark_hypoxa"]}, OptionError, "hallmark_hypoxia"),
        ({"gene_sets": "none.gmt"}, DataError, "could not be read"),
        ({"gene_sets": {"hallmark_hypoxia": ["nowhere"]}}, DataError, "None of the 1 genes"),
        ({"must_include": ["nowhere"]}, DataError, "of must_include"),
        ({"species": "rat"}, OptionError, "'human', 'mouse'"),
        ({"species": "mouse"}, DataError, "do not look like mouse genes"),
        ({"split_key": "no"}, MissingKeyError, "split_key='no'"),
        ({"batch_key": "no"}, MissingKeyError, "batch_key='no'"),
        ({"gene_symbols": "no"}, MissingKeyError, "No column 'no' in adata.var"),
        ({"key_added": "a/b"}, OptionError, "key_added"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    adata = counts()
    with pytest.raises(error, match=message):
        sg.tl.select_genes(adata, **{"n_genes": 20, **options})
    assert list(adata.var) == []
    assert dict(adata.uns) == {}


def test_genes_of_a_mouse_are_told_from_those_of_a_human() -> None:
    adata = counts()
    adata.var_names = [f"Gene{i}" for i in range(adata.n_vars)]
    with pytest.raises(DataError, match=r"look like mouse genes.*species='mouse'.*gene_strategy='hvg'"):
        sg.tl.select_genes(adata, 20)


class TestWhatTheMatrixHolds:
    @pytest.mark.parametrize("strategy", ["hvg", "biological", "expressed"])
    @pytest.mark.parametrize("factor", [0.97, 0.5, 40.0])
    def test_scaled_counts_select_the_same_genes(self, strategy: str, factor: float) -> None:
        adata, scaled = counts(), counts()
        scaled.X = scaled.X.astype(np.float32) * np.float32(factor)
        for cells in (adata, scaled):
            sg.tl.select_genes(cells, 20, strategy)
        pd.testing.assert_series_equal(scaled.var["selected_rank"], adata.var["selected_rank"])

    @pytest.mark.parametrize("base", [2.0, 10.0])
    @pytest.mark.parametrize("recorded", [True, False])
    def test_logarithms_to_another_base_select_the_same_genes(self, base: float, recorded: bool) -> None:
        adata = counts()
        sc.pp.normalize_total(adata, target_sum=1e4)
        other = adata.copy()
        sc.pp.log1p(adata)
        sc.pp.log1p(other, base=base)
        if not recorded:
            del other.uns["log1p"]
        for cells in (adata, other):
            sg.tl.select_genes(cells, 20, "hvg")
        assert selected(other) == selected(adata)

    @pytest.mark.parametrize("record", [None, True, np.array([1.0]), [], {}, {"base": None}, "log1p"], ids=repr)
    def test_any_record_of_logarithms(self, record: Any) -> None:
        adata, plain = counts(), counts()
        adata.uns["log1p"] = record
        for cells in (adata, plain):
            sg.tl.select_genes(cells, 20)
        assert selected(adata) == selected(plain)

    def test_a_record_that_is_damaged_names_the_slot(self) -> None:
        adata = counts()
        adata.uns["log1p"] = {"base": "ten"}
        with pytest.raises(DataError, match=r"adata\.uns\['log1p'\]"):
            sg.tl.select_genes(adata, 20)

    def test_what_was_said_is_believed_and_recorded(self) -> None:
        adata = counts()
        sg.tl.select_genes(adata, 20, data_type="log1p")
        assert adata.uns["select_genes"]["params"]["data_type"] == "log1p"
        with pytest.raises(OptionError, match="data_type='logs': choose one of 'counts', 'log1p'"):
            sg.tl.select_genes(adata, 20, data_type="logs")

    def test_cells_that_were_cut_rank_genes_as_whole_ones(self) -> None:
        adata = counts()
        sc.pp.calculate_qc_metrics(adata, inplace=True, percent_top=None)
        kept = [name for i, name in enumerate(NAMES) if i % 3]
        part = adata[:, kept].copy()
        for cells in (adata, part):
            sg.tl.select_genes(cells, 20, "expressed")
        order = adata.var.loc[kept, "selected_rank"].dropna().sort_values().index
        assert part.var["selected_rank"].dropna().sort_values().index.tolist() == order.tolist()
