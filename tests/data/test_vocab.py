import json
import pickle
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scgalore.data.match import match_genes
from scgalore.data.vocab import SPECIALS, GeneVocab
from scgalore.errors import DataError, MissingKeyError, WeightsError

FIXTURE = Path(__file__).parent / "scgpt" / "model" / "vocab.json"

tokens_lists = st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=30)


def test_fixture_file() -> None:
    vocab = GeneVocab.from_file(FIXTURE)
    assert (len(vocab), vocab.pad_id, vocab.cls_id, vocab["<eoc>"]) == (203, 200, 201, 202)
    assert vocab.to_dict() == json.loads(FIXTURE.read_text())
    assert vocab.tokens[vocab["KDM5B"]] == "KDM5B"
    assert vocab.added == ()
    assert "CD3D" in vocab
    assert "cd3d" not in vocab


def test_order_of_the_file_does_not_matter(tmp_path: Path) -> None:
    entries = list(json.loads(FIXTURE.read_text()).items())
    random.Random(0).shuffle(entries)
    (tmp_path / "vocab.json").write_text(json.dumps(dict(entries)))
    assert GeneVocab.from_file(tmp_path / "vocab.json") == GeneVocab.from_file(FIXTURE)


@settings(max_examples=25)
@given(tokens_lists)
def test_ids_and_tokens_are_inverse(genes: list[str]) -> None:
    vocab = GeneVocab.from_genes(genes)
    assert vocab.ids(vocab.tokens).tolist() == list(range(len(vocab)))
    assert vocab.ids(genes).tolist() == [vocab[gene] for gene in genes]
    assert GeneVocab.from_dict(dict(reversed(vocab.to_dict().items()))) == vocab


@settings(max_examples=25)
@given(tokens_lists)
def test_written_file_reads_back(tmp_path_factory: pytest.TempPathFactory, genes: list[str]) -> None:
    path = tmp_path_factory.mktemp("vocab") / "vocab.json"
    vocab = GeneVocab.from_genes(genes)
    vocab.save(path)
    assert GeneVocab.from_file(path) == vocab
    assert [file.name for file in path.parent.iterdir()] == ["vocab.json"]


def test_failed_save_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").mkdir()
    with pytest.raises(OSError, match=r"vocab\.json"):
        GeneVocab.from_genes(["CD4"]).save(tmp_path / "vocab.json")
    assert [file.name for file in tmp_path.iterdir()] == ["vocab.json"]


def test_ids_of_unknown_tokens() -> None:
    ids = GeneVocab.from_genes(["CD4", "CD8A"]).ids(["CD8A", "Cd4", "<cls>", "CD4", "CD8A"])
    assert ids.dtype == np.int64
    assert ids.tolist() == [1, -1, 3, 0, 1]
    assert GeneVocab.from_genes(["CD4"]).ids([]).shape == (0,)


def test_missing_specials_follow_the_genes() -> None:
    vocab = GeneVocab.from_dict({"CD4": 2, "<cls>": 0, "CD8A": 1})
    assert vocab.tokens == ("<cls>", "CD8A", "CD4", "<pad>", "<eoc>")
    assert vocab.added == ("<pad>", "<eoc>")
    assert GeneVocab.from_dict(vocab.to_dict()).added == ()
    assert GeneVocab.from_dict({"CD4": 0}, specials=()).tokens == ("CD4",)


def test_genes_keep_their_order_and_specials_come_last() -> None:
    assert GeneVocab.from_genes(["CD8A", "CD4"]).tokens == ("CD8A", "CD4", *SPECIALS)
    assert GeneVocab.from_genes(["<cls>", "CD4"]).tokens == ("<cls>", "CD4", "<pad>", "<eoc>")
    with pytest.raises(DataError, match="'CD4'"):
        GeneVocab.from_genes(["CD4", "CD8A", "CD4"])


def test_equality_pickling_and_no_hash() -> None:
    vocab = GeneVocab.from_dict({"CD4": 0})
    copy = pickle.loads(pickle.dumps(vocab))
    assert copy == vocab
    assert copy.added == vocab.added == SPECIALS
    assert copy["CD4"] == 0
    assert vocab != GeneVocab.from_genes(["CD8A"])
    assert vocab != vocab.to_dict()
    with pytest.raises(TypeError, match="hash"):
        hash(vocab)


def test_changing_what_it_returns_does_not_change_it() -> None:
    vocab = GeneVocab.from_genes(["CD4"])
    vocab.to_dict()["CD8A"] = 0
    assert "CD8A" not in vocab


def test_unknown_token() -> None:
    with pytest.raises(MissingKeyError, match="'CD8A' is not one of the 4 tokens"):
        GeneVocab.from_genes(["CD4"])["CD8A"]
    with pytest.raises(MissingKeyError, match="'<pad>'"):
        _ = GeneVocab.from_genes(["CD4"], specials=()).pad_id


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        pytest.param({"A": 0, "B": 2}, "no token with id 1", id="hole"),
        pytest.param({"A": 1, "B": 2}, "no token with id 0", id="not_from_zero"),
        pytest.param({"A": 0, "B": 0}, "the id 0 twice", id="repeated_id"),
        pytest.param({"A": 0, "B": -1}, "the id -1 below 0", id="negative"),
        pytest.param({"A": 0, "B": 1.0}, "not integers", id="float"),
        pytest.param({"A": 0, "B": "1"}, "not integers", id="text"),
        pytest.param({"A": 0, "B": 2**70}, "not integers", id="huge"),
        pytest.param({}, "is empty", id="empty"),
        pytest.param({"A": 0, 7: 1}, "not strings", id="token_is_a_number"),
    ],
)
def test_bad_ids(mapping: dict[Any, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        GeneVocab.from_dict(mapping)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        pytest.param(lambda path: None, "Cannot read the vocabulary", id="missing"),
        pytest.param(lambda path: path.mkdir(), "Cannot read the vocabulary", id="folder"),
        pytest.param(lambda path: path.write_text('{"CD4": 0, "CD8'), "not a JSON file", id="cut_off"),
        pytest.param(lambda path: path.write_bytes(pickle.dumps({"CD4": 0})), "not a JSON file", id="pickle"),
        pytest.param(lambda path: path.write_text('["CD4", "CD8A"]'), "contains a JSON list", id="list"),
        pytest.param(
            lambda path: path.write_text('{"CD4": 0, "CD8A": 1, "CD4": 2}'), "no token with id 0", id="key_twice"
        ),
    ],
)
def test_bad_files(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    write(tmp_path / "vocab.json")
    with pytest.raises(WeightsError, match=message):
        GeneVocab.from_file(tmp_path / "vocab.json")


def test_official_size_takes_no_time(tmp_path: Path) -> None:
    # The original needs two minutes for this, in quadratic time.
    ids = list(range(60_694))
    random.Random(0).shuffle(ids)
    mapping = {f"GENE{i}": i for i in ids} | {"<pad>": 60_694, "<cls>": 60_695, "<eoc>": 60_696}
    (tmp_path / "vocab.json").write_text(json.dumps(mapping))
    started = time.process_time()
    vocab = GeneVocab.from_file(tmp_path / "vocab.json")
    match = match_genes([f"GENE{2 * i}" for i in range(30_000)] + [f"NO{i}" for i in range(3_000)], vocab)
    assert time.process_time() - started < 2
    assert (len(vocab), vocab.pad_id, vocab.cls_id) == (60_697, 60_694, 60_695)
    assert match.token_ids[:30_000].tolist() == list(range(0, 60_000, 2))
