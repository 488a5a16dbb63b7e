from typing import Any

import pytest

from scgalore.data.hashing import digest
from scgalore.data.identity import parts_of
from scgalore.data.tokens import TokenizerConfig
from scgalore.objectives import MaskedExpression
from scgalore.train.differences import differences_of_runs

HASHES = [digest([]), digest([b"x"])]  # type: ignore[list-item]
TOKENS = TokenizerConfig(max_length=100)


@pytest.mark.parametrize(
    ("before", "now", "texts"),
    [
        pytest.param({"lr": 1}, {"lr": 1}, [], id="none"),
        pytest.param({"lr": 1}, {"lr": 2, "seed": 0}, ["lr was 1, now 2", "seed was None, now 0"], id="settings"),
        pytest.param(
            {"a": HASHES[0], "lr": 1}, {"a": HASHES[1], "lr": 2}, ["lr was 1, now 2", "other a"], id="hashes_come_last"
        ),
        pytest.param({"weights": "none"}, {"weights": HASHES[1]}, ["other weights"], id="hash_of_what_was_not_there"),
        pytest.param(
            {"tokens": parts_of(TOKENS), "validation: tokens": parts_of(TOKENS)},
            dict.fromkeys(("tokens", "validation: tokens"), parts_of(TokenizerConfig(max_length=80, seed=2))),
            ["max_length was 100, now 80", "seed was 0, now 2"],
            id="fields_and_once_where_held_out_cells_differ_alike",
        ),
        pytest.param({"validation: n": 1}, {"validation: n": 2}, ["validation: n was 1, now 2"], id="held_out_alone"),
        pytest.param(
            {"objective": parts_of(MaskedExpression(), "masked")},
            {"objective": parts_of(TOKENS, "generative")},
            ["objective was 'masked', now 'generative'"],
            id="another_kind",
        ),
        pytest.param(
            {"accumulate": 1, "accumulate_tokens": None},
            {"accumulate": 3, "accumulate_tokens": 5000},
            ["accumulate_tokens was None, now 5000"],
            id="what_is_found_out",
        ),
        pytest.param(
            {"accumulate": 1, "accumulate_tokens": 9},
            {"accumulate": 3, "accumulate_tokens": 9},
            ["accumulate was 1, now 3"],
            id="what_is_found_out_alone",
        ),
        pytest.param({"accumulate": 1}, {"accumulate": 3}, ["accumulate was 1, now 3"], id="what_was_asked_for"),
        pytest.param(
            {"processes": 2}, {"processes": 1}, ["processes was 2, now 1 (start it with 2 again)"], id="processes"
        ),
        pytest.param({"curriculum": {5: 1}}, {"curriculum": {5: 2}}, ["curriculum was {5: 1}, now {5: 2}"], id="dict"),
    ],
)
def test_what_differs_is_said_once_and_in_words(before: dict[str, Any], now: dict[str, Any], texts: list[str]) -> None:
    assert differences_of_runs(before, now) == texts


def test_files_come_first() -> None:
    before, now = ({"lr": n, "files": HASHES[n], "files by name": [["a/x.h5ad", str(n)]]} for n in range(2))
    assert differences_of_runs(before, now) == ["a/x.h5ad has changed", "lr was 0, now 1"]
