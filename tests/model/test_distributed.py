"""Rows shared out among processes and brought together again."""

from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from tests.launching import torchrun

from scgalore._world import World, current_world, is_first_process, launched_world
from scgalore.errors import OptionError
from scgalore.model.distributed import _first_node, gather, process_group, refuse_devices, share

LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_STEP_ID", "LOCAL_RANK", "NODE_RANK")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def set_slurm(patch: pytest.MonkeyPatch, **changed: str) -> None:
    variables = {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
    for name, value in {**variables, "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "train", **changed}.items():
        patch.setenv(name, value)


class TestWorld:
    def test_process_that_nobody_launched_is_alone(self) -> None:
        assert launched_world() == current_world() == World()
        assert is_first_process()

    def test_torchruns_variables_are_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        variables = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
        for name, value in {**variables, "LOCAL_WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        assert launched_world() == World(rank=3, size=4, local_rank=1, local_size=2)
        assert launched_world().n_nodes == 2
        assert not is_first_process()

    def test_slurms_variables_are_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        set_slurm(monkeypatch)
        assert launched_world() == World(rank=5, size=8, local_rank=1, local_size=4)

    @pytest.mark.parametrize("name", ["bash", "interactive"])
    def test_interactive_job_of_slurm_is_alone(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        set_slurm(monkeypatch, SLURM_JOB_NAME=name)
        assert launched_world() == World()

    def test_batch_script_without_srun_is_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        set_slurm(monkeypatch)
        monkeypatch.delenv("SLURM_STEP_ID")
        assert launched_world() == World()

    def test_copy_of_a_script_that_lightning_started_works_for_itself_and_is_quiet(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LOCAL_RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert launched_world() == World()
        assert not is_first_process()

    @pytest.mark.parametrize(
        ("nodes", "first"),
        [("node[03-05,9],other", "node03"), ("a,b", "a"), ("gpu-1", "gpu-1"), ("n[1-3]-ib", "n1-ib")],
    )
    def test_first_machine_of_slurms_list(self, nodes: str, first: str) -> None:
        assert _first_node(nodes) == first


class TestShare:
    @given(n_obs=st.integers(0, 1000), size=st.integers(1, 20))
    def test_shares_are_consecutive_and_equal_but_for_one(self, n_obs: int, size: int) -> None:
        parts = [np.arange(n_obs)[share(n_obs, World(rank, size))] for rank in range(size)]
        assert np.concatenate(parts).tolist() == list(range(n_obs))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


class TestAlone:
    def test_nothing_is_started_and_rows_are_returned(self) -> None:
        rows = np.ones((3, 2), dtype=np.float32)
        with process_group() as world:
            assert world == World()
            assert gather(rows, world) is rows
        assert not dist.is_initialized()

    def test_several_devices_are_refused_with_the_command(self) -> None:
        refuse_devices("auto")
        refuse_devices(1)
        with pytest.raises(OptionError, match=r"torch\.distributed\.run --standalone --nproc_per_node=2 script\.py"):
            refuse_devices(2)


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this build of torch has no gloo")
@pytest.mark.slow
def test_two_processes_get_all_rows_in_order_and_share_an_optimizers_state(tmp_path: Path) -> None:
    done = torchrun("tests.model.gathering", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        found = np.load(tmp_path / f"{rank}.npz")
        for name in ("first", "second", "third"):
            np.testing.assert_array_equal(found[name], found["rows"])
        np.testing.assert_array_equal(found["first_few"], found["rows"][:1])
        whole, own = found["state_bytes"]
        assert 0.45 * whole < own < 0.55 * whole
