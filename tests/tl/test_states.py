import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.tl._states import States


@pytest.fixture
def adata() -> AnnData:
    obs = pd.DataFrame(
        {
            "type": ["b", "a", "b", None, "a", "c"],
            "state": [0.0, 1.0, 1.0, 0.0, 0.0, 1.0],
        },
        index=list("uvwxyz"),
    )
    return AnnData(np.ones((6, 2), dtype=np.float32), obs)


def states(adata: AnnData, **options: object) -> States:
    none = dict.fromkeys(("groupby", "groups", "target_key", "target"))
    return States.of(adata, **{**none, **options})  # type: ignore[arg-type]


def test_all_cells_are_one_group_unless_told_otherwise(adata: AnnData) -> None:
    found = states(adata)
    assert (found.names, found.codes.tolist(), found.target) == (("all",), [0] * 6, None)


def test_groups_are_in_order_and_cells_without_one_are_left_out(adata: AnnData) -> None:
    found = states(adata, groupby="type")
    assert (found.names, found.codes.tolist()) == (("a", "b", "c"), [1, 0, 1, -1, 0, 2])
    found = states(adata, groupby="type", groups=["c", "a"])
    assert (found.names, found.codes.tolist()) == (("c", "a"), [-1, 1, -1, -1, 1, 0])


def test_cells_of_the_target_are_not_edited_and_groups_without_others_left_out(adata: AnnData) -> None:
    found = states(adata, groupby="type", target_key="state", target=1)
    assert (found.names, found.codes.tolist()) == (("a", "b"), [1, -1, -1, -1, 0, -1])
    assert found.target is not None
    assert found.target.tolist() == [False, True, True, False, False, True]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"target_key": "state"}, OptionError, "target_key= needs target="),
        ({"target": 1}, OptionError, "target= needs target_key="),
        ({"groups": "a"}, OptionError, "needs groupby="),
        ({"groupby": "kind"}, MissingKeyError, "groupby='kind' is not a column"),
        ({"groupby": "type", "groups": ["a", "d"]}, MissingKeyError, "No cell is labelled 'd'"),
        ({"target_key": "state", "target": 2}, MissingKeyError, "No cell is labelled 2 in adata.obs"),
        (
            {"groupby": "type", "groups": "c", "target_key": "state", "target": 1},
            DataError,
            "'c' of adata.obs\\['type'\\] has no cell to change outside the target 1",
        ),
    ],
)
def test_what_cannot_be_edited_is_refused(adata: AnnData, options: dict, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        states(adata, **options)


def test_no_cell_outside_of_the_target_is_an_error(adata: AnnData) -> None:
    adata.obs["state"] = 1
    with pytest.raises(DataError, match="adata has no cell to change outside the target 1"):
        states(adata, target_key="state", target=1)


def test_cells_are_drawn_by_what_they_hold(adata: AnnData) -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**60, 6).astype(np.uint64)
    found = states(adata, groupby="type", groups=["a", "b"])
    first = found.pick(keys, 1, seed=3)
    assert found.codes[first].tolist() in ([0, 1], [1, 0])
    order = rng.permutation(6)
    again = states(adata[order].copy(), groupby="type", groups=["a", "b"]).pick(keys[order], 1, seed=3)
    assert set(keys[order][again]) == set(keys[first])
    assert found.pick(keys, 10, seed=3).tolist() == [0, 1, 2, 4]
