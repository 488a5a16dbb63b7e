"""Several addresses, and files of which only an MD5 is known; the rest is in weights/test_fetch.py."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serving import Server, serving

from scgalore._fetch import RemoteFile, fetch_files, refusal_of
from scgalore._settings import settings
from scgalore.errors import DownloadError

CONTENT = bytes(range(256)) * 100
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("scgalore._fetch.RETRY_WAITS", (0.0, 0.0))
    with settings.override(offline=False, progress=False), serving({"first": CONTENT, "second": CONTENT}) as server:
        yield server


def file_of(server: Server, *, sha256: str = SHA256, md5: str = "") -> RemoteFile:
    return RemoteFile("data", (server.url + "first", server.url + "second"), len(CONTENT), sha256, md5)


def fetch(file: RemoteFile, folder: Path) -> bool:
    return fetch_files([file], folder, what="Data", instead="do without.")


@pytest.mark.parametrize("manner", [404, 500, "cut", "altered", "page"])
def test_next_address_is_tried(server: Server, tmp_path: Path, manner: str | int) -> None:
    server.manners["first"] = [manner]
    assert fetch(file_of(server), tmp_path)
    assert (tmp_path / "data").read_bytes() == CONTENT
    assert (server.asked[0], server.asked[-1]) == ("first", "second")
    assert not fetch(file_of(server), tmp_path), "a good file is not downloaded again"


def test_one_good_address_is_enough(server: Server, tmp_path: Path) -> None:
    fetch(file_of(server), tmp_path)
    assert server.asked == ["first"]


def test_message_says_what_happened_at_each_address(server: Server, tmp_path: Path) -> None:
    server.manners |= {"first": ["page"], "second": [404]}
    with pytest.raises(DownloadError) as caught:
        fetch(file_of(server), tmp_path / "cache")
    lines = str(caught.value).splitlines()
    assert f"{server.url}first: the server sent a web page instead of the file" in lines[0]
    assert f"{server.url}second: the server answered 404" in lines[0]
    assert f"    from   {server.url}first" in lines
    assert f"    or     {server.url}second" in lines
    assert f"    sha256 {SHA256}" in lines
    assert lines[-1] == "Or do without."
    assert not (tmp_path / "cache").exists()


def test_trouble_on_this_machine_is_not_blamed_on_the_address(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DownloadError, match="cache"):
        fetch(file_of(server), tmp_path / "cache")
    assert "second" not in server.asked


def test_md5_where_no_sha256_is_known(server: Server, tmp_path: Path) -> None:
    file = file_of(server, sha256="", md5=MD5)
    server.manners["first"] = ["altered"]
    fetch(file, tmp_path)
    assert server.asked == ["first", "second"]
    (tmp_path / "data").write_bytes(CONTENT[::-1])
    server.manners["second"] = ["altered"]
    with pytest.raises(DownloadError, match=f"does not match the recorded md5(.|\n)*md5    {MD5}"):
        fetch(file, tmp_path)


def test_sha256_counts_where_both_are_known(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="does not match the recorded sha256"):
        fetch(file_of(server, sha256="0" * 64, md5=MD5), tmp_path)
    fetch(file_of(server, md5="0" * 32), tmp_path)


@pytest.mark.parametrize(
    ("manner", "cause"),
    [
        ("circle", "too many redirects"),
        ("long", r"the server sends 25,6\d\d bytes or more, expected 25,600|sends 65,536 bytes or more"),
        ("long, and says so", "the server sends 1,000,000,000,000 bytes or more, expected 25,600"),
        ("short", "the server sent 25,590 bytes, expected 25,600"),
        ("drip", r"the server was too slow: \d+ bytes in 0.2 seconds; increase sg.settings.download_timeout"),
        ("drip in the headers", "the server was too slow: 0 bytes in 0.2 seconds"),
        ("packed", "the server sends .* bytes or more, expected 25,600"),
    ],
)
class TestMischief:
    """Servers that would go on for ever, or send more than there is room for."""

    def test_ends_and_leaves_nothing(self, server: Server, tmp_path: Path, manner: str, cause: str) -> None:
        server.manners |= {"first": [manner], "second": [404]}
        with settings.override(download_timeout=0.2), pytest.raises(DownloadError, match=cause):
            fetch(file_of(server), tmp_path / "cache")
        assert not (tmp_path / "cache").exists()
        assert server.asked.count("second") == 1
        assert server.sent < 2000 * len(CONTENT)  # what buffers hold, of five times as much

    def test_next_address_is_tried(self, server: Server, tmp_path: Path, manner: str, cause: str) -> None:
        server.manners["first"] = [manner]
        with settings.override(download_timeout=0.2):
            assert fetch(file_of(server), tmp_path)
        assert (tmp_path / "data").read_bytes() == CONTENT

    def test_good_file_stays(self, server: Server, tmp_path: Path, manner: str, cause: str) -> None:
        (tmp_path / "data").write_bytes(b"of before")
        server.manners |= {"first": [manner], "second": [404]}
        with settings.override(download_timeout=0.2), pytest.raises(DownloadError):
            fetch(file_of(server), tmp_path)
        assert (tmp_path / "data").read_bytes() == b"of before"
        assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_silence_is_a_timeout_and_may_pass(server: Server, tmp_path: Path) -> None:
    server.manners["first"] = ["silent", "good"]
    with settings.override(download_timeout=0.3):
        fetch(file_of(server), tmp_path)
    assert server.asked[-1] in ("first", "second")
    assert (tmp_path / "data").read_bytes() == CONTENT


def test_place_of_the_file_that_is_a_folder(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data" / "mine").mkdir(parents=True)
    with pytest.raises(DownloadError, match="data"):
        fetch(file_of(server), tmp_path)
    assert (tmp_path / "data" / "mine").is_dir()


def test_interruption_ends_the_download(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import scgalore._fetch as module

    def interrupted(self: object, thread: object, bar: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module._Transfer, "_watch", interrupted)
    server.manners["first"] = ["drip"]
    with pytest.raises(KeyboardInterrupt):
        fetch(file_of(server), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_refusal() -> None:
    urls = ("https://host/a",)
    assert refusal_of([RemoteFile("a", urls, md5=MD5), RemoteFile("b", urls, sha256=SHA256)]) is None
    assert "sha256 is known for b" in str(refusal_of([RemoteFile("a", urls, md5=MD5), RemoteFile("b", urls)]))
    assert "address is known for b" in str(refusal_of([RemoteFile("b", (), md5=MD5)]))
