import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.serving import Server, serving

import scgalore.weights.fetch as fetch_module
from scgalore._settings import settings
from scgalore.errors import DownloadError, OptionError, WeightsError
from scgalore.weights import WeightsEntry, WeightsFile, fetch_weights, get_entry, resolve_model_folder
from scgalore.weights.fetch import fetch_entry

FILES = {"args.json": b'{"embsize": 8}', "best_model.pt": bytes(range(256)) * 1000}


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(FILES) as server:
        yield server


@pytest.fixture
def entry(server: Server) -> WeightsEntry:
    files = tuple(
        WeightsFile(name, url=server.url + name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in FILES.items()
    )
    return WeightsEntry("tiny", "no cells", files, licence="MIT", citation="doi", homepage="https://host.example")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("scgalore._fetch.RETRY_WAITS", (0.0, 0.0))
    with settings.override(cachedir=tmp_path / "cache", offline=False, progress=False):
        yield tmp_path / "cache"


def fill(folder: Path, **changes: bytes) -> None:
    folder.mkdir(parents=True)
    for name, content in {**FILES, **changes}.items():
        (folder / name).write_bytes(content)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_fetch_then_use_the_cache(server: Server, entry: WeightsEntry, cache: Path) -> None:
    folder = fetch_entry(entry)
    assert folder == cache / "tiny"
    assert content(folder) == FILES
    assert server.asked == list(FILES)
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in folder.iterdir())
    assert fetch_entry(entry) == folder
    assert server.asked == list(FILES)


def test_progress_bar_only_where_wanted(entry: WeightsEntry, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch_entry(entry, progress=True)
    assert "B/s]" in capsys.readouterr().err
    shutil.rmtree(cache)
    fetch_entry(entry)
    assert "B/s]" not in capsys.readouterr().err


@pytest.mark.parametrize("manners", [[500, 500, "good"], [503, "cut", "good"], ["cut", "good"], [429, "good"]])
def test_passing_trouble_is_ridden_out(
    server: Server, entry: WeightsEntry, cache: Path, manners: list[str | int]
) -> None:
    server.manners["best_model.pt"] = manners.copy()
    assert content(fetch_entry(entry)) == FILES
    assert server.asked.count("best_model.pt") == len(manners)


@pytest.mark.parametrize(
    ("manner", "n_asked", "cause"),
    [
        ("cut", 3, "the connection was interrupted"),
        (500, 3, "answered 500"),
        (404, 1, "answered 404 Not Found"),
        (403, 1, "answered 403"),
        ("altered", 1, "does not match the recorded sha256"),
    ],
)
def test_lasting_trouble_leaves_nothing(
    server: Server, entry: WeightsEntry, cache: Path, manner: str | int, n_asked: int, cause: str
) -> None:
    server.manners["args.json"] = [manner]
    with pytest.raises(DownloadError, match=cause):
        fetch_entry(entry)
    assert server.asked == ["args.json"] * n_asked
    assert not cache.exists()


def test_message_says_how_to_do_without_network(entry: WeightsEntry, cache: Path, server: Server) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError) as caught:
        fetch_entry(entry)
    message = str(caught.value)
    assert "no connection" in message
    for file in entry.files:
        assert file.url in message
        assert file.sha256 in message
        assert str(cache / "tiny" / file.name) in message
    assert 'model="/path/to/folder"' in message
    assert 'model="scgpt-mini" is small, ships with the package and needs no connection' in message
    assert not cache.exists()


def test_files_saved_by_hand_are_accepted(entry: WeightsEntry, cache: Path, server: Server) -> None:
    fill(cache / "tiny")
    assert content(fetch_entry(entry)) == FILES
    assert server.asked == []


def test_offline_switch(server: Server, entry: WeightsEntry, cache: Path) -> None:
    with settings.override(offline=True):
        with pytest.raises(DownloadError, match=r"settings.offline is on"):
            fetch_entry(entry)
        assert not cache.exists()
        fill(cache / "tiny")
        assert content(fetch_entry(entry)) == FILES
    assert server.asked == []


