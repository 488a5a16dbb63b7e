import copy
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scgalore.errors import DiskError, OptionError, WeightsError
from scgalore.train.checkpoint import (
    CHECKPOINT_KEY,
    WholeFiles,
    checkpoint_to_resume,
    last_checkpoint,
    read_checkpoint,
)

STATE: dict[str, Any] = {
    CHECKPOINT_KEY: {"lr": 1, "seed": 0},
    "state_dict": {"layer.weight": torch.zeros(3)},
    "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}}}],
    "lr_schedulers": [{"last_epoch": 3}],
    "callbacks": {"BestWeights": {"best": math.inf, "weights": {"layer.weight": torch.zeros(3)}}},
    "loops": {},
    "epoch": 0,
    "global_step": 3,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    WholeFiles().save_checkpoint({**STATE, "x": torch.arange(4)}, last_checkpoint(tmp_path))
    return tmp_path


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


class TestWholeFiles:
    def test_round_trip_makes_folders(self, tmp_path: Path) -> None:
        path = tmp_path / "a" / "b" / "last.ckpt"
        WholeFiles().save_checkpoint({CHECKPOINT_KEY: {}, "x": torch.ones(2)}, path)
        assert WholeFiles().load_checkpoint(path)["x"].tolist() == [1, 1]
        assert [found.name for found in path.parent.iterdir()] == ["last.ckpt"]

    def test_failure_keeps_the_last_checkpoint(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(content: object, path: Path) -> None:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", broken)
        with pytest.raises(OSError, match="No space left"):
            WholeFiles().save_checkpoint({}, last_checkpoint(folder))
        assert [found.name for found in folder.iterdir()] == ["last.ckpt"]
        assert read_checkpoint(last_checkpoint(folder))["x"].tolist() == [0, 1, 2, 3]

    def test_code_is_not_run(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        torch.save({CHECKPOINT_KEY: {}, "x": Code()}, last_checkpoint(folder))
        with pytest.raises(WeightsError, match=r"last\.ckpt is damaged"):
            WholeFiles().load_checkpoint(last_checkpoint(folder), weights_only=False)
        assert not (folder / "ran").exists()


class TestToResume:
    def test_path_of_the_same_run(self, folder: Path) -> None:
        assert checkpoint_to_resume(folder, resume=True, identity={"lr": 1, "seed": 0}) == last_checkpoint(folder)

    @pytest.mark.parametrize(
        ("run", "position", "text"),
        [
            ({"max_epochs": 6, "steps_per_epoch": 10}, {"epoch": 2, "batch": 5}, "step 25 of 60, after 2 of 6 epochs"),
            ({"max_epochs": 6, "steps_per_epoch": None}, {"epoch": 6, "batch": 0}, "step 25, after all 6 epochs"),
            (
                {"max_epochs": 6, "steps_per_epoch": 10, "accumulate_tokens": 100},
                {"epoch": 2, "batch": 5},
                "step 25, after 2 of 6 epochs",
            ),
        ],
    )
    def test_it_is_said_how_far_it_is(
        self,
        tmp_path: Path,
        run: dict[str, Any],
        position: dict[str, int],
        text: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        state = {**STATE, CHECKPOINT_KEY: run, "global_step": 25, "CellDataModule": position}
        WholeFiles().save_checkpoint(state, last_checkpoint(tmp_path))
        with caplog.at_level("INFO", logger="scgalore"):
            checkpoint_to_resume(tmp_path, resume=True, identity=run)
        assert f"resuming {last_checkpoint(tmp_path)} at {text}\n" in caplog.text

    def test_nothing_to_resume(self, tmp_path: Path) -> None:
        assert checkpoint_to_resume(None, resume=False, identity={}) is None
        assert checkpoint_to_resume(tmp_path / "no", resume=True, identity={}) is None
        assert list(tmp_path.iterdir()) == []

    def test_differences_are_named(self, folder: Path) -> None:
        with pytest.raises(
            OptionError,
            match=r"belongs to another run: lr was 1, now 2; patience was None, now 3\. To start a new run, use another folder \(checkpoint_dir=, or --out",
        ):
            checkpoint_to_resume(folder, resume=True, identity={"lr": 2, "seed": 0, "patience": 3})

    @pytest.mark.parametrize("worst", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize(
        ("change", "name"),
        [
            (lambda state: state["state_dict"]["layer.weight"], "'weights.layer.weight'"),
            (lambda state: state["optimizer_states"][0]["state"][0]["exp_avg"], "'optimizer.0.state.0.exp_avg'"),
            (
                lambda state: state["callbacks"]["BestWeights"]["weights"]["layer.weight"],
                "'best.BestWeights.layer.weight'",
            ),
        ],
        ids=["weights", "optimizer", "best weights"],
    )
    def test_state_that_is_not_finite(
        self, tmp_path: Path, change: Callable[[dict[str, Any]], torch.Tensor], name: str, worst: float
    ) -> None:
        state = copy.deepcopy(STATE)
        change(state)[1] = worst
        WholeFiles().save_checkpoint(state, last_checkpoint(tmp_path))
        before = last_checkpoint(tmp_path).read_bytes()
        with pytest.raises(WeightsError, match=rf"last\.ckpt holds .*{name} \(1 "):
            checkpoint_to_resume(tmp_path, resume=True, identity=STATE[CHECKPOINT_KEY])
        assert last_checkpoint(tmp_path).read_bytes() == before

    @pytest.mark.parametrize("name", [name for name in STATE if name != CHECKPOINT_KEY])
    @pytest.mark.parametrize("value", ["absent", None, "3"])
    def test_parts_that_are_missing_or_of_another_kind(self, tmp_path: Path, name: str, value: str | None) -> None:
        state = {key: part for key, part in STATE.items() if key != name}
        if value != "absent":
            state[name] = value
        WholeFiles().save_checkpoint(state, last_checkpoint(tmp_path))
        with pytest.raises(WeightsError, match=rf"last\.ckpt(: | lacks ){name}"):
            checkpoint_to_resume(tmp_path, resume=True, identity=STATE[CHECKPOINT_KEY])

    @pytest.mark.parametrize("position", [3, {"epoch": -1, "batch": 0}, {"epoch": 0, "batch": "last"}])
    def test_position_of_another_kind(self, tmp_path: Path, position: Any) -> None:
        WholeFiles().save_checkpoint({**STATE, "CellDataModule": position}, last_checkpoint(tmp_path))
        with pytest.raises(WeightsError, match=r"last\.ckpt: CellDataModule"):
            checkpoint_to_resume(tmp_path, resume=True, identity=STATE[CHECKPOINT_KEY])

    def test_identity_of_another_kind(self, tmp_path: Path) -> None:
        WholeFiles().save_checkpoint({**STATE, CHECKPOINT_KEY: 3}, last_checkpoint(tmp_path))
        with pytest.raises(WeightsError, match=rf"{CHECKPOINT_KEY} is 3; it must be an object"):
            checkpoint_to_resume(tmp_path, resume=True, identity={})

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_folder_that_is_not_writable(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(DiskError, match="no permission to write to"):
            checkpoint_to_resume(tmp_path / "run", resume=False, identity={})

    @pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 not really"])
    def test_damaged_file(self, folder: Path, content: bytes) -> None:
        last_checkpoint(folder).write_bytes(content)
        with pytest.raises(WeightsError, match="damaged"):
            checkpoint_to_resume(folder, resume=True, identity={})
