import json
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from scgalore._files import file_digest
from scgalore.errors import WeightsError
from scgalore.weights import read_scgpt, write_checkpoint

MakeFolder = Callable[..., Path]


def upstream(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "best_model.pt", weights_only=True)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_upstream_folder(make_folder: MakeFolder) -> None:
    folder = make_folder()
    found = read_scgpt(folder)
    assert (found.layout, found.folder) == ("scgpt", folder)
    assert found.args == json.loads((folder / "args.json").read_text())
    assert found.vocab["<pad>"] == 200
    assert found.sha256 == file_digest(folder / "best_model.pt")
    assert_same(found.tensors, upstream(folder))
    assert "Tensor" not in repr(found)


@pytest.mark.parametrize("file", ["full_impl_wqkv.pt", "full_in_proj.pt"])
def test_attention_layouts_are_one(make_folder: MakeFolder, file: str) -> None:
    expected = read_scgpt(make_folder("full_wqkv.pt", name="flash")).tensors
    assert_same(read_scgpt(make_folder(file)).tensors, expected)


def test_prefix_of_distributed_training(make_folder: MakeFolder) -> None:
    folder = make_folder("full_impl_wqkv.pt")
    torch.save({f"module.{name}": t for name, t in upstream(folder).items()}, folder / "best_model.pt")
    assert_same(read_scgpt(folder).tensors, upstream(make_folder("full_wqkv.pt", name="flash")))


def safetensors_copy(folder: Path) -> dict[str, Tensor]:
    """Turn an upstream folder into what Therapeutics Data Commons distributes."""
    renames = (("transformer_encoder.", "transformer."), ("encoder.", "gene_encoder."), ("decoder.", "expr_decoder."))
    kept = {
        name: tensor
        for name, tensor in upstream(folder).items()
        if not name.startswith(("cls_decoder.", "mvc_decoder.", "flag_encoder."))
    }
    renamed = {
        next((new + name.removeprefix(old) for old, new in renames if name.startswith(old)), name): tensor
        for name, tensor in kept.items()
    }
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "best_model.pt").unlink()
    return kept


def test_safetensors_copy(make_folder: MakeFolder) -> None:
    folder = make_folder("full_in_proj.pt")
    kept = safetensors_copy(folder)
    (folder / "config.json").write_text('{"model_type": "scgpt"}')
    found = read_scgpt(folder)
    assert found.layout == "safetensors"
    assert "embsize" in found.args
    flash = upstream(make_folder("full_wqkv.pt", name="flash"))
    assert_same(found.tensors, {name: flash[name] for name in flash if name.startswith(_prefixes(kept))})


def _prefixes(kept: dict[str, Tensor]) -> tuple[str, ...]:
    return tuple({name.split(".")[0] + "." for name in kept})


def test_args_given_by_the_caller_stand_in_for_a_missing_file(make_folder: MakeFolder) -> None:
    folder = make_folder("full_in_proj.pt")
    safetensors_copy(folder)
    stated = json.loads((folder / "args.json").read_text())
    assert read_scgpt(folder, args={"embsize": 8}).args == stated
    (folder / "args.json").unlink()
    assert read_scgpt(folder, args={"embsize": 8}).args == {"embsize": 8}
    with pytest.raises(WeightsError, match=r"lacks args.json or config.json"):
        read_scgpt(folder)


def test_our_own_layout_reads_its_own_config(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = read_scgpt(make_folder())
    write_checkpoint(
        tmp_path / "ours",
        config={"d_model": 32},
        vocab=source.vocab,
        tensors=source.tensors,
        extra={"args.json": "{}"},
    )
    found = read_scgpt(tmp_path / "ours")
    assert (found.layout, found.args) == ("scgalore", {"d_model": 32})


def test_another_name_for_the_only_pickle(make_folder: MakeFolder) -> None:
    folder = make_folder()
    (folder / "best_model.pt").rename(folder / "model_e6.pt")
    assert len(read_scgpt(folder).tensors) == 43
    shutil.copyfile(folder / "model_e6.pt", folder / "model_e7.pt")
    with pytest.raises(WeightsError, match=r"'model_e6.pt', 'model_e7.pt'.*best_model.pt"):
        read_scgpt(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "best_model.pt"])
