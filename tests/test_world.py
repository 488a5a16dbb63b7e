import sys
from types import SimpleNamespace

import pytest

from scgalore import _logging, _progress
from scgalore._settings import settings

LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_STEP_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def torchrun(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    values = {"TORCHELASTIC_RUN_ID": "x", "RANK": rank, "WORLD_SIZE": 4, "LOCAL_RANK": rank % 2, "LOCAL_WORLD_SIZE": 2}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


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
