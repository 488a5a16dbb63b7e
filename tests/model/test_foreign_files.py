"""Folders of others, whatever is in them: they load, or are refused with file and field, at no cost."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.toy_family import bag, bag_of  # noqa: F401 -- a fixture

from scgalore.errors import OptionError, WeightsError
from scgalore.model import SCGPT, load

pytestmark = pytest.mark.filterwarnings("ignore:.*TorchScript.*")

ABSURD: list[Any] = [
    10**9,
    10**12,
    -1,
    0,
    2.5,
    "3",
    None,
    True,
    [],
    [[[[3]]]],
    {"a": 1},
    "",
    float("nan"),
    float("inf"),
]
VALUES = st.sampled_from(ABSURD) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
MANY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
UPSTREAM = (
    "embsize",
    "nheads",
    "d_hid",
    "nlayers",
    "dropout",
    "n_layers_cls",
    "n_bins",
    "max_seq_len",
    "mask_value",
    "pad_value",
)
SIZES = ("n_tokens", "d_model", "d_hid", "n_layers")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., SCGPT]) -> dict[str, Path]:
    """One small model in both layouts."""
    root = tmp_path_factory.mktemp("foreign")
    model = make_model([f"G{i}" for i in range(20)], d_model=8, d_hid=12)
    model.save(root / "ours")
    model.export_scgpt(root / "theirs")
    return {"ours": root / "ours", "theirs": root / "theirs"}


def changed(source: Path, target: Path, file: str, change: Callable[[dict[str, Any]], object]) -> Path:
    """Copy a folder with one JSON file changed."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    content = json.loads((source / file).read_text())
    change(content)
    (target / file).write_text(json.dumps(content))
    return target


def loads(folder: Path) -> bool:
    """Whether a folder loads; otherwise it must be refused as files are."""
    refusal = ""
    try:
        model = SCGPT.from_pretrained(folder)
    except WeightsError as error:
        refusal = str(error)
    if refusal:
        assert str(folder) in refusal
        return False
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.network.state_dict().values())
    return True


@pytest.mark.parametrize("layout", ["ours", "theirs"])
def test_what_is_whole_loads(folders: dict[str, Path], layout: str) -> None:
    assert loads(folders[layout])


class TestArgs:
    """``args.json`` of the original program."""

    @pytest.mark.parametrize("field", UPSTREAM)
    @pytest.mark.parametrize("value", [10**9, 10**12, "3", None, True, [[2]], float("nan"), {}])
    def test_absurd_values_are_named(self, folders: dict[str, Path], tmp_path: Path, field: str, value: Any) -> None:
        folder = changed(folders["theirs"], tmp_path / "m", "args.json", lambda args: args.update({field: value}))
        with pytest.raises(WeightsError) as caught:
            SCGPT.from_pretrained(folder)
        message = str(caught.value)
        assert str(folder / "args.json") in message
        assert f"{field} is " in message

    @pytest.mark.parametrize("field", UPSTREAM[:4])
    def test_what_is_missing_is_named(self, folders: dict[str, Path], tmp_path: Path, field: str) -> None:
        folder = changed(folders["theirs"], tmp_path / "m", "args.json", lambda args: args.pop(field))
        with pytest.raises(WeightsError, match=rf"args\.json lacks {field}: {field}, it must be a whole number"):
            SCGPT.from_pretrained(folder)

    @pytest.mark.parametrize(
        ("field", "own", "value", "seen"),
        [("embsize", "d_model", 16, 8), ("nlayers", "n_layers", 1000, 2), ("d_hid", "d_hid", 60_000, 12)],
    )
    def test_sizes_are_those_of_the_tensors(
        self, folders: dict[str, Path], tmp_path: Path, field: str, own: str, value: int, seen: int
    ) -> None:
        folder = changed(folders["theirs"], tmp_path / "m", "args.json", lambda args: args.update({field: value}))
        with pytest.raises(
            WeightsError, match=rf"args\.json has {own}={value}, but .*best_model\.pt have {own}={seen}"
        ):
            SCGPT.from_pretrained(folder)

    @MANY
    @given(changes=st.dictionaries(st.sampled_from(UPSTREAM), VALUES, min_size=1, max_size=3))
    def test_any_values(self, folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any]) -> None:
        loads(changed(folders["theirs"], tmp_path / "m", "args.json", lambda args: args.update(changes)))


