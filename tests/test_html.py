from html.parser import HTMLParser

import pytest
import torch

import scgalore as sg
from scgalore._html import html_table
from scgalore.train import MemoryEstimate


class Cells(HTMLParser):
    """Text of every cell, by row, and of everything below the table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.below: list[str] = []
        self.place: list[str] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th", "div"):
            self.place = self.below if tag == "div" else self.rows[-1]
            self.place.append("")

    def handle_data(self, data: str) -> None:
        assert self.place is not None
        self.place[-1] += data


def test_texts_are_escaped() -> None:
    found = Cells(html_table(("", "n"), [("<b>&", "1")], notes=["a < b"]))
    assert (found.rows, found.below) == ([["", "n"], ["<b>&", "1"]], ["a < b"])


def test_an_estimate_is_a_table_with_units_and_advice() -> None:
    estimate = MemoryEstimate(10**6, 5 * 10**5, 2 * 10**9, 0, 0, weigh=lambda: (("batch_size=4", 10**6),))
    found = Cells(estimate._repr_html_())
    assert found.rows[1:3] == [["parameters", "1.00 MB", "0%"], ["gradients", "500.00 kB", "0%"]]
    assert found.rows[-1] == ["peak", "2.00 GB", "100%"]
    assert found.below == ["batch_size=4 saves 1.00 MB"]


def test_a_report_has_the_same_cells_as_its_text() -> None:
    network = torch.nn.Linear(64, 64)
    optimizer = sg.optim.build_optimizer("galore", network, rank=8)
    network(torch.randn(2, 64)).sum().backward()
    optimizer.step()
    report = sg.optim.memory_report(network, optimizer)
    rows = Cells(report._repr_html_()).rows
    lines = str(report).splitlines()
    assert [" ".join(row).split() for row in rows] == [line.split() for line in lines]


@pytest.mark.parametrize("name", ["", "<script>"])
def test_empty_tables_are_tables(name: str) -> None:
    assert Cells(html_table((name, "n"), [])).rows == [[name, "n"]]
