"""Downloads files from several addresses, verifies them and stores them in a folder."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scgalore._files import file_digest
from scgalore._folders import no_empty_folders
from scgalore._progress import Progress
from scgalore._settings import settings
from scgalore.errors import DownloadError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any, BinaryIO

    from requests.exceptions import RequestException

__all__ = ["RemoteFile", "fetch_files", "refusal_of"]

RETRY_WAITS = (1.0, 4.0)  # seconds before the second and the third attempt
MIN_RATE = 10_000  # minimum bytes per second of a usable connection
CHUNK = 1 << 16
TRANSIENT = frozenset({408, 425, 429, *range(500, 600)})  # responses that may succeed when repeated


@dataclass(frozen=True)
class RemoteFile:
    """A file with a known hash and the URLs to download it from.

    Attributes
    ----------
    name
        File name in the folder it is kept in.
    urls
        URLs, tried in this order.
    size
        Size in bytes, if known.
    sha256, md5
        Hashes of the content; ``sha256`` is used if both are known.
    """

    name: str
    urls: tuple[str, ...]
    size: int | None = None
    sha256: str = ""
    md5: str = ""

    @property
    def algorithm(self) -> str:
        """The hash algorithm used."""
        return "md5" if self.md5 and not self.sha256 else "sha256"

    @property
    def digest(self) -> str:
        """Expected hash for :attr:`algorithm`; empty if it is not published."""
        return self.sha256 or self.md5

    def is_good(self, path: Path) -> bool:
        """Whether a file has the right content."""
        return path.is_file() and file_digest(path, self.algorithm) == self.digest


def refusal_of(files: Sequence[RemoteFile]) -> str | None:
    """Reason why files cannot be downloaded; ``None`` if they can."""
    unhashed = [file.name for file in files if not file.digest]
    unplaced = [file.name for file in files if not file.urls]
    if unhashed:
        return f"no sha256 is known for {', '.join(unhashed)}, and unverified files are not loaded"
    if unplaced:
        return f"no direct address is known for {', '.join(unplaced)}"
    return None


def fetch_files(
    files: Sequence[RemoteFile], folder: Path, *, what: str, instead: str, progress: bool | None = None
) -> bool:
    """Download files that are missing or damaged in a folder.

    Parameters
    ----------
    files
        Files that the folder should contain.
    folder
        Folder, created if files are downloaded.
    what
        Description of the files for messages, such as ``"Weights 'scgpt'"``.
    instead
        Alternative to the files: a clause that follows "Or" in the message.
    progress
        Whether to show a progress bar; ``None`` uses ``sg.settings.progress``.

    Returns
    -------
    Whether anything was downloaded.

    Raises
    ------
    DownloadError
        If files are missing and cannot be downloaded; the message explains how to provide them manually.
    """
    missing = [file for file in files if not file.is_good(folder / file.name)]
    if missing and settings.offline:
        raise DownloadError(_no_download(missing, folder, "sg.settings.offline is on", what, instead))
    with no_empty_folders(folder):
        for n_done, file in enumerate(missing):
            try:
                _from_any_address(file, folder, progress=progress)
            except (_NoAddressWorked, OSError) as error:
                raise DownloadError(_no_download(missing[n_done:], folder, str(error), what, instead)) from error
    return bool(missing)


class _NoAddressWorked(Exception):
    """All URLs failed; the message contains the reason for each."""


class _WrongAnswerError(ValueError):
    """The server sends something other than the file, or too slowly; not repeated."""


def _from_any_address(file: RemoteFile, folder: Path, *, progress: bool | None) -> None:
    from requests.exceptions import RequestException

    causes = []
    for url in file.urls:
        try:
            _download(file, url, folder, progress=progress)
        # Errors of this machine (a full disk is also an OSError) would occur at the next URL as well.
        except (RequestException, ValueError) as error:
            causes.append(_cause(error, file))
        else:
            return
    if len(causes) == 1:
        raise _NoAddressWorked(causes[0])
    raise _NoAddressWorked("; ".join(f"{url}: {cause}" for url, cause in zip(file.urls, causes, strict=True)))


def _download(file: RemoteFile, url: str, folder: Path, *, progress: bool | None) -> None:
    import pooch
    from requests.exceptions import RequestException

    def downloader(url: str, output: Any, pup: Any) -> None:
        with open(output, "wb") as target:  # noqa: PTH123 (pooch gives a string)
            _Transfer(file, url, target).run(progress=progress)
        with open(output, "rb") as received:  # noqa: PTH123
            start = received.read(512).lstrip().lower()
            n = received.seek(0, os.SEEK_END)
        if start.startswith((b"<!doctype html", b"<html")):
            # Harvard Dataverse did this in 2026, with a status of success.
            msg = "the server sent a web page instead of the file; downloading it with a browser may work"
            raise _WrongAnswerError(msg)
        if file.size is not None and n != file.size:
            msg = f"the server sent {n:,} bytes, expected {file.size:,}"
            raise _WrongAnswerError(msg)

    # Pooch writes to a temporary file and renames it once its hash is right, so neither a broken download nor a wrong
    # file ever takes the place of a good one. Its own retries would also repeat a 404 and a wrong hash.
    for wait in (*RETRY_WAITS, None):
        try:
            pooch.retrieve(
                url, known_hash=f"{file.algorithm}:{file.digest}", fname=file.name, path=folder, downloader=downloader
            )
            break
        except RequestException as error:
            if wait is None or not _is_transient(error):
                raise
            time.sleep(wait)
    # The temporary file is private to its owner, but caches are shared between the members of a group.
    (folder / file.name).chmod(0o644)


class _Transfer:
    """A download in a separate thread, so that a server cannot block the caller.

    The timeout of sockets is for the time between two bytes, so a server that sends one byte per second could continue
    indefinitely, also in the headers.
    """

    def __init__(self, file: RemoteFile, url: str, target: BinaryIO) -> None:
        self.file, self.url, self.target = file, url, target
        self.n_received = 0
        self.given_up = False
        self.error: BaseException | None = None

    def run(self, *, progress: bool | None) -> None:
        """Wait for the end of the download while it is fast enough.

        Raises
        ------
        _WrongAnswerError
            If the server is too slow, or sends more than the file has.
        """
        thread = threading.Thread(target=self._receive, kwargs={"patience": settings.download_timeout}, daemon=True)
        thread.start()
        try:
            with Progress(self.file.name, self.file.size, unit="B", shown=progress) as bar:
                self._watch(thread, bar)
        finally:
            self.given_up = True  # stops the thread, also after Ctrl-C
        if self.error is not None:
            raise self.error

    def _watch(self, thread: threading.Thread, bar: Progress) -> None:
        patience = settings.download_timeout
        due, before = time.monotonic() + patience, 0
        while thread.is_alive():
            thread.join(min(0.1, patience / 4))
            bar.update(self.n_received - bar.n)
            if time.monotonic() >= due and thread.is_alive():
                if self.n_received - before < MIN_RATE * patience:
                    got = f"{self.n_received - before:,} bytes in {patience:g} seconds"
                    msg = f"the server was too slow: {got}; increase sg.settings.download_timeout"
                    raise _WrongAnswerError(msg)
                due, before = time.monotonic() + patience, self.n_received
        bar.update(self.n_received - bar.n)

    def _receive(self, *, patience: float) -> None:
        import requests

        try:
            # A small compressed response could unpack to a large one.
            headers = {"Accept-Encoding": "identity"}
            with requests.get(self.url, stream=True, timeout=patience, headers=headers) as response:
                response.raise_for_status()
                self._refuse_longer(int(response.headers.get("Content-Length", "0")))
                for chunk in response.iter_content(CHUNK):
                    if self.given_up:
                        return
                    self._refuse_longer(self.n_received + len(chunk))
                    self.target.write(chunk)
                    self.n_received += len(chunk)
        except BaseException as error:  # noqa: BLE001 -- raised where the download is waited for
            self.error = error

    def _refuse_longer(self, n: int) -> None:
        if self.file.size is not None and n > self.file.size:
            msg = f"the server sends {n:,} bytes or more, expected {self.file.size:,}"
            raise _WrongAnswerError(msg)


def _is_transient(error: RequestException) -> bool:
    from requests.exceptions import TooManyRedirects

    if isinstance(error, TooManyRedirects):
        return False
    return error.response is None or error.response.status_code in TRANSIENT


def _cause(error: Exception, file: RemoteFile) -> str:
    from requests.exceptions import ChunkedEncodingError, HTTPError, RequestException, Timeout, TooManyRedirects

    if isinstance(error, HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, ChunkedEncodingError):
        return "the connection was interrupted"
    if isinstance(error, TooManyRedirects):
        return "too many redirects"
    if isinstance(error, Timeout):
        return "the server did not answer in time"
    if isinstance(error, RequestException):
        return "there is no connection to the server"
    if isinstance(error, _WrongAnswerError):
        return str(error)
    return f"the content does not match the recorded {file.algorithm}"


def _no_download(missing: Sequence[RemoteFile], folder: Path, cause: str, what: str, instead: str) -> str:
    lines = [f"{what}: files are missing or damaged in the cache and could not be downloaded: {cause}."]
    lines += ["Download these files manually:"]
    for file in missing:
        size = "" if file.size is None else f" ({file.size:,} bytes)"
        lines += [f"  {folder / file.name}{size}"]
        lines += [f"    {'from' if i == 0 else 'or':<7}{url}" for i, url in enumerate(file.urls)]
        lines += [f"    {file.algorithm:<6} {file.digest}"]
    lines += [f"Or {instead}"]
    return "\n".join(lines)
