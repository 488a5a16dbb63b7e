import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import scgalore.weights.save as save_module
from scgalore.errors import OptionError
from scgalore.weights import Checkpoint, export_scgpt, read_scgpt, write_checkpoint

MakeFolder = Callable[..., Path]
VOCAB = {"B": 1, "<pad>": 2, "Ä": 0}
TENSORS = {
    "encoder.embedding.weight": torch.arange(12.0).reshape(3, 4),
    "encoder.enc_norm.bias": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
    "decoder.fc.0.weight": torch.arange(8, dtype=torch.float16).reshape(2, 4),
    "bn.num_batches_tracked": torch.tensor(7),
}


def write(folder: Path, **changes: Any) -> None:
    write_checkpoint(folder, **{"config": {"d_model": 4}, "vocab": VOCAB, "tensors": TENSORS, **changes})


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        plain = tensor.detach().contiguous()
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), plain.reshape(-1).view(torch.uint8)), name


def test_round_trip(tmp_path: Path) -> None:
    write(tmp_path / "a", extra={"card.md": "café", "history.bin": b"\x00\xff"})
    found = read_scgpt(tmp_path / "a")
    assert (found.layout, found.args, found.vocab) == ("scgalore", {"d_model": 4}, VOCAB)
    assert_same_bits(found.tensors, TENSORS)
    assert (tmp_path / "a" / "card.md").read_text(encoding="utf-8") == "café"
    assert (tmp_path / "a" / "history.bin").read_bytes() == b"\x00\xff"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    as_parameters=st.booleans(),
)
def test_any_tensors_survive(tmp_path: Path, shapes: list[list[int]], dtype: torch.dtype, as_parameters: bool) -> None:
    tensors: dict[str, Tensor] = {f"part.{i}": torch.randn(shape).to(dtype) for i, shape in enumerate(shapes)}
    if as_parameters:
        tensors = {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}
    write(tmp_path / "ours", tensors=tensors, overwrite=True)
    assert_same_bits(read_scgpt(tmp_path / "ours").tensors, tensors)
    export_scgpt(tmp_path / "theirs", args={}, vocab=VOCAB, tensors=tensors, overwrite=True)
    assert_same_bits(read_scgpt(tmp_path / "theirs").tensors, tensors)


def test_views_and_shared_memory_survive_and_stay_small(tmp_path: Path) -> None:
    table = torch.randn(1000, 64)
    tensors = {"rows": table[:3], "columns": table.t()[5:6], "again": table[:3]}
    write(tmp_path / "ours", tensors=tensors)
    export_scgpt(tmp_path / "theirs", args={}, vocab=VOCAB, tensors=tensors)
    for folder in (tmp_path / "ours", tmp_path / "theirs"):
        found = read_scgpt(folder).tensors
        assert_same_bits(found, tensors)
        assert sum(path.stat().st_size for path in folder.iterdir()) < 20_000


@pytest.mark.parametrize("layout", ["ours", "theirs"])
def test_equal_content_gives_equal_bytes(tmp_path: Path, layout: str) -> None:
    def save(folder: Path, config: dict[str, Any], vocab: dict[str, int], tensors: dict[str, Tensor]) -> None:
        if layout == "ours":
            write_checkpoint(folder, config=config, vocab=vocab, tensors=tensors)
        else:
            export_scgpt(folder, args=config, vocab=vocab, tensors=tensors)

    save(tmp_path / "a", {"x": 1, "y": 2.5}, VOCAB, TENSORS)
    backwards = ({"y": 2.5, "x": 1}, dict(reversed(VOCAB.items())), dict(reversed(TENSORS.items())))
    save(tmp_path / "b", *backwards)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_files_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    write(tmp_path / "a")
    (tmp_path / "probe").touch()
    expected = (tmp_path / "probe").stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "a").iterdir()} == {expected}


@pytest.mark.parametrize("function", ["write_checkpoint", "export_scgpt"])
def test_failure_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    write(tmp_path / "a")
    before = content(tmp_path / "a")

    def disk_full(_tensors: Any, path: Path, **_options: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(save_module, "save_file", disk_full)
    monkeypatch.setattr(save_module.torch, "save", disk_full)
    settings_key = "config" if function == "write_checkpoint" else "args"
    for folder in (tmp_path / "a", tmp_path / "new" / "b"):
        with pytest.raises(OSError, match="No space"):
            getattr(save_module, function)(folder, **{settings_key: {}}, vocab=VOCAB, tensors=TENSORS, overwrite=True)
    assert content(tmp_path / "a") == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_overwrite_has_to_be_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "a")
    before = content(tmp_path / "a")
    with pytest.raises(OptionError, match="overwrite=True"):
        write(tmp_path / "a", config={"d_model": 8})
    assert content(tmp_path / "a") == before
    write(tmp_path / "a", config={"d_model": 8}, overwrite=True)
    assert read_scgpt(tmp_path / "a").args == {"d_model": 8}


def test_a_checkpoint_can_be_written_over_itself(tmp_path: Path) -> None:
    # Its tensors are mapped from the very file that is replaced.
    write(tmp_path / "a")
    write(tmp_path / "a", tensors=read_scgpt(tmp_path / "a").tensors, overwrite=True)
    assert_same_bits(read_scgpt(tmp_path / "a").tensors, TENSORS)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "../escape", "sub/file", "", "..", "."])
def test_names_of_extra_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match="plain file names"):
        write(tmp_path / "a", extra={name: "x"})
    assert list(tmp_path.iterdir()) == []


def test_export_is_what_the_original_program_reads(make_folder: MakeFolder, tmp_path: Path) -> None:
    source: Checkpoint = read_scgpt(make_folder("full_in_proj.pt"))
    export_scgpt(tmp_path / "out", args=source.args, vocab=source.vocab, tensors=source.tensors)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["args.json", "best_model.pt", "vocab.json"]
    plain = torch.load(tmp_path / "out" / "best_model.pt", weights_only=True)
    assert type(plain) is dict
    assert "transformer_encoder.layers.0.self_attn.Wqkv.weight" in plain
    found = read_scgpt(tmp_path / "out")
    assert (found.args, found.vocab) == (source.args, source.vocab)
    assert_same_bits(found.tensors, source.tensors)


def test_vocabulary_is_written_by_id(tmp_path: Path) -> None:
    write(tmp_path / "a")
    assert list(json.loads((tmp_path / "a" / "vocab.json").read_text(encoding="utf-8"))) == ["Ä", "B", "<pad>"]