def test_tensors_are_a_private_view_of_the_file(make_folder: MakeFolder, file: str) -> None:
    folder = make_folder("full_in_proj.pt")
    if file == "model.safetensors":
        safetensors_copy(folder)
    before = (folder / file).read_bytes()
    for tensor in read_scgpt(folder).tensors.values():
        tensor.zero_()
    assert (folder / file).read_bytes() == before


@pytest.mark.parametrize("file", ["args.json", "vocab.json", "best_model.pt"])
def test_missing_file(make_folder: MakeFolder, file: str) -> None:
    folder = make_folder()
    (folder / file).unlink()
    with pytest.raises(WeightsError, match=file):
        read_scgpt(folder)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is not a folder"):
        read_scgpt(tmp_path / "nowhere")


@pytest.mark.parametrize("file", ["args.json", "vocab.json"])
@pytest.mark.parametrize("content", [b"", b"{'a': 1}", b"<html>404</html>", b"[1, 2]", b"\xff\xfe\x00"])
def test_garbage_json(make_folder: MakeFolder, file: str, content: bytes) -> None:
    folder = make_folder()
    (folder / file).write_bytes(content)
    with pytest.raises(WeightsError, match=file):
        read_scgpt(folder)


@pytest.mark.parametrize("content", [{}, {"A": "0"}, {"A": 0.5}, {"A": True}, {"A": -1}, {"A": None}])
def test_no_vocabulary(make_folder: MakeFolder, content: dict[str, Any]) -> None:
    folder = make_folder()
    (folder / "vocab.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="no vocabulary"):
        read_scgpt(folder)


def test_vocabulary_of_another_model(make_folder: MakeFolder) -> None:
    folder = make_folder()
    (folder / "vocab.json").write_text(json.dumps({f"G{i}": i for i in range(204)}))
    with pytest.raises(WeightsError, match=r"ids up to 203.*embeds 203 tokens"):
        read_scgpt(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "best_model.pt"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_truncated_weights(make_folder: MakeFolder, file: str, kept: float) -> None:
    folder = make_folder("full_in_proj.pt")
    if file == "model.safetensors":
        safetensors_copy(folder)
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: int(kept * len(content))])
    with pytest.raises(WeightsError, match=file):
        read_scgpt(folder)


def test_damage_anywhere_is_at_worst_a_weights_error(make_folder: MakeFolder) -> None:
    folder = make_folder()
    content = (folder / "best_model.pt").read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(10):
            # The pickle lies at the head of the archive, the directory at its end.
            damaged[rng.choice([rng.randrange(6000), -1 - rng.randrange(6000)])] = rng.randrange(256)
        (folder / "best_model.pt").unlink()
        (folder / "best_model.pt").write_bytes(damaged)
        try:
            read_scgpt(folder)
        except WeightsError:
            refused += 1
    assert refused > 30


class Intruder:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.trace,)


@pytest.mark.parametrize("archive", [True, False], ids=["torch archive", "bare pickle"])
def test_code_is_refused_and_does_not_run(make_folder: MakeFolder, tmp_path: Path, archive: bool) -> None:
    folder, trace = make_folder(), tmp_path / "trace"
    content = {"encoder.embedding.weight": Intruder(trace)}
    path = folder / "best_model.pt"
    if archive:
        torch.save(content, path)
        torch.load(path, weights_only=False)
        assert trace.is_dir(), "the file would do harm"
        trace.rmdir()
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(WeightsError, match="refused.*run code" if archive else "not a PyTorch archive"):
        read_scgpt(folder)
    assert not trace.exists()


