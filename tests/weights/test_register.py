"""Weights of a user's own: named, fetched, and carried to a machine without a network."""

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serving import Server, serving

import scgalore.weights.registry as registry
from scgalore._settings import settings
from scgalore.errors import DownloadError, OptionError, WeightsError
from scgalore.model import SCGPT, load
from scgalore.weights import bundle, fetch_weights, get_entry, list_weights, register, unbundle

NONE = "0" * 64
SUMS = {"config.json": NONE, "vocab.json": NONE, "model.safetensors": NONE}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("scgalore._fetch.RETRY_WAITS", (0.0, 0.0))
    monkeypatch.setattr(registry, "_REGISTERED", {})
    with settings.override(cachedir=tmp_path / "cache", offline=False, progress=False):
        yield


@pytest.fixture
def files(make_model: Callable[..., SCGPT], tmp_path: Path) -> dict[str, bytes]:
    make_model(["A", "B", "C"]).save(tmp_path / "saved")
    return {name: (tmp_path / "saved" / name).read_bytes() for name in SUMS}


@pytest.fixture
def server(files: dict[str, bytes]) -> Iterator[Server]:
    with serving(files) as server:
        yield server


@pytest.fixture
def sums(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


class TestRegister:
    def test_a_name_for_a_server_of_ones_own(self, server: Server, sums: dict[str, str]) -> None:
        entry = register("blood", server.url + "{file}", sums, licence="CC-BY-4.0", description="blood cells")
        assert entry == get_entry("blood")
        assert "blood" in list_weights()
        loaded = load("blood")
        assert (loaded.provenance["name"], loaded.licence) == ("blood", "CC-BY-4.0")
        assert fetch_weights("blood") == settings.cachedir / "blood"

    def test_other_bytes_are_refused(self, server: Server, sums: dict[str, str]) -> None:
        register("blood", server.url + "{file}", {**sums, "vocab.json": NONE})
        with pytest.raises(DownloadError, match="does not match the recorded sha256"):
            load("blood")

    def test_one_file(self) -> None:
        entry = register("own-scbert", "https://models.example.org/a%20b/panglao.pth?download=1", NONE, family="scbert")
        assert [(file.name, file.url) for file in entry.files] == [
            ("panglao.pth", "https://models.example.org/a%20b/panglao.pth?download=1")
        ]

    def test_a_mirror_of_weights_of_the_package(self) -> None:
        before = get_entry("scgpt")
        register("scgpt", "https://mirror.example.org/scgpt/{file}")
        after = get_entry("scgpt")
        assert [file.url for file in after.files][0] == "https://mirror.example.org/scgpt/args.json"
        assert [file.sha256 for file in after.files] == [file.sha256 for file in before.files]
        assert (after.licence, after.zero_shot) == (before.licence, before.zero_shot)

    def test_hashes_that_the_package_lacks(self) -> None:
        known = {file.name: file.sha256 or NONE for file in get_entry("scgpt-heart").files}
        assert get_entry("scgpt-heart").refusal is not None
        assert register("scgpt-heart", "https://mirror.example.org/{file}", known).refusal is None

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"name": "scgpt"}, "the package has other weights of this name"),
            ({"name": "scgpt-mini"}, "the package has other weights of this name"),
            ({"name": "../blood"}, "a name has letters"),
            ({"name": "hub"}, "a name has letters"),
            ({"url": "https://models.example.org/blood"}, "Write {file} in place"),
            ({"url": "ftp://models.example.org/{file}"}, "begins with https"),
            ({"url": "https://lab:pass@models.example.org/{file}"}, "netrc"),
            ({"sha256": None}, "sha256= is missing"),
            ({"sha256": {"config.json": "12"}}, "64 hexadecimal digits"),
            ({"sha256": {"../config.json": NONE}}, "not a plain file name"),
            ({"sha256": {}}, "it must be a list of files"),
        ],
    )
    def test_what_is_refused(self, changes: dict[str, Any], message: str) -> None:
        before = list_weights()
        with pytest.raises(OptionError, match=message) as refused:
            register(**{"name": "blood", "url": "https://models.example.org/{file}", "sha256": SUMS, **changes})
        assert "pass@" not in str(refused.value)
        assert list_weights() == before


