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