def test_good_files_survive_the_failure_of_others(server: Server, entry: WeightsEntry, cache: Path) -> None:
    server.manners["best_model.pt"] = [404]
    with pytest.raises(DownloadError) as caught:
        fetch_entry(entry)
    assert entry.files[0].url not in str(caught.value)
    assert entry.files[1].url in str(caught.value)
    assert content(cache / "tiny") == {"args.json": FILES["args.json"]}
    server.manners["best_model.pt"] = ["good"]
    assert content(fetch_entry(entry)) == FILES
    assert server.asked == ["args.json", "best_model.pt", "best_model.pt"]


@pytest.mark.parametrize("manner", [404, "cut", "altered", "offline"])
def test_damaged_file_stays_until_a_good_one_is_there(
    server: Server, entry: WeightsEntry, cache: Path, manner: str | int
) -> None:
    fill(cache / "tiny", **{"best_model.pt": b"damaged"})
    before = content(cache / "tiny")
    server.manners["best_model.pt"] = [manner]
    with settings.override(offline=manner == "offline"), pytest.raises(DownloadError):
        fetch_entry(entry)
    assert content(cache / "tiny") == before
    server.manners["best_model.pt"] = ["good"]
    assert content(fetch_entry(entry)) == FILES


def test_cache_that_cannot_be_made(entry: WeightsEntry, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(DownloadError, match=str(cache)):
        fetch_entry(entry)


def test_unverifiable_weights_are_refused_unasked(server: Server, entry: WeightsEntry, cache: Path) -> None:
    open_entry = replace(entry, files=(replace(entry.files[0], sha256=""),))
    with pytest.raises(DownloadError, match=r"no sha256 is known for args.json.*model=.*https://host.example"):
        fetch_entry(open_entry)
    assert server.asked == []
    assert not cache.exists()


def test_bundled_weights(entry: WeightsEntry, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "BUNDLED", tmp_path / "package")
    files = tuple(replace(file, url="") for file in entry.files)
    bundled = replace(entry, bundled=True, files=files)
    with pytest.raises(WeightsError, match="Install scgalore again"):
        fetch_entry(bundled)
    fill(tmp_path / "package" / "tiny")
    assert fetch_entry(bundled) == tmp_path / "package" / "tiny"
    (tmp_path / "package" / "tiny" / "args.json").write_bytes(b"{}")
    with pytest.raises(WeightsError, match="args.json"):
        fetch_entry(bundled)
    with pytest.raises(DownloadError, match="not built yet"):
        fetch_entry(replace(bundled, files=(replace(files[0], sha256=""),)))


def test_resolve_a_folder(tmp_path: Path) -> None:
    assert resolve_model_folder(tmp_path) == (tmp_path, None)
    assert resolve_model_folder(str(tmp_path)) == (tmp_path, None)


def test_resolve_a_name(cache: Path) -> None:
    with settings.override(offline=True), pytest.raises(DownloadError, match="'scgpt'"):
        resolve_model_folder("scgpt")


def test_folder_in_the_way_does_not_pass_for_registered_weights(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scgpt").mkdir()
    with settings.override(offline=True), pytest.raises(DownloadError, match="'scgpt'"):
        resolve_model_folder("scgpt")
    assert resolve_model_folder(Path("scgpt")) == (Path("scgpt"), None)
    assert resolve_model_folder("./scgpt") == (Path("scgpt"), None)


def test_resolve_neither(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"neither an existing folder nor.*Did you mean 'scgpt-heart'\?"):
        resolve_model_folder("scgpt-hearts")
    (tmp_path / "best_model.pt").touch()
    with pytest.raises(OptionError, match=rf"is a file; pass the folder.*{tmp_path}"):
        resolve_model_folder(tmp_path / "best_model.pt")


@pytest.mark.internet
@pytest.mark.parametrize("name", ["scgpt", "scgpt-continual"])
def test_small_files_are_where_the_registry_says(cache: Path, name: str) -> None:
    registered = get_entry(name)
    small = tuple(file for file in registered.files if (file.size or 0) < 10**7)
    folder = fetch_entry(replace(registered, files=small))
    assert {path.name: path.stat().st_size for path in folder.iterdir()} == {file.name: file.size for file in small}


@pytest.mark.internet
@pytest.mark.slow
@pytest.mark.parametrize("name", ["scgpt", "scgpt-continual"])
def test_registered_weights_can_be_fetched(cache: Path, name: str) -> None:
    assert {path.name for path in fetch_weights(name).iterdir()} == {file.name for file in get_entry(name).files}