class TestFiles:
    def test_saved_names_are_known_to_later_processes(
        self, server: Server, sums: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entry = register(
            "blood", server.url + "{file}", sums, licence='Lab "1"', description="Blut \u2014 cells", save=True
        )
        monkeypatch.setattr(registry, "_REGISTERED", {})
        assert get_entry("blood") == entry

    def test_a_file_that_is_written_by_hand(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.toml"
        path.write_text(
            '[weights.blood]\nurl = "https://models.example.org/{revision}/{file}"\nrevision = "v2"\nlicence = "MIT"\n'
            f'files = [{{ name = "args.json", sha256 = "{NONE}" }}, {{ name = "best_model.pt", sha256 = "{NONE}", size = 12 }}]\n'
            "[weights.blood.args]\nembsize = 8\n"
        )
        with settings.override(registry=path):
            entry = get_entry("blood")
        assert entry.files[1].url == "https://models.example.org/v2/best_model.pt"
        assert (entry.files[1].size, entry.args, entry.licence) == (12, {"embsize": 8}, "MIT")
        assert "blood" not in list_weights()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("weights = 3", r"no tables \[weights.NAME\]"),
            ("[weights.blood", "cannot be read"),
            ("[weights.blood]\nlicence = 'MIT'", "lacks files"),
            (f"[weights.blood]\nfiles = [{{ name = 'a', sha256 = '{NONE}' }}]", "Expected one that begins with https"),
            (f"[weights.blood]\ncolour = 'red'\nfiles = [{{ name = 'a', sha256 = '{NONE}' }}]", "'colour' is unknown"),
        ],
    )
    def test_faults_in_it(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "weights.toml"
        path.write_text(text)
        with settings.override(registry=path), pytest.raises(OptionError, match=message) as refused:
            list_weights()
        assert str(path) in str(refused.value)

    def test_a_file_that_is_missing(self, tmp_path: Path) -> None:
        with settings.override(registry=tmp_path / "no.toml"), pytest.raises(OptionError, match="SCGALORE_REGISTRY"):
            list_weights()


class TestBundle:
    @pytest.fixture
    def path(self, server: Server, sums: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        register("blood", server.url + "{file}", sums, licence="MIT")
        path = bundle(["blood"], tmp_path / "weights.tar")
        monkeypatch.setattr(registry, "_REGISTERED", {})
        settings.cachedir = tmp_path / "elsewhere"
        return path

    def test_on_a_machine_without_a_network(self, path: Path) -> None:
        with settings.override(offline=True):
            assert unbundle(path) == ["blood"]
            assert load("blood").licence == "MIT"

    def test_equal_weights_give_equal_bytes(self, path: Path, tmp_path: Path) -> None:
        unbundle(path)
        assert bundle(["blood"], tmp_path / "again.tar").read_bytes() == path.read_bytes()

    def test_damaged(self, path: Path, files: dict[str, bytes]) -> None:
        content = path.read_bytes()
        at = content.index(files["model.safetensors"]) + 200
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(WeightsError, match=r"model.safetensors has the sha256 .* Copy the file again"):
            unbundle(path)
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(WeightsError, match="again"):
            unbundle(path)
        assert not any(settings.cachedir.rglob("*.*")), "nothing half unpacked"

    @pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "blood/link"])
    def test_not_made_by_us(self, path: Path, tmp_path: Path, name: str) -> None:
        with tarfile.open(tmp_path / "evil.tar", "w") as archive:
            listed = f"{hashlib.sha256(b'x').hexdigest()}  {name}\n".encode()
            for member, content in (("SHA256SUMS", listed), (name, b"x")):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                if member == "blood/link":
                    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(info, io.BytesIO(content))
        with pytest.raises(WeightsError):
            unbundle(tmp_path / "evil.tar")
        assert not (tmp_path / "evil").exists()
        assert not any(path.is_file() for path in settings.cachedir.rglob("*"))

    def test_what_is_no_bundle(self, tmp_path: Path) -> None:
        (tmp_path / "x.tar").write_bytes(b"no archive" * 100)
        with pytest.raises(WeightsError, match="not a bundle"):
            unbundle(tmp_path / "x.tar")
        with pytest.raises(OptionError, match="is not a file"):
            unbundle(tmp_path / "none.tar")

    def test_what_cannot_be_bundled(self, tmp_path: Path) -> None:
        for name, message in (("scgpt-mini", "part of the package"), ("nothing", "No weights are registered")):
            with pytest.raises(OptionError, match=message):
                bundle([name], tmp_path / "weights.tar")
        with settings.override(offline=True), pytest.raises(DownloadError):
            bundle(["scgpt"], tmp_path / "weights.tar")
        assert not (tmp_path / "weights.tar").exists()
