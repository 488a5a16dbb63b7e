import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from scgalore import _logging
from scgalore._settings import settings


@contextmanager
def unconfigured_logging() -> Iterator[None]:
    """Logging as in a fresh interpreter. Not a fixture: pytest adds its handlers between setup and test."""
    loggers = (logging.getLogger(), _logging.logger)
    before = [logger.handlers for logger in loggers]
    scanpy = sys.modules.pop("scanpy", None)
    for logger in loggers:
        logger.handlers = []
    try:
        yield
        assert [logger.handlers for logger in loggers] == [[], []]
        assert _logging.logger.level == logging.NOTSET
    finally:
        for logger, handlers in zip(loggers, before, strict=True):
            logger.handlers = handlers
        if scanpy is not None:
            sys.modules["scanpy"] = scanpy


def say_everything() -> None:
    _logging.warning("w")
    _logging.result("r")
    _logging.info("i")
    _logging.hint("h")
    _logging.debug("d")


@pytest.mark.parametrize(
    ("verbosity", "printed"),
    [
        pytest.param(None, ["WARNING: w", "r"], id="default"),
        pytest.param(0, [], id="errors"),
        pytest.param(1, ["WARNING: w", "r"], id="results"),
        pytest.param(2, ["WARNING: w", "r", "i"], id="information"),
        pytest.param(3, ["WARNING: w", "r", "i", "--> h"], id="hints"),
        pytest.param(4, ["WARNING: w", "r", "i", "--> h", "    d"], id="everything"),
    ],
)
def test_verbosity_decides_what_is_printed(
    capsys: pytest.CaptureFixture[str], verbosity: int | None, printed: list[str]
) -> None:
    settings.verbosity = verbosity
    with unconfigured_logging():
        say_everything()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == printed


@pytest.mark.parametrize(
    ("verbosity", "printed"),
    [(None, ["WARNING: w", "p", "r"]), (1, ["WARNING: w", "p", "r"]), (2, ["r", "WARNING: w", "i", "p", "r"])],
)
def test_summarised_calls_show_warnings_once_and_results_as_details(
    capsys: pytest.CaptureFixture[str], verbosity: int | None, printed: list[str]
) -> None:
    settings.verbosity = verbosity
    with unconfigured_logging():
        with _logging.summarised():
            _logging.result("r")
            _logging.warning("w")
            _logging.warning("w")
            _logging.info("i")
            _logging.progress("p")
        _logging.result("r")
    assert capsys.readouterr().err.splitlines() == printed


def test_scanpy_is_followed_until_told_otherwise(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scanpy = SimpleNamespace(settings=SimpleNamespace(verbosity=2))
    with unconfigured_logging():
        monkeypatch.setitem(sys.modules, "scanpy", scanpy)
        say_everything()
        assert capsys.readouterr().err.splitlines() == ["WARNING: w", "r", "i"]
        settings.verbosity = 0
        say_everything()
    assert capsys.readouterr().err == ""


def test_real_scanpy_is_understood() -> None:
    sc = pytest.importorskip("scanpy")
    before = sc.settings.verbosity
    try:
        for name, level in [("error", logging.ERROR), ("info", logging.INFO), ("hint", _logging.HINT)]:
            sc.settings.verbosity = name
            assert _logging.threshold() == level
    finally:
        sc.settings.verbosity = before


def test_level_of_the_logger_is_honoured(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "scanpy", raising=False)
    caplog.set_level(logging.ERROR, logger="scgalore")
    say_everything()
    assert caplog.messages == []


def test_configured_logging_gets_the_records(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.verbosity = 2
    say_everything()
    assert [(record.name, record.levelname, record.message) for record in caplog.records] == [
        ("scgalore", "WARNING", "w"),
        ("scgalore", "RESULT", "r"),
        ("scgalore", "INFO", "i"),
    ]
    assert {record.funcName for record in caplog.records} == {"say_everything"}
    assert capsys.readouterr().err == "", "printed twice"


@pytest.mark.parametrize(
    ("verbosity", "expected"),
    [
        (1, "embedding\n    finished (0:00:00), added adata.obsm['X_scGPT', 'X_b'], adata.uns['embed']\n"),
        (2, "embedding\n    finished (0:00:00), added adata.obsm['X_scGPT', 'X_b'], adata.uns['embed']\n"),
        (
            3,
            "embedding\n    finished: added\n    'X_scGPT', cell embedding (adata.obsm),\n    'X_b', cell embedding (adata.obsm),\n"
            "    'embed', parameters (adata.uns) (0:00:00)\n",
        ),
    ],
)
def test_step_closes_as_scanpy_does(capsys: pytest.CaptureFixture[str], verbosity: int, expected: str) -> None:
    settings.verbosity = verbosity
    with unconfigured_logging(), _logging.step("embedding") as done:
        done.added("obsm", "X_scGPT", "cell embedding")
        done.added("obsm", "X_b", "cell embedding")
        done.added("uns", "embed", "parameters")
    assert capsys.readouterr().err == expected


def test_failed_step_does_not_say_finished(capsys: pytest.CaptureFixture[str]) -> None:
    settings.verbosity = 2
    with unconfigured_logging(), pytest.raises(ZeroDivisionError), _logging.step("embedding"):
        _ = 1 / 0
    assert capsys.readouterr().err == "embedding\n"


def test_percent_signs_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    _logging.warning("50 % of %s")
    assert caplog.messages == ["50 % of %s"]
