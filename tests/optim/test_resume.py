"""Every entry of the registry: resumed in another process, moved between precisions, left without gradients."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.bitwise import differences, leaves
from tests.optim.runs import END, INTERRUPTED, make_network, make_optimizer, save, train
from torch import Tensor

from scgalore.optim import OPTIMIZERS

SCRIPT = Path(__file__).with_name("runs.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the state of each entry at the interruption, at the end, and at the end of the resumed run."""
    folder = tmp_path_factory.mktemp("runs")
    for name in OPTIMIZERS:
        network = make_network()
        optimizer = make_optimizer(name, network)
        train(network, optimizer, range(INTERRUPTED))
        save(folder / f"{name}.interrupted", network, optimizer)
        train(network, optimizer, range(INTERRUPTED, END))
        save(folder / f"{name}.whole", network, optimizer)
    done = subprocess.run(
        [sys.executable, SCRIPT, folder, str(torch.get_num_threads())], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", OPTIMIZERS)
class TestResumed:
    def test_weights_and_state_are_those_of_the_whole_run(self, runs: Path, name: str) -> None:
        whole, resumed, interrupted = (
            torch.load(runs / f"{name}.{part}", weights_only=True) for part in ("whole", "resumed", "interrupted")
        )
        # Loading adds some of torch's defaults, such as "differentiable", to the groups.
        for content in (whole, resumed):
            content["groups"] = [
                {key: group[key] for key in interrupted["optimizer"]["param_groups"][0] if key in group}
                for group in content["optimizer"].pop("param_groups")
            ]
        assert differences(whole, resumed) == []
        assert differences(whole["weights"], interrupted["weights"]) != []

    def test_state_is_tensors_and_numbers(self, runs: Path, name: str) -> None:
        state = torch.load(runs / f"{name}.interrupted", weights_only=True)["optimizer"]["state"]
        assert state
        assert [path for path, value in leaves(state) if not isinstance(value, Tensor | int | float)] == []

    def test_checkpoint_keeps_no_more_than_its_tensors_need(self, runs: Path, name: str) -> None:
        # A view of a large matrix would be saved whole.
        state = torch.load(runs / f"{name}.interrupted", weights_only=True)["optimizer"]["state"]
        tensors = [value for _, value in leaves(state) if isinstance(value, Tensor)]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        assert sum(storages.values()) <= sum(tensor.nbytes for tensor in tensors)

    def test_state_moves_between_precisions(self, runs: Path, name: str) -> None:
        content = torch.load(runs / f"{name}.interrupted", weights_only=True)
        for dtype in (torch.bfloat16, torch.float32):
            network = make_network(dtype)
            network.load_state_dict(content["weights"])
            optimizer = make_optimizer(name, network)
            optimizer.load_state_dict(content["optimizer"])
            train(network, optimizer, range(INTERRUPTED, END))
            assert all(param.isfinite().all() and param.dtype == dtype for param in network.parameters())
            content = {"weights": network.state_dict(), "optimizer": optimizer.state_dict()}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("n_steps", [0, 5], ids=["fresh", "after some steps"])
def test_a_step_without_gradients_does_nothing(name: str, n_steps: int) -> None:
    network = make_network()
    optimizer = make_optimizer(name, network)
    train(network, optimizer, range(n_steps))
    optimizer.zero_grad()
    before = copy.deepcopy([network.state_dict(), optimizer.state_dict()])
    optimizer.step()
    assert differences(before, [network.state_dict(), optimizer.state_dict()]) == []
