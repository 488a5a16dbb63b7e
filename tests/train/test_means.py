import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from scgalore.train.means import Means, of_all_processes

PARTS = st.lists(st.tuples(st.floats(-100, 100, width=32), st.integers(0, 50)), min_size=1, max_size=12)


def filled(parts: list[tuple[float, int]]) -> Means:
    means = Means()
    for value, n in parts:
        means.add("loss", torch.tensor(value), n)
    return means


@given(PARTS.filter(lambda parts: any(n for _, n in parts)))
def test_each_cell_weighs_the_same(parts: list[tuple[float, int]]) -> None:
    values, counts = (np.array(column, dtype=float) for column in zip(*parts, strict=True))
    means = filled(parts)
    np.testing.assert_allclose(float(means.take()["loss"]), np.average(values, weights=counts), rtol=1e-4, atol=1e-4)
    assert means.take() == {}


@given(PARTS, st.integers(0, 12))
def test_they_go_on_from_a_checkpoint_to_the_same_bits(parts: list[tuple[float, int]], kept: int) -> None:
    whole, before, after = filled(parts), filled(parts[:kept]), Means()
    after.load_state_dict(before.state_dict(), torch.device("cpu"))
    for value, n in parts[kept:]:
        after.add("loss", torch.tensor(value), n)
    assert str(after.take()) == str(whole.take())  # of no cells, a mean is no number


def test_a_process_alone_has_its_own() -> None:
    assert of_all_processes({"a": 1}) == [{"a": 1}]
