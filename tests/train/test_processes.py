import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData

from scgalore.errors import OptionError
from scgalore.model import SCGPT
from scgalore.train import TrainConfig
from scgalore.train.processes import Processes, training_processes

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be one of four processes on two machines."""
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def in_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a script."""
    monkeypatch.setattr(sys, "argv", [__file__])
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def test_one_process_unless_more_are_asked_for() -> None:
    assert training_processes(TrainConfig()) == Processes("auto", 1, 1)


@pytest.mark.usefixtures("in_a_script")
@pytest.mark.parametrize(
    ("devices", "size"),
    ids=repr,
    argvalues=[(2, 2), ("2", 2), ([0, 1, 2], 3), ("0,1", 2), (1, 1), ([4], 1), (np.int64(2), 2), ([np.int32(4)], 1)],
)
def test_devices_are_counted(devices: Any, size: int) -> None:
    assert training_processes(TrainConfig(devices=devices)).size == size


@pytest.mark.parametrize("devices", [-1, "-1", [0], [3], "1", 1, np.int64(1)], ids=repr)
def test_a_cpu_trains_whatever_gpus_are_named(few: AnnData, model: SCGPT, devices: Any) -> None:
    model.train(few, labels_key="bulk_labels", max_epochs=1, accelerator="cpu", devices=devices)
    assert len(model.history) == 1


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("options", [{}, {"devices": 2, "num_nodes": 2}, {"devices": -1}])
def test_launcher_decides(options: dict[str, Any]) -> None:
    assert training_processes(TrainConfig(**options)) == Processes(2, 2, 4)


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"devices": 1}, "devices=1.*started 2 processes on each of 2 machines", id="devices"),
        pytest.param({"num_nodes": 3}, "num_nodes=3.*started 2 processes", id="num_nodes"),
        pytest.param(
            {"per_layer_update": True, "clip_norm": math.inf},
            "per_layer_update=True does not support several processes",
            id="per_layer",
        ),
        pytest.param({"accelerator": "mps"}, "accelerator='mps'", id="mps"),
    ],
)
def test_what_does_not_go_with_several_processes_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        training_processes(TrainConfig(**options))


@pytest.mark.usefixtures("in_a_script")
def test_several_machines_need_a_launcher() -> None:
    with pytest.raises(OptionError, match=r"several machines need a launcher.*--nnodes=2"):
        training_processes(TrainConfig(num_nodes=2))


def test_prompt_cannot_start_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(OptionError, match=r"not from a notebook or a prompt.*--nproc_per_node=2"):
        training_processes(TrainConfig(devices=2))


def test_refusal_comes_before_anything_is_done(few: AnnData, model: SCGPT) -> None:
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    few.X = None  # would be the next thing to be refused
    with pytest.raises(OptionError, match="shard_optimizer=True requires several processes"):
        model.train(few, labels_key="bulk_labels", shard_optimizer=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())