class TestConfig:
    """``config.json`` of saved models."""

    @MANY
    @given(data=st.data())
    def test_any_value_of_the_network(self, folders: dict[str, Path], tmp_path: Path, data: st.DataObject) -> None:
        names = sorted(json.loads((folders["ours"] / "config.json").read_text())["network"])
        changes = data.draw(st.dictionaries(st.sampled_from(names), VALUES, min_size=1, max_size=3))
        loads(changed(folders["ours"], tmp_path / "m", "config.json", lambda c: c["network"].update(changes)))

    @MANY
    @given(data=st.data())
    def test_any_value_beside_it(self, folders: dict[str, Path], tmp_path: Path, data: st.DataObject) -> None:
        names = ["scgalore", "family", "network", "weights", "task", "memory", "training"]
        changes = data.draw(st.dictionaries(st.sampled_from(names), VALUES, min_size=1, max_size=3))
        folder = changed(folders["ours"], tmp_path / "m", "config.json", lambda c: c.update(changes))
        with suppress(OptionError):  # of a family that is not there
            loads(folder)

    @MANY
    @given(
        memory=st.dictionaries(st.sampled_from(["classes", "column", "mean", "std"]), VALUES, max_size=4),
        task=st.sampled_from(["classes", "regression", "perturbation", "expression", None]),
    )
    def test_any_memory(
        self, folders: dict[str, Path], tmp_path: Path, task: str | None, memory: dict[str, Any]
    ) -> None:
        changes = {"task": task, "memory": memory}
        loads(changed(folders["ours"], tmp_path / "m", "config.json", lambda c: c.update(changes)))

    @pytest.mark.parametrize("field", SIZES)
    def test_sizes_are_those_of_the_tensors(self, folders: dict[str, Path], tmp_path: Path, field: str) -> None:
        folder = changed(
            folders["ours"],
            tmp_path / "m",
            "config.json",
            lambda c: c["network"].update({field: c["network"][field] * 2}),
        )
        with pytest.raises(WeightsError, match=rf"config\.json has {field}=.*model\.safetensors have {field}="):
            SCGPT.from_pretrained(folder)

    def test_padding_is_that_of_the_vocabulary(self, folders: dict[str, Path], tmp_path: Path) -> None:
        folder = changed(folders["ours"], tmp_path / "m", "config.json", lambda c: c["network"].update(pad_id=0))
        with pytest.raises(WeightsError, match=rf"{folder} do not match.*pad_id is 0"):
            SCGPT.from_pretrained(folder)

    def test_heads_are_those_of_the_tensors(self, folders: dict[str, Path], tmp_path: Path) -> None:
        heads = {"classes": 10**6, "regression": 10**6}
        folder = changed(folders["ours"], tmp_path / "m", "config.json", lambda c: c["network"].update(heads=heads))
        with pytest.raises(WeightsError, match=r"config\.json has heads=.*1000000.*model\.safetensors have heads={}"):
            SCGPT.from_pretrained(folder)

    @pytest.mark.usefixtures("bag")
    def test_heads_of_another_family_take_no_memory(self, tmp_path: Path) -> None:
        bag_of([f"G{i}" for i in range(20)]).save(tmp_path / "bag")
        heads = {"classes": 10**6, "regression": 10**6}
        folder = changed(tmp_path / "bag", tmp_path / "m", "config.json", lambda c: c["network"].update(heads=heads))
        with pytest.raises(
            WeightsError, match=r"config\.json describes a network with 34,\S+ weights that are missing in "
        ):
            load(folder)

    def test_field_twice(self, folders: dict[str, Path], tmp_path: Path) -> None:
        folder = changed(folders["ours"], tmp_path / "m", "config.json", lambda c: None)
        path = folder / "config.json"
        path.write_text(path.read_text().replace('"d_model": 8', '"d_model": 8, "d_model": 16'))
        with pytest.raises(WeightsError, match=r"config\.json contains 'd_model' twice"):
            SCGPT.from_pretrained(folder)


class TestVocabulary:
    @MANY
    @given(changes=st.dictionaries(st.sampled_from(["G0", "G7", "<pad>", "<cls>", "new"]), VALUES, min_size=1))
    @pytest.mark.parametrize("layout", ["ours", "theirs"])
    def test_any_ids(self, folders: dict[str, Path], tmp_path: Path, layout: str, changes: dict[str, Any]) -> None:
        loads(changed(folders[layout], tmp_path / "m", "vocab.json", lambda vocab: vocab.update(changes)))

    def test_two_tokens_of_one_id(self, folders: dict[str, Path], tmp_path: Path) -> None:
        folder = changed(folders["theirs"], tmp_path / "m", "vocab.json", lambda vocab: vocab.update(G0=1))
        with pytest.raises(WeightsError, match=r"vocab\.json: The vocabulary of 23 tokens"):
            SCGPT.from_pretrained(folder)


