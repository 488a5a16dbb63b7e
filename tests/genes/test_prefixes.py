import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgalore.genes.identifiers import _tables
from scgalore.genes.prefixes import count_prefixes, shared_prefix

SYMBOLS = ["TP53", "HLA-A", "MT-ND1", "C10orf11", "AL627309.1", "ENSG00000141510.18"]
PREFIXES = [
    "GRCh38_",
    "GRCh38______",
    "hg19_",
    "hg38-",
    "GRCh37.p13_",
    "GRCh38-2020-A_",
    "mm10___",
    "GRCm39_",
    "human_",
]
PREFIXES += ["rna:", "T2T-"]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_that_all_names_have_are_found(prefix: str) -> None:
    assert shared_prefix([prefix + name for name in SYMBOLS]) == prefix
    assert count_prefixes([*(prefix + name for name in SYMBOLS), "GFP"]) == {prefix: len(SYMBOLS)}


@given(st.lists(st.sampled_from(PREFIXES), min_size=2, unique=True), st.sampled_from(["", "GFP"]))
def test_what_only_some_names_have_is_no_shared_prefix(prefixes: list[str], other: str) -> None:
    names = [prefix + name for prefix in prefixes for name in SYMBOLS] + ([other] if other else [])
    # One prefix may be the beginning of another, padded one.
    shared = shared_prefix(names)
    assert not shared or all(name.startswith(shared) for name in names)
    assert shared_prefix([*names, "GFP"]) == ""


def test_no_human_name_has_one() -> None:
    tables = _tables()
    assert not count_prefixes([*tables.gene_id, *tables.symbol, *tables.replaced, *tables.alias])


def test_names_of_a_family_keep_what_they_share() -> None:
    assert shared_prefix(["HLA-A", "HLA-B"]) == shared_prefix(["MT-ND1", "MT-CO1"]) == shared_prefix([]) == ""
