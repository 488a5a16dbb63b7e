"""The page about memory: its code runs, and its numbers are those that the code gives."""

import re
from typing import Any

import pytest
from tests.pages import blocks_of, read, run_blocks

PAGE = read("docs/fit-your-card.md")
CARDS = (8, 12, 16, 24)
SETTINGS: dict[str, dict[str, Any]] = {
    "AdamW, float32, whole table": {"optimizer": "adamw", "embedding": "full"},
    "the default: GaLore, rows": {},
    '`precision="bf16-mixed"`': {"precision": "bf16-mixed"},
    "`gradient_checkpointing=True`": {"precision": "bf16-mixed", "gradient_checkpointing": True},
}


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the page's code has defined once all of it has run; the table that it shows is what it prints."""
    made: dict[str, Any] = {}
    run_blocks("docs/fit-your-card.md", blocks_of(PAGE), made)
    return made


@pytest.mark.parametrize("genes", [1200, 5000])
@pytest.mark.slow
def test_what_fits_is_what_the_code_says(names: dict[str, Any], genes: int) -> None:
    rows = re.findall(rf"^\| {genes:,} \| (.+?) \| (.+?) \|$", PAGE, flags=re.MULTILINE)
    assert [name for name, _ in rows] == list(SETTINGS)
    for name, cells in rows:
        fits = [names["cells_that_fit"](card, genes_per_cell=genes, **SETTINGS[name]) for card in CARDS]
        assert cells.split(" | ") == [str(number) for number in fits]


@pytest.mark.slow
def test_the_drawing_ends_with_the_last_setting(names: dict[str, Any]) -> None:
    assert [label.get_text() for label in names["axes"].get_yticklabels()] == list(names["table"].index)
    assert names["table"]["peak"].is_monotonic_decreasing
