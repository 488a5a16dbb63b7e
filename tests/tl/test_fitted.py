import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData
from tests.trained_screens import untrained

from scgalore.errors import MissingKeyError, OptionError
from scgalore.tl._fitted import free_folder, record_model, recorded_model

TASK = "perturbation"


def with_record(record: dict[str, str], key: str = "finetune") -> AnnData:
    return AnnData(np.ones((2, 2)), uns={key: {"params": {"task": TASK}, "model": record}})


class TestRecordedModel:
    def test_is_the_very_one_while_somebody_holds_it(self) -> None:
        models = [untrained(), untrained()]
        records = [record_model(model, None) for model in models]
        assert [recorded_model(with_record(record), TASK) for record in records] == models

    def test_is_not_kept_alive_by_the_record(self) -> None:
        record = record_model(untrained(), None)
        gc.collect()
        with pytest.raises(MissingKeyError, match=r"adata\.uns\['finetune'\] records is no longer in memory\. Keep"):
            recorded_model(with_record(record), TASK)

    def test_is_read_from_its_folder_when_memory_has_it_no_more(self, tmp_path: Path) -> None:
        model = untrained(rng=5)
        model.save(tmp_path / "model")
        record = record_model(model, str(tmp_path / "model"))
        weights = model.network.gene_table.weight.detach().clone()
        assert recorded_model(with_record(record), TASK) is model
        del model
        gc.collect()
        assert torch.equal(recorded_model(with_record(record), TASK).network.gene_table.weight, weights)

    def test_folder_that_has_gone_is_named(self, tmp_path: Path) -> None:
        record = record_model(untrained(), str(tmp_path / "gone"))
        gc.collect()
        with pytest.raises(MissingKeyError, match="the folder .*gone it was saved to does not exist"):
            recorded_model(with_record(record), TASK)

    @pytest.mark.parametrize("uns", [{}, {"finetune": {}}, {"finetune": {"params": {}}}])
    def test_without_record_says_what_to_call(self, uns: dict[str, object]) -> None:
        with pytest.raises(MissingKeyError, match=r"records none\. Call sg\.tl\.finetune"):
            recorded_model(AnnData(np.ones((2, 2)), uns=uns), TASK)

    def test_is_found_under_any_key(self) -> None:
        model = untrained()
        assert recorded_model(with_record(record_model(model, None), "mine"), TASK) is model

    def test_of_several_none_is_taken(self) -> None:
        models = [untrained(), untrained()]
        adata = with_record(record_model(models[0], None))
        adata.uns["mine"] = with_record(record_model(models[1], None)).uns["finetune"]
        with pytest.raises(MissingKeyError, match="'finetune', 'mine' were recorded"):
            recorded_model(adata, TASK)


class TestFreeFolder:
    def test_new_and_empty_folders_are_free(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty").mkdir()
        for given in ("new", Path("new"), tmp_path / "new"):
            assert free_folder(given) == str(tmp_path / "new")
        assert free_folder("empty") == str(tmp_path / "empty")
        assert not (tmp_path / "new").exists()

    def test_home_is_understood(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        assert free_folder("~/model") == str(tmp_path / "model")

    def test_files_and_full_folders_are_taken(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for taken in (tmp_path, tmp_path / "file"):
            with pytest.raises(OptionError, match="already exists and is not empty. Pass a new folder"):
                free_folder(taken)
