import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.scberts import FILE, GENES, original_folder, stored

from scgalore.errors import WeightsError
from scgalore.weights import export_scbert, read_scbert
from scgalore.weights.scbert import N_GENES, join_digits, released_genes, released_tensors, split_digits

doubles = st.floats(-1e3, 1e3).filter(lambda x: x == 0 or abs(x) > 1e-6)


@given(st.lists(doubles, min_size=1, max_size=20))
def test_split_numbers_are_joined_to_the_bit(numbers):
    table = torch.tensor(numbers, dtype=torch.float64)[None]
    weight, digits = split_digits(table)
    assert torch.equal(weight, table.float())
    assert torch.equal(join_digits(weight, digits), table)


@given(st.lists(doubles, min_size=1, max_size=20), st.floats(-2, 2))
def test_numbers_that_were_trained_keep_their_own_value(numbers, change):
    weight, digits = split_digits(torch.tensor(numbers, dtype=torch.float64)[None])
    trained = weight + change
    assert torch.equal(join_digits(trained, digits).float(), trained)


def test_gene_order_is_the_released_one():
    genes = released_genes()
    assert len(set(genes)) == N_GENES == 16906
    assert genes[:2] == ("A1BG", "A1CF")
    assert genes[-1] == "ZBED1"


def test_every_tensor_of_the_file_is_listed(tmp_path):
    checkpoint = read_scbert(original_folder(tmp_path))
    assert checkpoint.layout == "scbert"
    for name, tensor in stored().items():
        if name != "pos_emb.emb.weight":
            assert torch.equal(checkpoint.tensors[name], tensor)
            assert checkpoint.tensors[name].dtype == tensor.dtype
    moments = [name for name in checkpoint.tensors if name.startswith("optimizer_state_dict.")]
    assert len(moments) % 3 == 0
    assert moments
    assert checkpoint.vocab == {**{gene: row for row, gene in enumerate(GENES)}, "<cls>": 60, "<pad>": 61}


def test_tensors_go_back_as_they_were(tmp_path):
    checkpoint = read_scbert(original_folder(tmp_path))
    own = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith("optimizer")}
    back = released_tensors(own, range(60), 60)
    assert list(back) == list(own) or set(back) == set(stored())
    for name, tensor in stored().items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor), name


def test_export_is_read_again(tmp_path):
    tensors = stored()
    export_scbert(tmp_path / "out", genes=GENES, tensors=tensors)
    content = torch.load(tmp_path / "out" / "scbert.pth", weights_only=True)
    assert set(content) == set(torch.load(FILE, weights_only=True))
    assert read_scbert(tmp_path / "out").vocab == read_scbert(original_folder(tmp_path)).vocab


def test_a_file_by_itself_and_names_of_data_parallel_are_read(tmp_path):
    folder = original_folder(tmp_path)
    content = torch.load(FILE, weights_only=True)
    content["model_state_dict"] = {f"module.{name}": tensor for name, tensor in content["model_state_dict"].items()}
    torch.save(content, folder / "panglao_pretrain.pth")
    wrapped = read_scbert(folder / "panglao_pretrain.pth")
    (folder / "vocab.json").rename(tmp_path / "vocab.json")
    torch.save(stored(), tmp_path / "weights_alone.pth")
    bare = read_scbert(tmp_path)
    for name in stored():
        assert torch.equal(wrapped.tensors[name], bare.tensors[name])


def test_genes_that_are_not_known_are_refused(tmp_path):
    folder = original_folder(tmp_path)
    (folder / "vocab.json").write_text(json.dumps({gene: row for row, gene in enumerate(GENES[:-1])}))
    with pytest.raises(WeightsError, match=r"numbers 59 genes; expected .* rows 0 to 59"):
        read_scbert(folder)
    (folder / "vocab.json").unlink()
    with pytest.raises(WeightsError, match=r"has 60 genes, and the released scBERT has 16,906.*vocab.json"):
        read_scbert(folder)


@pytest.mark.parametrize("content", [{"model_state_dict": [1]}, {"model_state_dict": {"a": 1}}, {"epoch": 3}, {}])
def test_a_file_that_holds_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "some.pth")
    with pytest.raises(WeightsError, match=r"some\.pth"):
        read_scbert(tmp_path)


class Code:
    def __reduce__(self):
        return print, ("run",)


def test_code_is_never_run(tmp_path, capsys):
    torch.save({"model_state_dict": stored(), "more": Code()}, tmp_path / "some.pth")
    with pytest.raises(WeightsError, match="loading it would run code"):
        read_scbert(tmp_path)
    assert "run" not in capsys.readouterr().out


def test_two_files_are_not_chosen_from(tmp_path):
    folder = original_folder(tmp_path)
    (folder / "other.pth").write_bytes(FILE.read_bytes())
    with pytest.raises(WeightsError, match="Pass the path of the file"):
        read_scbert(folder)
    assert read_scbert(folder / "other.pth").vocab
