from pathlib import Path

import numpy as np
import pytest
import torch
from tests.parity_plugin import CHOICES, NOT_COMPARED, Agreement, arrays_of_the_original, compare, page

PAGE = Path(__file__).parents[1] / "docs" / "parity.md"


def test_equal_arrays_agree():
    for x in (torch.ones(2, 3), np.arange(4), np.array(["a", "b"]), np.array([True]), np.float32(3), []):
        assert compare("x", x, x).holds
        assert compare("x", x, x).difference == 0


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([1.0, 2.0], [1.0, 2.0001]),
        ([1, 2], [1, 3]),
        ([True], [False]),
        (["a"], ["b"]),
        ([np.nan], [1.0]),
        ([1.0], [np.nan]),
        ([1.0], [np.inf]),
    ],
    ids=["floats", "integers", "booleans", "text", "ours-is-nan", "theirs-is-nan", "inf"],
)
def test_other_arrays_do_not(agree, ours, theirs):
    assert not compare("x", ours, theirs).holds
    with pytest.raises(AssertionError, match="x differs by"):
        agree("x", ours, theirs)


def test_shapes_must_be_the_same():
    with pytest.raises(AssertionError, match=r"shape \(3,\), expected \(1, 3\)"):
        compare("x", np.ones(3), np.ones((1, 3)))


def test_tolerance_grows_with_the_numbers():
    assert compare("x", [800.004, 1e-3], [800.0, 1e-3]).holds
    assert not compare("x", [800.01, 1e-3], [800.0, 1e-3]).holds
    assert compare("x", [0.1 + 8e-7, 0], [0.1, 0]).holds
    assert not compare("x", [0.1 + 2e-6, 0], [0.1, 0]).holds
    assert compare("x", [8e-7], [0.0]).holds
    assert not compare("x", [2e-6], [0.0]).holds
    assert not compare("x", [1_000_001], [1_000_000]).holds


def test_rounding_is_the_distance_from_double_precision():
    assert compare("x", [300.0], [300.0002], exact=[300.0001]).rounding == pytest.approx(1e-4)


def test_a_page_from_comparisons():
    rows = [
        Agreement("base/cell_emb", [6, 32], 2.5, 1.4e-6, 2.5e-5, None, ""),
        Agreement("base/mlm_output", [6, 24], 1.5, 0.0, 1.5e-5, None, "ours does more"),
        Agreement("train_step/grad_norm", [], 2118.0, 2.4e-4, 2e-2, 3.2e-4, ""),
    ]
    lines = page(reversed(rows)).splitlines()
    assert "| `cell_emb` | 6 x 32 | 2.5 | 1.4e-06 | 5.6e-07 |" in lines
    assert "| `mlm_output` * | 6 x 24 | 1.5 | equal |  |" in lines
    assert "| ours does more | `base/mlm_output` |" in lines
    assert "| `train_step/grad_norm` | 2118 | 2.4e-04 | 1.1e-07 | 3.2e-04 |" in lines
    assert "- 2 of 3 arrays agree to 1e-5 or better, 1 of them to the last bit" in lines
    assert "- the other 1 hold larger values and agree to 1.1e-07 of the largest" in lines


def test_the_page_of_the_documentation_is_complete(pytestconfig):
    if pytestconfig.getoption("--parity-table"):
        pytest.skip("it is being written")
    text = PAGE.read_text(encoding="utf-8")
    listed = set()
    for section in text.split("\n## ")[1:]:
        title, *lines = section.splitlines()
        if title.endswith(".npz"):
            names = [line.split("`")[1] for line in lines if line.startswith("| `")]
            listed |= {f"{title.removesuffix('.npz')}/{name}" for name in names}
    assert set(arrays_of_the_original()) <= listed
    assert all(choice in text for choice in CHOICES)
    assert all(name in text for name in NOT_COMPARED)
