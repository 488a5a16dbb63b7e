import sys
import time

import pytest

from scgalore.pipeline.measure import Stopwatch, peak_memory, versions


def test_stopwatch_adds_up_by_part() -> None:
    watch = Stopwatch()
    for _ in range(2):
        with watch.time("a"):
            time.sleep(0.02)
    with pytest.raises(ZeroDivisionError), watch.time("b"):
        _ = 1 / 0
    assert list(watch.seconds) == ["a", "b"]
    assert 0.04 <= watch.seconds["a"] < 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell")
def test_peak_memory_is_in_bytes() -> None:
    before = peak_memory()
    assert before is not None
    block = bytearray(300_000_000)
    block[:: 1 << 12] = b"x" * len(block[:: 1 << 12])
    after = peak_memory()
    assert after is not None
    assert after >= max(before, 300_000_000)
    assert after < before + 600_000_000


def test_versions_name_what_the_numbers_depend_on() -> None:
    assert {"python", "machine", "scgalore", "torch", "scanpy"} <= versions().keys()
    assert "cores" in versions()["machine"]