class TestTensors:
    @MANY
    @given(data=st.data())
    @pytest.mark.parametrize(("layout", "file"), [("ours", "model.safetensors"), ("theirs", "best_model.pt")])
    def test_any_bytes_of_the_index(
        self, folders: dict[str, Path], tmp_path: Path, layout: str, file: str, data: st.DataObject
    ) -> None:
        content = bytearray((folders[layout] / file).read_bytes())
        # One begins with its index; the other begins with the pickle, and ends with the directory.
        n = 2500 if layout == "ours" else 4000
        places = st.integers(0, n) | st.integers(-n, -1) if layout == "theirs" else st.integers(0, n)
        for place in data.draw(st.lists(places, min_size=1, max_size=4)):
            content[place] = data.draw(st.integers(0, 255))
        shutil.copytree(folders[layout], tmp_path / "m", dirs_exist_ok=True)
        (tmp_path / "m" / file).unlink()
        (tmp_path / "m" / file).write_bytes(content)
        loads(tmp_path / "m")

    @MANY
    @given(data=st.data())
    def test_any_name_and_shape(self, folders: dict[str, Path], tmp_path: Path, data: st.DataObject) -> None:
        tensors = load_file(folders["ours"] / "model.safetensors")
        for name in data.draw(st.lists(st.sampled_from(sorted(tensors)), min_size=1, max_size=3, unique=True)):
            tensor = tensors.pop(name)
            new = data.draw(st.sampled_from([name, f"{name}x", f"x.{name}", "", "heads.a.weight", None]))
            if new is not None:
                shape = data.draw(st.lists(st.integers(0, 9), max_size=3))
                tensors[new] = data.draw(st.sampled_from([tensor, torch.zeros(shape), tensor.half(), tensor.long()]))
        shutil.copytree(folders["ours"], tmp_path / "m", dirs_exist_ok=True)
        save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"scgalore_format": "1"})
        loads(tmp_path / "m")


def _set(part: str | None, field: str, value: Any, content: dict[str, Any]) -> None:
    (content if part is None else content[part])[field] = value


@pytest.mark.slow
def test_absurd_files_cost_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    """All of them in one process that gets 256 MB and a minute from the kernel."""
    made: list[Path] = []

    def case(layout: str, file: str, change: Callable[[dict[str, Any]], object]) -> None:
        made.append(changed(folders[layout], tmp_path / f"case{len(made)}", file, change))

    for field in UPSTREAM:
        for value in (10**9, 10**12):
            case("theirs", "args.json", partial(_set, None, field, value))
    for field in (
        "n_tokens",
        "d_model",
        "n_layers",
        "n_layers_cls",
        "n_batches",
        "n_value_bins",
        "max_length",
        "n_bins",
    ):
        for value in (1000, 65_000, 10**7, 10**9):
            case("ours", "config.json", partial(_set, "network", field, value))
    parts = {"batch_norm": "per-batch", "batch_labels": True, "adversary": True, "n_batches": 65_000}
    case("ours", "config.json", lambda c: c["network"].update(parts))
    case("ours", "config.json", lambda c: c["network"].update(heads={str(i): 10**6 for i in range(1000)}))
    heads = {str(i): 1 for i in range(1000)}
    case("ours", "config.json", lambda c: c["network"].update(heads=heads, n_layers_cls=64))
    case("ours", "vocab.json", lambda vocab: vocab.update({"<pad>": 10**12}))
    whole = torch.load(folders["theirs"] / "best_model.pt", weights_only=True)
    for name, tensor in (("stride", torch.zeros(1).expand(10**7, 8)), ("meta", torch.zeros(10**7, 8, device="meta"))):
        made.append(Path(shutil.copytree(folders["theirs"], tmp_path / name)))
        torch.save({**whole, "encoder.embedding.weight": tensor}, made[-1] / "best_model.pt")
    script = [sys.executable, str(Path(__file__).with_name("absurd_files.py")), *map(str, made)]
    found = json.loads(subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    verdicts = {folder: verdict for folder, (verdict, _) in found.items()}
    allowed = {str(tmp_path / f"case{i}") for i in range(len(made))}
    harmless = {folder for folder, verdict in verdicts.items() if verdict == "loaded"}
    assert harmless <= allowed
    assert set(verdicts.values()) <= {"WeightsError", "loaded"}, verdicts
    # What hangs on nothing in the file: n_bins and max_length within their bounds, and depth of heads that are not there.
    assert len(harmless) < 12