def test_whole_module_is_refused_with_the_remedy(make_folder: MakeFolder) -> None:
    folder = make_folder()
    torch.save(torch.nn.Linear(2, 2), folder / "best_model.pt")
    with pytest.raises(WeightsError, match=r"torch.nn.modules.linear.Linear.*state_dict"):
        read_scgpt(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"a": torch.zeros(1)}, "epoch": 3}, "'model', a dict"),
        ({"encoder.embedding.weight": 1.0}, "'encoder.embedding.weight', a float"),
        ({"encoder.embedding.weight": torch.zeros(3, dtype=torch.int8)}, "torch.int8"),
        ([torch.zeros(1)], "holds a list"),
        (torch.zeros(1), "holds a Tensor"),
    ],
)
def test_anything_but_a_dict_of_tensors_is_refused(make_folder: MakeFolder, content: Any, message: str) -> None:
    folder = make_folder()
    torch.save(content, folder / "best_model.pt")
    with pytest.raises(WeightsError, match=message):
        read_scgpt(folder)


def test_numpy_arrays_are_refused(make_folder: MakeFolder) -> None:
    folder = make_folder()
    torch.save({"encoder.embedding.weight": np.zeros(3)}, folder / "best_model.pt")
    with pytest.raises(WeightsError, match="refused"):
        read_scgpt(folder)


def test_counters_of_batch_norms_are_whole_numbers(make_folder: MakeFolder) -> None:
    folder = make_folder()
    tensors = {**upstream(folder), "bn.num_batches_tracked": torch.tensor(7)}
    torch.save(tensors, folder / "best_model.pt")
    assert_same(read_scgpt(folder).tensors, tensors)


