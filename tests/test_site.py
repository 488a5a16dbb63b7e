"""Pages of the documentation fit the screen, their links lead somewhere, and every tutorial is in the gallery."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from docs import generated, plot_examples, results
from tests.pages import REPOSITORY, SHELLS, blocks_of, read

import scgalore as sg
from scgalore import _keys

GENERATED = {"_build", "_generated", "generated", "tutorials"}
PAGES = [
    path.relative_to(REPOSITORY).as_posix()
    for path in sorted(REPOSITORY.glob("docs/**/*.md"))
    if not GENERATED & set(path.relative_to(REPOSITORY / "docs").parts[:-1])
]
WIDTH = 88
SITE = "https://scgalore.readthedocs.io/"
MARKDOWN_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
REFERENCE = re.compile(r"^\[[^\]]+\]: (\S+)$", flags=re.MULTILINE)


def page_of(name: str) -> bool:
    """Whether the site has a page, by its name without a suffix."""
    notebook = name.startswith("tutorials/") and (REPOSITORY / f"{name}.ipynb").exists()
    return notebook or (REPOSITORY / "docs" / f"{name}.md").exists()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(read(page))])
def test_code_fits_the_page(page: str) -> None:
    code = [block for block in blocks_of(read(page)) if block.language in ("python", *SHELLS)]
    assert [line for block in code for line in block.code.splitlines() if len(line) > WIDTH] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_within_the_site_are_relative_and_lead_somewhere(page: str) -> None:
    text = read(page)
    links = [*MARKDOWN_LINK.findall(text), *REFERENCE.findall(text)]
    assert [link for link in links if link.startswith(SITE)] == []
    folder = (REPOSITORY / page).parent
    inside = [urlsplit(link).path for link in links if not urlsplit(link).scheme]
    missing = [path for path in inside if path and not (folder / path).exists()]
    assert missing == []


def test_links_of_the_readme_lead_to_pages() -> None:
    text = read("README.md")
    links = [*MARKDOWN_LINK.findall(text), *REFERENCE.findall(text)]
    assert all(urlsplit(link).scheme == "https" for link in links)
    pages = [
        link.removeprefix(f"{SITE}page/").partition(".html")[0] for link in links if link.startswith(f"{SITE}page/")
    ]
    assert pages
    assert [page for page in pages if not page_of(page)] == []
    assert {label.lower() for label in re.findall(r"\[([^\]\[]+)\]\[\]", text)} <= {
        label.lower() for label in re.findall(r"^\[([^\]]+)\]: ", text, flags=re.MULTILINE)
    }


def test_every_tutorial_is_in_the_gallery(tmp_path: Path) -> None:
    notebooks = {path.stem for path in (REPOSITORY / "tutorials").glob("*.ipynb")}
    assert notebooks <= set(generated.TUTORIALS)
    text = generated.gallery(tmp_path)
    assert all(f":link: /tutorials/{name}" in text and f"</tutorials/{name}>" in text for name in notebooks)


def test_a_tag_chooses_the_thumbnail() -> None:
    def cell(png: str, *tags: str) -> dict[str, object]:
        return {"metadata": {"tags": list(tags)}, "outputs": [{"data": {"image/png": png}}], "source": []}

    first, second = cell("AAAA"), cell("BBBB", "thumbnail")
    assert generated.thumbnail({"cells": [first, second]}) == b"\x04\x10A"
    assert generated.thumbnail({"cells": [first]}) == b"\x00\x00\x00"
    assert generated.thumbnail({"cells": []}) is None


def test_every_key_is_on_the_page_of_keys() -> None:
    text = generated.keys()
    keys: list[Any] = [
        _keys.CellKeys.from_key_added(None, uns="FUNCTION"),
        _keys.MappingKeys.from_key_added(None, ("LABEL",)),
        _keys.GeneKeys(),
        _keys.ProgramKeys(),
        _keys.InSilicoKeys(),
        _keys.IntegrationKeys(),
    ]
    slots = {f'{slot}["{name}"]' for group in keys for slot, names in group.slots.items() for name in names}
    assert {slot for slot in slots if f"`{slot}`" not in text} == set()
    classes = {name for name in _keys.__all__ if name.endswith("Keys")}
    assert {type(group.make(None)).__name__ for group in generated.KEYS} == classes


def test_every_command_and_weight_is_listed() -> None:
    commands, weights = generated.commands(), generated.weights()
    for name in ("demo", "run", "pretrain", "weights list", "weights fetch"):
        assert f"## `scgalore {name}`" in commands
    assert all(f"`--{option}" in commands for option in ("labels-key", "max-epochs", "out", "max-steps"))
    assert all(f"`{name}`\n" in weights for name in sg.weights.list_weights())


def test_every_plot_has_a_figure(tmp_path: Path) -> None:
    text = generated.plots(tmp_path, {})
    shown = set(re.findall(r"`pl\.(\w+)`", text))
    assert shown | plot_examples.EXAMPLES.keys() == set(sg.pl.__all__)
    assert "`pl.confusion_matrix`" in text
    assert (tmp_path / "pl_confusion_matrix.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("name", plot_examples.EXAMPLES)
def test_examples_of_plots_are_drawn(name: str) -> None:
    assert np.ravel(plot_examples.EXAMPLES[name]())[0].has_data()


@pytest.mark.parametrize("name", sorted(path.stem for path in results.RESULTS.glob("*.md")))
def test_results_are_shown_without_claims_and_with_the_processor(name: str) -> None:
    source = (results.RESULTS / f"{name}.md").read_text(encoding="utf-8")
    text = results.shown(name, source)
    assert "claim: " not in text
    assert text.count("| --- |") == source.count("| --- |")
    if "torch " in source.partition("\n")[0]:
        assert re.search(r"Measured on (AMD EPYC|Intel Xeon)", text)


@pytest.mark.parametrize("name", results.FIGURES)
def test_figures_are_drawn(name: str, tmp_path: Path) -> None:
    source = (results.RESULTS / f"{name}.md").read_text(encoding="utf-8")
    results.draw(results.FIGURES[name], source, tmp_path / "figure.svg")
    assert "<svg" in (tmp_path / "figure.svg").read_text(encoding="utf-8")
