import pytest

from scgalore._words import duration, seconds_of


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5370, "1 h 30 min"), (7500, "2 h 05 min")]
)
def test_durations_are_written_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("40 s", 40),
        ("30min", 1800),
        (" 1.5 h ", 5400),
        *((wrong, None) for wrong in ("", "30", "min", "0 min", "-1 h", "1 d", "1,5 h", "2 h 05 min")),
    ],
)
def test_times_are_read_as_people_write_them(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == seconds
