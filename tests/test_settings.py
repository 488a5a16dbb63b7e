import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

import scgalore as sg
from scgalore._settings import Settings
from scgalore.errors import OptionError


def test_package_and_module_share_one_object() -> None:
    from scgalore._settings import settings

    assert sg.settings is settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("batch_size", "many"),
        ("verbosity", 5),
        ("verbosity", -1),
        ("progress", "perhaps"),
        ("cachedir", 3),
        ("batchsize", 8),
    ],
)
def test_wrong_value_is_refused_and_changes_nothing(name: str, value: object) -> None:
    before = sg.settings.model_dump()
    with pytest.raises(ValidationError, match=name):
        setattr(sg.settings, name, value)
    assert sg.settings.model_dump() == before


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("SCGALORE_OFFLINE", "1", "offline", True),
        ("SCGALORE_BATCH_SIZE", "7", "batch_size", 7),
        ("SCGALORE_VERBOSITY", "3", "verbosity", 3),
        ("SCGALORE_VERBOSITY", "", "verbosity", None),
        ("SCGALORE_PROGRESS", "false", "progress", False),
        ("SCGALORE_ACCELERATOR", "cpu", "accelerator", "cpu"),
    ],
)
def test_environment_fills_the_fields(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, field: str, value: object
) -> None:
    monkeypatch.setenv(variable, text)
    assert getattr(Settings(), field) == value


def test_cache_folder_follows_the_environment_and_is_anchored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCGALORE_CACHEDIR", "models")
    assert Settings().cachedir == tmp_path / "models"
    monkeypatch.setenv("SCGALORE_CACHEDIR", "~/models")
    assert Settings().cachedir == tmp_path / "home" / "models"
    monkeypatch.delenv("SCGALORE_CACHEDIR")
    assert "scgalore" in Settings().cachedir.parts
    assert list(tmp_path.iterdir()) == []


def test_override_restores_also_after_an_error() -> None:
    before = sg.settings.model_dump()

    with sg.settings.override(batch_size=3, offline=True):
        assert (sg.settings.batch_size, sg.settings.offline) == (3, True)
    assert sg.settings.model_dump() == before
    with pytest.raises(ZeroDivisionError), sg.settings.override(batch_size=3):
        _ = 1 / 0
    assert sg.settings.model_dump() == before


def test_override_with_one_wrong_value_sets_none() -> None:
    before = sg.settings.model_dump()
    with pytest.raises(ValidationError), sg.settings.override(batch_size=3, verbosity=9):
        pass
    assert sg.settings.model_dump() == before
    with pytest.raises(OptionError, match="batchsize"), sg.settings.override(batchsize=3):
        pass


def test_reset_goes_back_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    sg.settings.batch_size = 3
    monkeypatch.setenv("SCGALORE_BATCH_SIZE", "9")
    sg.settings.reset()
    assert sg.settings.batch_size == 9


def test_wrong_environment_names_the_field() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import scgalore as sg; sg.settings"],
        env={**os.environ, "SCGALORE_BATCH_SIZE": "many"},
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert "batch_size" in run.stderr
