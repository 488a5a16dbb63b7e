from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from scgalore.errors import OptionError
from scgalore.optim.checks import check_galore_group, closest, plain_number

GOOD: dict[str, Any] = {
    "params": [torch.zeros(6, 6)],
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "basis": "warm",
    "moments": "rotate",
    "stagger": True,
    "lazy": False,
    "seed": 0,
    "rank": 4,
    "update_proj_gap": 20,
    "scale": "auto",
    "proj_type": "std",
    "split": 1,
}


def test_good_groups_pass() -> None:
    check_galore_group(GOOD)
    check_galore_group({**GOOD, "lr": torch.tensor(1e-3), "scale": 0, "split": 3})
    check_galore_group({**GOOD, "rank": None, "proj_type": "ignored"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", -1.0),
        ("lr", float("nan")),
        ("lr", "fast"),
        ("lr", None),
        ("lr", [1e-3]),
        ("eps", -1e-8),
        ("weight_decay", -0.1),
        ("betas", 0.9),
        ("betas", (0.9,)),
        ("betas", (0.9, 1.0)),
        ("basis", "randomised"),
        ("basis", ["svd"]),
        ("moments", None),
        ("stagger", 1),
        ("lazy", "yes"),
        ("lazy", 0.9),
        ("seed", -1),
        ("rank", 0),
        ("rank", 2.5),
        ("rank", True),
        ("update_proj_gap", 0),
        ("scale", -1.0),
        ("scale", "automatic"),
        ("proj_type", "up"),
        ("split", 4),
    ],
)
def test_bad_value_is_named(key: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"{key}=.*"):
        check_galore_group({**GOOD, key: value})


def test_close_choice_is_suggested() -> None:
    with pytest.raises(OptionError, match=r"expected one of 'std', .*'full'\. Did you mean 'reverse_std'\?"):
        check_galore_group({**GOOD, "proj_type": "reverse-std"})
    assert closest("zzz", ["galore"]) == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (Fraction(1, 2), 0.5),
        ((np.float64(0.5), 1), (0.5, 1)),
        (True, True),
        ("auto", "auto"),
        (None, None),
    ],
)
def test_numbers_become_pythons_own(value: Any, expected: Any) -> None:
    plain = plain_number(value)
    assert plain == expected
    assert type(plain) is type(expected)
