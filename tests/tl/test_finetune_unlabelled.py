"""Fine-tuning with further cells that have no label: what is read of them, written down, and refused before any work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.model import SCGPT
from scgalore.pipeline import RunConfig
from scgalore.pipeline.checks import cell_files, complete_config
from scgalore.tasks.linear_model import LinearModel
from scgalore.tasks.registry import resolve_call

RUN: dict[str, Any] = {"labels_key": "bulk_labels", "max_epochs": 1, "batch_size": 32, "validation_size": 0.2}


@pytest.fixture
def others(pbmc: AnnData, few: AnnData) -> AnnData:
    """Cells of the same types that are not in ``few``, without their labels."""
    rest = pbmc[~pbmc.obs_names.isin(few.obs_names) & pbmc.obs["bulk_labels"].isin(few.obs["bulk_labels"].unique())]
    rest = rest[:, few.var_names].copy()
    del rest.obs
    return rest


def test_what_was_learnt_is_written_down(few: AnnData, model: SCGPT, others: AnnData, tmp_path: Path) -> None:
    sg.tl.finetune(few, model, unlabelled=others, **RUN)
    few.write_h5ad(tmp_path / "few.h5ad")
    found = ad.read_h5ad(tmp_path / "few.h5ad").uns["finetune"]
    assert found["params"]["unlabelled"] == f"{others.n_obs} cells x {others.n_vars} genes"
    learned = found["prior"]["unlabelled"]
    assert learned["n"] == learned["n_read"] == others.n_obs
    assert learned["classes"].index.tolist() == list(found["classes"])
    assert learned["classes"]["labelled"].sum() == few.obs["scgpt_split"].isin(["train", "validation"]).sum()
    assert 0 < learned["classes"]["guessed"].sum() <= others.n_obs
    without = few.copy()
    sg.tl.finetune(without, model, **RUN)
    assert "unlabelled" not in without.uns["finetune"]["prior"]


def prior_of(adata: AnnData, model: SCGPT, unlabelled: Any) -> LinearModel:
    """The linear model that a training run would start from."""
    options = {"labels_key": "bulk_labels", "unlabelled": unlabelled}
    task, call = resolve_call(options, task=None, seed=0, function=sg.tl.finetune, validation_size=0.2)
    prepared: Any = task.prepare(task.read(adata, call), model, call)
    return prepared.memory.prior


def test_what_the_cells_are_kept_in_and_their_labels_do_not_matter(
    few: AnnData, model: SCGPT, others: AnnData, tmp_path: Path
) -> None:
    path = tmp_path / "others.h5ad"
    others.write_h5ad(path)
    other = others.copy()
    other.X = other.X.toarray() if sp.issparse(other.X) else sp.csr_matrix(other.X)
    other.obs["bulk_labels"] = np.resize(few.obs["bulk_labels"].astype(str), other.n_obs)
    expected = prior_of(few, model, others)
    assert all(prior_of(few, model, given) == expected for given in (path, ad.read_h5ad(path, backed="r"), other))
    assert expected != prior_of(few, model, None)


def renamed(adata: AnnData) -> AnnData:
    return AnnData(adata.X, obs=adata.obs, var=adata.var[[]].set_axis([f"x{i}" for i in range(adata.n_vars)]))


REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "without a linear model": (lambda q, _: q, {"prior": "none"}, OptionError, "prior='none'"),
    "a number": (lambda *_: 5, {}, OptionError, "it must be an AnnData"),
    "no file": (lambda *_: "nowhere.h5ad", {}, DataError, "file not found"),
    "no cell": (lambda q, _: q[:0].copy(), {}, DataError, "no cells"),
    "no gene of ours": (lambda q, _: renamed(q), {}, DataError, "none of the 150 genes"),
    "our cells": (lambda _, few: few.copy(), {}, DataError, "are also in adata"),
    "one of our cells": (lambda q, few: ad.concat([q, few[3:4]]), {}, DataError, "are also in adata"),
    "no such layer": (lambda q, _: q, {"layer": "logs"}, MissingKeyError, "unlabelled.*'logs'"),
    "of another task": (lambda q, _: q, {"labels_key": None, "values_key": "n_genes"}, OptionError, "task='classes'"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_refused_before_anything_is_done(few: AnnData, model: SCGPT, others: AnnData, case: str) -> None:
    make, options, error, message = REFUSED[case]
    few.layers["logs"] = few.X.copy()
    before = set(few.obs), set(few.uns)
    with pytest.raises(error, match=message):
        sg.tl.finetune(few, model, unlabelled=make(others, few), **{**RUN, **options})
    assert model.result is None
    assert (set(few.obs), set(few.uns)) == before


def test_cells_of_the_same_names_that_are_others_are_taken(few: AnnData, model: SCGPT, others: AnnData) -> None:
    """Barcodes of two samples may be the same."""
    others = others[: few.n_obs].copy()
    others.obs_names = few.obs_names[: others.n_obs]
    sg.tl.finetune(few, model, unlabelled=others, **RUN)
    assert few.uns["finetune"]["prior"]["unlabelled"]["n"] == others.n_obs


class TestRuns:
    @pytest.fixture
    def files(self, few: AnnData, others: AnnData, tmp_path: Path) -> tuple[Path, Path]:
        few.layers["logs"] = few.X.copy()
        few.write_h5ad(tmp_path / "few.h5ad")
        others.write_h5ad(tmp_path / "others.h5ad")
        return tmp_path / "few.h5ad", tmp_path / "others.h5ad"

    def test_a_run_names_a_file(self, files: tuple[Path, Path], others: AnnData, tmp_path: Path) -> None:
        options: dict[str, Any] = {"labels_key": "bulk_labels", "model": "scgpt-mini"}
        config = RunConfig(files[0], tmp_path / "run", unlabelled=files[1], **options)
        assert cell_files(complete_config(config)[0]) == {"unlabelled": str(files[1])}
        (tmp_path / "config.json").write_text(config.to_json())
        assert RunConfig.from_json(tmp_path / "config.json") == config
        with pytest.raises(OptionError, match="since a run uses files"):
            RunConfig(files[0], tmp_path / "run", unlabelled=others, **options)
        with pytest.raises(MissingKeyError, match="layer='logs'.*others.h5ad"):
            complete_config(config.changed(layer="logs"))

    @pytest.mark.slow
    def test_a_run_learns_from_them_and_reports_it(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        options: dict[str, Any] = {"labels_key": "bulk_labels", "model": "scgpt-mini", "max_epochs": 1, "n_genes": 100}
        folder = sg.pipeline.run(RunConfig(files[0], tmp_path / "run", unlabelled=files[1], **options))
        report = (folder / "report.md").read_text()
        assert "## Cells without labels" in report
        learned = ad.read_h5ad(folder / "results.h5ad").uns["finetune"]["prior"]["unlabelled"]
        assert f"Of {learned['n_read']:,} cells" in report


def test_other_cells_make_another_run(
    few: AnnData, make_model: Callable[..., SCGPT], others: AnnData, tmp_path: Path
) -> None:
    run = {**RUN, "checkpoint_dir": tmp_path}
    sg.tl.finetune(few, make_model(few.var_names), unlabelled=others, **run)
    with pytest.raises(OptionError, match="other cells without labels"):
        sg.tl.finetune(few, make_model(few.var_names), unlabelled=others[:50].copy(), **run, resume=True)
    sg.tl.finetune(few, make_model(few.var_names), unlabelled=others, **{**run, "max_epochs": 2}, resume=True)
