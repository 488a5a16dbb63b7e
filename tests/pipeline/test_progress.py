import pytest

from scgalore.pipeline.progress import Stages


def test_log_files_get_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    stages = Stages(2)
    with stages.stage("read") as note:
        note("5 cells")
        note("3 genes")
    with stages.stage("split"):
        pass
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert [line.split(" (")[0].strip() for line in lines] == [
        "[1/2] read ...",
        "5 cells; 3 genes",
        "[2/2] split ...",
        "done",
    ]
    assert all(line.endswith(" s)") for line in lines[1::2])
    assert "\x1b" not in err, "no colours in a log file"


def test_a_stage_that_fails_says_nothing_more(capsys: pytest.CaptureFixture[str]) -> None:
    stages = Stages(2)
    with pytest.raises(ZeroDivisionError), stages.stage("read"):
        _ = 1 / 0
    assert capsys.readouterr().err.splitlines() == ["[1/2] read ..."]


def test_terminals_get_a_bar_that_vanishes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("scgalore.pipeline.progress.is_shown", lambda: True)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    stages = Stages(1)
    with stages.stage("read") as note:
        note("5 cells")
    err = capsys.readouterr().err
    assert "\x1b" in err
    last = err.splitlines()[-1]
    assert "[1/1] read 5 cells (" in last
