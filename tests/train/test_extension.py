"""What may grow when a run is continued, and what may not."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from scgalore.train.extension import extended

epochs = st.integers(1, 50)
patience = st.none() | st.integers(1, 9)
phases = st.none() | st.dictionaries(st.integers(1, 999), st.integers(1, 9), min_size=1, max_size=4)


@given(epochs, epochs, patience, patience, phases)
def test_epochs_patience_and_the_last_phase_grow_and_nothing_shrinks(
    before: int, after: int, had: int | None, wants: int | None, curriculum: dict[int, int] | None
) -> None:
    saved: dict[str, Any] = {"max_epochs": before, "patience": had, "curriculum": curriculum, "lr": 0.1}
    result = extended(saved, {"max_epochs": after, "patience": wants, "curriculum": None, "lr": 0.2})
    assert result["lr"] == 0.1
    assert result["max_epochs"] == max(before, after)
    assert result["patience"] == (None if None in (had, wants) else max(had or 0, wants or 0))
    if curriculum is None:
        assert result["curriculum"] is None
    else:
        assert sum(result["curriculum"].values()) == sum(curriculum.values()) + max(after - before, 0)
        assert {n: k for n, k in result["curriculum"].items() if n != max(curriculum)} == {
            n: k for n, k in curriculum.items() if n != max(curriculum)
        }
    assert saved == {"max_epochs": before, "patience": had, "curriculum": curriculum, "lr": 0.1}


def test_a_run_without_these_settings_stays_as_it_is() -> None:
    assert extended({"lr": 0.1}, {"max_epochs": 3, "patience": 2}) == {"lr": 0.1}
