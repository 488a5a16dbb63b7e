"""What a run decides and refuses before it starts."""

from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData
from tests.pipeline.conftest import quick

from scgalore.adapters import ADAPTERS
from scgalore.errors import DataError, OptionError
from scgalore.optim import OPTIMIZERS
from scgalore.pipeline import RunConfig
from scgalore.pipeline.checks import complete_config, expected_epochs, with_cells
from scgalore.train import TrainConfig
from scgalore.train.budget import PATIENCE, open_epochs


def test_what_was_left_open_is_decided_and_recorded(pbmc_file: Path, tmp_path: Path) -> None:
    settled, file = complete_config(quick(pbmc_file, tmp_path / "run", labels_key="bulk_labels", adapter="lora"))
    assert settled.training["optimizer_options"].keys() == OPTIMIZERS["galore"].options.keys()
    assert settled.training["adapter_options"].keys() == ADAPTERS["lora"].options.keys()
    assert settled.training["lr"] == 1e-3
    assert (settled.validation_size, settled.test_size) == (0.1, 0.1)
    assert (len(file.obs), len(file.var)) == (700, 765)


@pytest.mark.parametrize(
    ("n_genes", "max_epochs", "phases"),
    [(700, 3, [500, 700]), (700, 1, [700]), (None, 9, [500, 650]), (4000, 9, [500, 4000]), (600, 9, [500, 600])],
)
def test_phases_of_a_curriculum_end_with_all_genes_and_have_an_epoch_each(
    pbmc_file: Path, tmp_path: Path, n_genes: int | None, max_epochs: int, phases: list[int]
) -> None:
    options = {"curriculum": True, "n_genes": n_genes, "max_epochs": max_epochs}
    settled, _ = complete_config(quick(pbmc_file, tmp_path / "run", labels_key="bulk_labels", **options))
    decided = with_cells(settled, 650, {"train": 500, "validation": 50})
    assert decided.training["curriculum"] == phases
    assert decided.n_genes == phases[-1]


def test_an_open_budget_is_decided_by_training_cells(pbmc_file: Path, tmp_path: Path) -> None:
    options = {"labels_key": "bulk_labels", "curriculum": True, "max_epochs": None, "max_cells": "all"}
    settled, file = complete_config(quick(pbmc_file, tmp_path / "run", **options))
    assert settled.training.get("max_epochs") is None
    decided = with_cells(settled, 650, {"train": 560, "validation": 70}).training
    epochs = open_epochs(560, TrainConfig(batch_size=decided["batch_size"]))
    assert (decided["max_epochs"], decided["patience"]) == (epochs, PATIENCE)
    assert expected_epochs(settled, file) == epochs
    assert "patience" not in with_cells(settled, 650, {"train": 560, "validation": 0}).training
    few, _ = complete_config(quick(pbmc_file, tmp_path / "run", **{**options, "max_cells": 70}))
    assert expected_epochs(few, file) > epochs


def test_another_version_is_warned_of(pbmc_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = quick(pbmc_file, tmp_path / "run", labels_key="bulk_labels")
    with caplog.at_level("WARNING", logger="scgalore"):
        complete_config(config)
        assert caplog.text == ""
        complete_config(config.changed(version="0.1.0"))
    assert "by version 0.1.0" in caplog.text


def test_files_without_cells_or_without_targets_are_refused(pbmc: AnnData, tmp_path: Path) -> None:
    pbmc.obs["nothing"] = np.nan
    pbmc.write_h5ad(tmp_path / "cells.h5ad")
    pbmc[:0].write_h5ad(tmp_path / "empty.h5ad")
    with pytest.raises(DataError, match=r"empty: 0 cells x 765 genes"):
        complete_config(quick(tmp_path / "empty.h5ad", tmp_path / "run"))
    with pytest.raises(DataError, match=r"has a value in obs\['nothing'\]"):
        complete_config(quick(tmp_path / "cells.h5ad", tmp_path / "run", labels_key="nothing"))


def test_several_processes_are_refused(pbmc_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "TORCHELASTIC_RUN_ID": "x",
        "WORLD_SIZE": "2",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match="uses a single process"):
        complete_config(quick(pbmc_file, tmp_path / "run", labels_key="bulk_labels"))


@pytest.mark.parametrize(
    ("column", "slot", "options"),
    [
        ("run_split", "obs", {"labels_key": "run_split"}),
        ("scgpt_label", "obs", {"labels_key": "scgpt_label"}),
        ("scgpt_value", "obs", {"values_key": "scgpt_value"}),
        ("run_split", "obs", {"labels_key": "bulk_labels", "batch_key": "run_split"}),
        ("selected_source", "var", {"labels_key": "bulk_labels", "gene_symbols": "selected_source"}),
    ],
)
def test_columns_that_the_run_would_write_over(
    pbmc: AnnData, tmp_path: Path, column: str, slot: str, options: dict[str, str]
) -> None:
    adata = pbmc[:60, :50].copy()
    getattr(adata, slot)[column] = [str(i % 2) for i in range(len(getattr(adata, slot)))]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(OptionError, match=f"'{column}'.*is read by this call"):
        complete_config(RunConfig(tmp_path / "cells.h5ad", tmp_path / "run", model="scgpt-mini", **options))
    assert not (tmp_path / "run").exists()


def test_a_split_that_an_earlier_run_made_can_be_used_again(pbmc: AnnData, tmp_path: Path) -> None:
    adata = pbmc[:60, :50].copy()
    adata.obs["run_split"] = adata.obs["scgpt_split"] = ["train", "test", "validation"] * 20
    adata.write_h5ad(tmp_path / "cells.h5ad")
    for split_key in ("run_split", "scgpt_split"):
        options = {"labels_key": "bulk_labels", "split_key": split_key, "model": "scgpt-mini"}
        settled, _ = complete_config(RunConfig(tmp_path / "cells.h5ad", tmp_path / "run", **options))
        assert settled.split_key == split_key
