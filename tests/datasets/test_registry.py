import re

import pytest

from scgalore.datasets import get_entry, list_datasets
from scgalore.datasets.registry import SOURCES, registry_table
from scgalore.errors import OptionError


@pytest.mark.parametrize("name", list_datasets())
def test_entries_are_complete(name: str) -> None:
    found = get_entry(name)
    assert found.name == name
    assert found.source in SOURCES
    assert re.search(r"doi:10\.|arXiv:", found.citation)
    assert found.description
    assert found.licence
    assert found.homepage.startswith("https://")
    assert found.file.name.endswith(".zip" if found.member else ".h5ad")
    for file in filter(None, (found.file, found.member)):
        assert re.fullmatch("([0-9a-f]{64})?", file.sha256)
        assert re.fullmatch("([0-9a-f]{32})?", file.md5)
        assert all(url.startswith("https://") and "{" not in url for url in file.urls)
    assert len(set(found.file.urls)) == len(found.file.urls) > 0


def test_every_hash_belongs_to_one_file() -> None:
    files = [file for name in list_datasets() for file in (get_entry(name).file, get_entry(name).member) if file]
    hashes = [hash_ for file in files for hash_ in (file.sha256, file.md5) if hash_]
    assert len(set(hashes)) == len(hashes)


def test_addresses_have_the_name_of_the_file() -> None:
    for name in list_datasets():
        for url in get_entry(name).file.urls:
            # Those of Dataverse are numbers.
            assert get_entry(name).file.name in url or "/datafile/" in url


def test_only_what_has_no_hash_is_refused() -> None:
    refused = {name: get_entry(name).refusal for name in list_datasets() if get_entry(name).refusal}
    assert list(refused) == ["dixit_2016_gears"]
    assert "no sha256 is known for dixit.zip" in str(refused["dixit_2016_gears"])


def test_wrong_cell_type_of_norman_is_corrected() -> None:
    assert get_entry("norman_2019_gears").cell_type == "K562"


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"'norman_2019'.*Did you mean 'norman_2019_gears'\?.*vcc_2025_h1"):
        get_entry("norman_2019")


def test_table_has_a_row_for_each_data_set() -> None:
    rows = registry_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list_datasets()
    assert {row.count("|") for row in rows} == {5}, "a bar inside a cell would break the table"
    assert sum("not available: no sha256" in row for row in rows) == 1
