import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest

from scgalore import _progress
from scgalore._settings import settings


@pytest.mark.parametrize(
    ("wanted", "terminal", "notebook", "shown"),
    [
        pytest.param(True, True, False, True, id="terminal"),
        pytest.param(True, False, False, False, id="log_file"),
        pytest.param(True, False, True, True, id="notebook"),
        pytest.param(False, True, True, False, id="switched_off"),
    ],
)
def test_bar_is_shown_where_it_is_seen(
    monkeypatch: pytest.MonkeyPatch, wanted: bool, terminal: bool, notebook: bool, shown: bool
) -> None:
    settings.progress = wanted
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    shell = SimpleNamespace(config={"IPKernelApp": {}} if notebook else {})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert _progress.is_shown() is shown


def test_library_of_notebooks_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has imported ipykernel or IPython, as papermill and test runners do."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not _progress.is_shown()


def test_process_without_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert not _progress.is_shown()


def test_items_pass_through_unchanged() -> None:
    assert list(_progress.progress(iter(range(3)), label="counting", total=3)) == [0, 1, 2]


class TestWithoutTerminal:
    """A log file gets lines, and nothing where they are switched off."""

    @pytest.mark.parametrize(
        ("wanted", "shown", "lines"),
        [
            pytest.param(True, None, ["cells: 3 of 8 (38%), 50 s left", "cells: 6 of 8 (75%), 20 s left"], id="wanted"),
            pytest.param(False, None, [], id="switched_off"),
            pytest.param(True, False, [], id="not_for_this_call"),
        ],
    )
    def test_lines(
        self,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        wanted: bool,
        shown: bool | None,
        lines: list[str],
    ) -> None:
        settings.progress = wanted
        seconds = iter(range(0, 1000, 10))
        monkeypatch.setattr(_progress.time, "monotonic", lambda: next(seconds))
        with caplog.at_level(logging.INFO, logger="scgalore"), _progress.Progress("cells", 8, shown=shown) as work:
            for _ in range(8):
                work.update(1)
        assert [record.getMessage().strip() for record in caplog.records] == lines

    def test_unknown_total(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        settings.progress = True
        seconds = iter([0, 40])
        monkeypatch.setattr(_progress.time, "monotonic", lambda: next(seconds))
        with caplog.at_level(logging.INFO, logger="scgalore"), _progress.Progress("training", unit="batches") as work:
            work.update(1500)
        assert [record.getMessage().strip() for record in caplog.records] == ["training: 1,500 batches after 40 s"]

    def test_sizes_are_added_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        counted: list[int] = []
        monkeypatch.setattr(_progress.Progress, "update", lambda _, n: counted.append(n))
        assert list(_progress.progress(["aa", "b"], label="cells", total=3, size=len)) == ["aa", "b"]
        assert counted == [2, 1]


def test_notebook_without_widgets_gets_no_warning() -> None:
    """In a kernel, tqdm.auto warns at import where ipywidgets is not installed, and pooch imports it."""
    script = """
import sys, types
shell = types.SimpleNamespace(config={"IPKernelApp": {}})
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: shell)
sys.modules["ipywidgets"] = sys.modules["IPython.html.widgets"] = None
import scgalore as sg
sg.settings.cachedir
from scgalore._progress import progress
print(sum(progress(range(3), label="counting")))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("3\n", "")
