import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgalore._rng import seed_from
from scgalore.errors import OptionError


@given(st.integers(0, 2**32 - 1))
def test_integer_is_its_own_seed(seed: int) -> None:
    assert seed_from(seed) == seed
    assert type(seed_from(np.uint32(seed))) is int  # type: ignore[arg-type]


def test_generator_gives_a_reproducible_sequence_of_seeds() -> None:
    first, second = np.random.default_rng(1), np.random.default_rng(1)
    seeds = [seed_from(first) for _ in range(3)]
    assert seeds == [seed_from(second) for _ in range(3)]
    assert len(set(seeds)) == 3


def test_none_differs_and_stays_in_range() -> None:
    seeds = {seed_from(None) for _ in range(5)}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_global_state_is_left_alone() -> None:
    before = str(np.random.get_state())  # noqa: NPY002
    for rng in (0, None, np.random.default_rng(0)):
        seed_from(rng)
    assert str(np.random.get_state()) == before  # noqa: NPY002


@pytest.mark.parametrize("rng", [-1, 2**32, 1.0, "0", True, np.random.RandomState(0)])
def test_what_is_no_seed_is_refused(rng: object) -> None:
    with pytest.raises(OptionError, match="rng is"):
        seed_from(rng)  # type: ignore[arg-type]
