import sys
from types import SimpleNamespace

import pytest

from scgalore import _logging, _progress
from scgalore._settings import settings
from scgalore._world import World, is_first_process, launched_world

LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_STEP_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def torchrun(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    values = {"TORCHELASTIC_RUN_ID": "x", "RANK": rank, "WORLD_SIZE": 4, "LOCAL_RANK": rank % 2, "LOCAL_WORLD_SIZE": 2}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


def srun(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    values = {"STEP_ID": 0, "NTASKS": 4, "NTASKS_PER_NODE": 2, "PROCID": rank, "LOCALID": rank % 2, "JOB_NAME": "fit"}
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


@pytest.mark.parametrize("launch", [torchrun, srun])
@pytest.mark.parametrize("rank", range(4))
def test_the_launcher_says_which_process_this_is(monkeypatch: pytest.MonkeyPatch, launch, rank: int) -> None:
    launch(monkeypatch, rank)
    assert launched_world() == World(rank, 4, rank % 2, 2)
    assert launched_world().n_nodes == 2
    assert is_first_process() == (rank == 0)


def test_a_shell_in_a_slurm_job_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    srun(monkeypatch, 3)
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    assert launched_world() == World()
    monkeypatch.setenv("SLURM_JOB_NAME", "fit")
    monkeypatch.delenv("SLURM_STEP_ID")  # a batch script without srun
    assert launched_world() == World()


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_speaks_for_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int
) -> None:
    torchrun(monkeypatch, rank)
    settings.verbosity, settings.progress = 3, True
    monkeypatch.setattr(_logging.logger, "handlers", [])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert _progress.is_shown() == (rank == 0)
    records: list[str] = []
    monkeypatch.setattr(_logging.logger, "handle", lambda record: records.append(record.getMessage()))
    _logging.info("once")
    _logging.warning("in each")
    assert ("once" in records) == (rank == 0)
    assert "in each" in records
