import re

import pytest

from scgalore.errors import OptionError
from scgalore.weights.registry import WeightsEntry, WeightsFile, get_entry, list_weights


def entry(*files: WeightsFile, bundled: bool = False) -> WeightsEntry:
    return WeightsEntry("x", "cells", files, licence="MIT", citation="doi", homepage="https://host", bundled=bundled)


@pytest.mark.parametrize("name", list_weights())
def test_entries_are_complete(name: str) -> None:
    found = get_entry(name)
    assert found.name == name
    assert found.description
    assert found.licence
    doi = {"scgpt": "doi:10.1038/s41592-024-02201-0", "scbert": "doi:10.1038/s42256-022-00534-z"}
    assert doi[found.family] in found.citation
    assert found.homepage.startswith("https://")
    names = [file.name for file in found.files]
    assert len(set(names)) == len(names)
    assert "vocab.json" in names or found.family == "scbert"  # whose genes have one order
    for file in found.files:
        assert not file.sha256 or re.fullmatch("[0-9a-f]{64}", file.sha256)


@pytest.mark.parametrize("name", [name for name in list_weights() if not get_entry(name).bundled])
def test_what_can_be_fetched_is_pinned(name: str) -> None:
    found = get_entry(name)
    if found.refusal is not None:
        return
    for file in found.files:
        assert file.size
        assert file.url.startswith("https://")
        assert "{" not in file.url
        # A persistent id of a data archive never changes its content; anything else needs a revision.
        assert "/datafile/" in file.url or f"/{found.revision}/" in file.url


def test_whole_human_is_the_authors_own_mirror() -> None:
    found = get_entry("scgpt")
    assert found.refusal is None
    assert [file.name for file in found.files] == ["args.json", "vocab.json", "best_model.pt"]
    assert all("/wanglab/scGPT-human/resolve/" in file.url for file in found.files)
    assert found.files[-1].size == 205_385_258


def test_a_copy_without_args_brings_its_own() -> None:
    found = get_entry("scgpt-continual")
    assert "args.json" not in [file.name for file in found.files]
    assert found.args is not None
    assert {"embsize", "nheads", "d_hid", "nlayers"} <= found.args.keys()


@pytest.mark.parametrize("name", ["scgpt-heart", "scgpt-brain", "scgpt-pan-cancer"])
def test_unverifiable_weights_are_listed_with_the_reason(name: str) -> None:
    assert "no sha256 is known for args.json, vocab.json" in str(get_entry(name).refusal)


def test_refusal() -> None:
    good = WeightsFile("a", url="https://host/a", sha256="0" * 64)
    assert entry(good).refusal is None
    assert "sha256 is known for b" in str(entry(good, WeightsFile("b", url="https://host/b")).refusal)
    assert "address is known for b" in str(entry(good, WeightsFile("b", sha256="0" * 64)).refusal)
    assert "not built yet" in str(entry(WeightsFile("b"), bundled=True).refusal)
    assert entry(WeightsFile("b", sha256="0" * 64), bundled=True).refusal is None


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"'scGPT-hart'.*Did you mean 'scgpt-heart'\?.*scgpt-mini"):
        get_entry("scGPT-hart")