def repacked(path: Path, *, compression: int = zipfile.ZIP_STORED, **changed: bytes) -> None:
    """Write an archive again, packed or with other members, which are named by their ends."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    path.unlink()
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, changed.get(name.rpartition("/")[2].replace(".", "_"), content))


class TestArchives:
    def test_torchscript(self, make_folder: MakeFolder, recwarn: pytest.WarningsRecorder) -> None:
        folder = make_folder()
        with zipfile.ZipFile(folder / "best_model.pt", "a") as archive:
            archive.writestr("best_model/constants.pkl", b"\x80\x02).")
        with pytest.raises(WeightsError, match=r"best_model\.pt is a TorchScript archive.*state_dict"):
            read_scgpt(folder)
        assert not recwarn.list  # torch would say that it loads it

    def test_bomb(self, make_folder: MakeFolder) -> None:
        folder = make_folder()
        repacked(folder / "best_model.pt", compression=zipfile.ZIP_DEFLATED, data_pkl=bytes(1 << 26))
        assert (folder / "best_model.pt").stat().st_size < 1 << 20
        with pytest.raises(WeightsError, match=r"best_model\.pt holds '.*' compressed; expected"):
            read_scgpt(folder)

    def test_index_of_absurd_size(self, make_folder: MakeFolder) -> None:
        folder = make_folder()
        repacked(folder / "best_model.pt", data_pkl=bytes((1 << 24) + 1))
        with pytest.raises(WeightsError, match=r"unpacks into .* 16,777,217 of names"):
            read_scgpt(folder)

    def test_members_that_lie_over_each_other(self, make_folder: MakeFolder) -> None:
        folder = make_folder()
        path = folder / "best_model.pt"
        with zipfile.ZipFile(path, "a") as archive:
            info = archive.getinfo(next(name for name in archive.namelist() if name.endswith("/data/0")))
            archive.filelist += [info] * 1000
            vars(archive)["_didModify"] = True
        with pytest.raises(WeightsError, match="unpacks into"):
            read_scgpt(folder)

    @pytest.mark.parametrize("protocol", ["tar", "zip of other files", "old torch"])
    def test_other_formats(self, make_folder: MakeFolder, protocol: str) -> None:
        folder = make_folder()
        path = folder / "best_model.pt"
        tensors = upstream(folder)
        if protocol == "old torch":
            torch.save(tensors, path, _use_new_zipfile_serialization=False)
        elif protocol == "tar":
            shutil.make_archive(str(folder / "packed"), "tar", folder, "args.json")
            (folder / "packed.tar").rename(path)
        else:
            path.unlink()
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("readme.txt", "hello")
        with pytest.raises(WeightsError, match=r"best_model\.pt is (not a PyTorch archive|damaged)"):
            read_scgpt(folder)

    @pytest.mark.parametrize(
        ("tensor", "says"),
        [
            pytest.param(
                torch.zeros(1).expand(10**6, 10**6), r"shape \(1000000, 1000000\)", id="one number many times"
            ),
            pytest.param(torch.zeros(10**6, 10**6, device="meta"), "on meta", id="no numbers"),
            pytest.param(torch.zeros(3, 4).to_sparse(), "sparse", id="sparse"),
            pytest.param(torch.zeros(4, dtype=torch.float8_e4m3fn), "float8", id="eight bits"),
            pytest.param(torch.zeros(4, dtype=torch.complex64), "complex64", id="complex"),
        ],
    )
    def test_tensors_that_no_file_of_this_size_holds(self, make_folder: MakeFolder, tensor: Tensor, says: str) -> None:
        folder = make_folder()
        torch.save({**upstream(folder), "encoder.embedding.weight": tensor}, folder / "best_model.pt")
        with pytest.raises(WeightsError, match=rf"best_model\.pt: 'encoder.embedding.weight'.*{says}"):
            read_scgpt(folder)

    def test_tensors_that_share_memory_many_times(self, make_folder: MakeFolder) -> None:
        folder = make_folder()
        tensors = upstream(folder)
        table = tensors["encoder.embedding.weight"]
        torch.save({**tensors, "tied": table}, folder / "best_model.pt")
        assert "tied" in read_scgpt(folder).tensors
        torch.save({**tensors, **{f"tied.{i}": table for i in range(1000)}}, folder / "best_model.pt")
        with pytest.raises(WeightsError, match="share memory"):
            read_scgpt(folder)


class TestPlaces:
    def test_links_are_followed(self, make_folder: MakeFolder, tmp_path: Path) -> None:
        # As caches of model hubs have them.
        folder = make_folder()
        (tmp_path / "links").mkdir()
        for path in folder.iterdir():
            (tmp_path / "links" / path.name).symlink_to(path)
        assert_same(read_scgpt(tmp_path / "links").tensors, upstream(folder))
        (folder / "best_model.pt").unlink()
        with pytest.raises(WeightsError, match="best_model.pt"):
            read_scgpt(tmp_path / "links")

    @pytest.mark.parametrize("name", ["args.json", "vocab.json", "best_model.pt"])
    @pytest.mark.parametrize("what", ["folder", "circle"])
    def test_no_files(self, make_folder: MakeFolder, name: str, what: str) -> None:
        folder = make_folder()
        (folder / name).unlink()
        if what == "folder":
            (folder / name).mkdir()
        else:
            (folder / name).symlink_to(folder / name)
        with pytest.raises(WeightsError, match=name):
            read_scgpt(folder)

    def test_safetensors_that_is_a_folder(self, make_folder: MakeFolder) -> None:
        folder = make_folder()
        (folder / "model.safetensors").mkdir()
        with pytest.raises(WeightsError, match=r"model\.safetensors is a folder"):
            read_scgpt(folder)


@pytest.mark.parametrize("name", ["args.json", "vocab.json"])
def test_deep_json(make_folder: MakeFolder, name: str) -> None:
    folder = make_folder()
    (folder / name).write_text("[" * 100_000)
    with pytest.raises(WeightsError, match=rf"{name} is nested too deeply"):
        read_scgpt(folder)
