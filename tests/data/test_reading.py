"""How an AnnData is read, as one object."""

from typing import Any, cast

import pytest

from scgalore.data.reading import AS_IT_IS, READING, Reading
from scgalore.errors import OptionError


def test_none_is_the_default() -> None:
    assert Reading(**cast("dict[str, Any]", dict.fromkeys(READING))) == AS_IT_IS
    assert AS_IT_IS.species == "human"


def test_params_make_it_again() -> None:
    reading = Reading("counts", "symbol", "counts", "total_counts", "mouse", 0.02)
    assert Reading.of({"pert_key": "condition", **reading.params()}) == reading
    assert tuple(reading.params()) == READING


def test_tokens_do_not_depend_on_the_depth() -> None:
    assert set(READING) - set(AS_IT_IS.of_tokens()) == {"depth_key"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layer", 3),
        ("layer", ""),
        ("gene_symbols", ["symbol"]),
        ("data_type", "log"),
        ("data_type", True),
        ("depth_key", 1.0),
        ("species", "rat"),
        ("min_matched", 1.5),
        ("min_matched", -0.1),
        ("min_matched", "all"),
        ("min_matched", float("nan")),
    ],
)
def test_refuses(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"{name}="):
        Reading(**{name: value})
