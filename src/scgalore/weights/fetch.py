"""From a name to a folder of verified files: the package's own, the cache's, or the network's."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pooch
from requests.exceptions import ChunkedEncodingError, HTTPError, RequestException, Timeout

from scgalore._folders import no_empty_folders
from scgalore._progress import is_shown
from scgalore._settings import settings
from scgalore.errors import DownloadError, OptionError, WeightsError
from scgalore.weights.digest import file_sha256
from scgalore.weights.registry import WeightsEntry, WeightsFile, get_entry, list_weights, suggestion

__all__ = ["fetch_weights", "resolve_model_folder"]

BUNDLED = Path(__file__).with_name("bundled")
RETRY_WAITS = (1.0, 4.0)  # seconds before the second and the third attempt
TRANSIENT = frozenset({408, 425, 429, *range(500, 600)})  # answers of a server that may change its mind


def fetch_weights(name: str, *, progress: bool | None = None) -> Path:
    """Give the folder of registered weights, downloading what the cache lacks.

    Every file is held against its recorded sha256. Files that are good are used without touching the network.

    Parameters
    ----------
    name
        One of :func:`~scgalore.weights.list_weights`.
    progress
        Whether to show a progress bar; by default as ``sg.settings.progress`` says.

    Returns
    -------
    Folder for :func:`~scgalore.weights.read_checkpoint`, below ``sg.settings.cachedir`` or inside the package.

    Raises
    ------
    OptionError
        If no weights have this name.
    DownloadError
        If files are missing and cannot be fetched; the message says how to provide them by hand.
    """
    return fetch_entry(get_entry(name), progress=progress)


def resolve_model_folder(model: str | os.PathLike[str]) -> tuple[Path, WeightsEntry | None]:
    """Turn what a user passes as ``model`` into a folder, and the registry entry if it has one.

    A registered name always means the registered weights, whatever lies in the working directory; write ``"./scgpt"``
    for a folder of that name.

    Parameters
    ----------
    model
        Name of registered weights, or path of a folder.

    Raises
    ------
    OptionError
        If ``model`` is neither.
    """
    if isinstance(model, str) and model in list_weights():
        return fetch_weights(model), get_entry(model)
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder, None
    if folder.is_file():
        msg = f"model={os.fspath(model)!r} is a file; pass the folder it lies in: model={str(folder.parent)!r}."
        raise OptionError(msg)
    msg = f"model={os.fspath(model)!r} is neither an existing folder nor the name of weights. {suggestion(folder.name)}"
    raise OptionError(msg)


def fetch_entry(entry: WeightsEntry, *, progress: bool | None = None) -> Path:
    """Like :func:`fetch_weights`, for an entry that need not be registered."""
    if entry.refusal is not None:
        msg = f"The weights {entry.name!r} cannot be fetched: {entry.refusal}. You can {_by_hand(entry)}"
        raise DownloadError(msg)
    folder = (BUNDLED if entry.bundled else settings.cachedir) / entry.name
    missing = [file for file in entry.files if not _is_good(folder / file.name, file)]
    if entry.bundled and missing:
        msg = f"{missing[0].name} of the bundled weights {entry.name!r} is damaged or missing. Install scgalore again."
        raise WeightsError(msg)
    if missing and settings.offline:
        raise DownloadError(_no_download(entry, missing, folder, "sg.settings.offline is on"))
    with no_empty_folders(folder):
        for n_done, file in enumerate(missing):
            try:
                _download(file, folder, progress=is_shown() if progress is None else progress)
            except (OSError, ValueError) as error:
                raise DownloadError(_no_download(entry, missing[n_done:], folder, _cause(error))) from error
    return folder


def _is_good(path: Path, file: WeightsFile) -> bool:
    return path.is_file() and file_sha256(path) == file.sha256


def _download(file: WeightsFile, folder: Path, *, progress: bool) -> None:
    # Pooch writes to a temporary file and renames it once its hash is right, so neither a broken download nor a wrong
    # file ever takes the place of a good one. Its own retries would also repeat a 404 and a wrong hash.
    downloader = pooch.HTTPDownloader(progressbar=progress, chunk_size=1 << 16, timeout=30)
    for wait in (*RETRY_WAITS, None):
        try:
            pooch.retrieve(
                file.url, known_hash=f"sha256:{file.sha256}", fname=file.name, path=folder, downloader=downloader
            )
            break
        except RequestException as error:
            if wait is None or not _is_transient(error):
                raise
            time.sleep(wait)
    # The temporary file is private to its owner, but caches are shared between the members of a group.
    (folder / file.name).chmod(0o644)


def _is_transient(error: RequestException) -> bool:
    return error.response is None or error.response.status_code in TRANSIENT


def _cause(error: Exception) -> str:
    if isinstance(error, HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, ChunkedEncodingError):
        return "the connection broke in the middle of the file"
    if isinstance(error, Timeout):
        return "the server did not answer in time"
    if isinstance(error, RequestException):
        return "there is no connection to the server"
    if isinstance(error, ValueError):
        return "the server sent other bytes than the recorded sha256 asks for"
    return str(error)


def _no_download(entry: WeightsEntry, missing: Sequence[WeightsFile], folder: Path, cause: str) -> str:
    lines = [f"Weights {entry.name!r}: the cache lacks good copies of files, and they were not downloaded: {cause}."]
    lines += ["Save these files by other means:"]
    for file in missing:
        size = "" if file.size is None else f" ({file.size:,} bytes)"
        lines += [f"  {folder / file.name}{size}", f"    from   {file.url}", f"    sha256 {file.sha256}"]
    lines += [f"Or {_by_hand(entry)}"]
    return "\n".join(lines)


def _by_hand(entry: WeightsEntry) -> str:
    names = [file.name for file in entry.files] + (["args.json"] if entry.args else [])
    return f'pass a folder of your own with {", ".join(names)}: model="/path/to/folder" (source: {entry.homepage}).'
