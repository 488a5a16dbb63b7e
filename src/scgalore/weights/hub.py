"""Models on the Hugging Face Hub: download to the cache folder, verification, and upload."""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from scgalore import __version__
from scgalore import _logging as logg
from scgalore._files import file_digest
from scgalore._folders import writing
from scgalore._progress import is_shown
from scgalore._settings import settings
from scgalore.errors import DownloadError, OptionError, UploadError, WeightsError
from scgalore.weights.sums import SUMS, check_sums, format_sums, parse_sums

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from types import ModuleType

__all__ = ["HubAddress", "check_repo_id", "fetch_hub", "is_hub_address", "publish", "require_hub"]

SCHEME = "hf://"
OURS = (DownloadError, OptionError, UploadError, WeightsError)
FOREIGN = ("*.json", "*.safetensors", "*.pt", "*.pth")
"""Files of a repository without :data:`SUMS`, which was not published by scgalore."""

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SHA256, _COMMIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubAddress:
    """A model on the Hugging Face Hub.

    Attributes
    ----------
    repo_id
        ``"owner/name"``.
    revision
        Branch, tag or commit; ``None`` is the branch ``main``.
    """

    repo_id: str
    revision: str | None = None

    def __str__(self) -> str:
        return SCHEME + self.repo_id + ("" if self.revision is None else f"@{self.revision}")

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """Parse ``"hf://owner/name"`` or ``"hf://owner/name@revision"``.

        Raises
        ------
        OptionError
            If the text has neither form.
        """
        repo_id, at, revision = text.removeprefix(SCHEME).partition("@")
        if not is_hub_address(text) or not _REPO.fullmatch(repo_id) or (at and not re.fullmatch(r"[\w./-]+", revision)):
            msg = f"{text!r} is not the address of a model. Expected 'hf://owner/name' or 'hf://owner/name@revision'."
            raise OptionError(msg)
        return cls(repo_id, revision or None)


def is_hub_address(model: object) -> bool:
    """Whether a ``model`` argument is an address on the hub."""
    return isinstance(model, str) and model.startswith(SCHEME)


def check_repo_id(repo_id: str) -> None:
    """Raise :class:`~scgalore.errors.OptionError` if a text is not the name of a repository, ``"owner/name"``."""
    if not _REPO.fullmatch(repo_id):
        msg = f"repo_id={repo_id!r} is not the name of a repository. Expected 'owner/name', where owner is a user or an organization."
        raise OptionError(msg)


def require_hub() -> ModuleType:
    """Import huggingface_hub.

    Raises
    ------
    OptionError
        If it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        msg = f"Models on the Hugging Face Hub need the package huggingface_hub ({error}). Install it with: pip install 'scgalore[hub]'"
        raise OptionError(msg) from error
    return huggingface_hub


def fetch_hub(address: HubAddress) -> tuple[Path, HubAddress]:
    """Download a model if it is not in the cache, and verify it.

    Files are stored in ``sg.settings.cachedir / "hub"``, in the layout of the hub's own cache. Files are verified with
    the ``SHA256SUMS`` of the repository, and large files with the sha256 recorded by the hub.

    Parameters
    ----------
    address
        Repository and revision.

    Returns
    -------
    Folder for :func:`~scgalore.weights.read_checkpoint`, and the address with the commit as its revision.

    Raises
    ------
    DownloadError
        If the model is not in the cache and cannot be downloaded.
    WeightsError
        If a file is missing from the repository, or has another hash than the published one.
    """
    hub = require_hub()
    with _bars(), _errors(hub, DownloadError, f"{address} was not downloaded", address.repo_id):
        folder = _snapshot(hub, address, local=True) if settings.offline else _online(hub, address)
    return folder, HubAddress(address.repo_id, folder.name)


def _online(hub: ModuleType, address: HubAddress) -> Path:
    """Folder of the files of a model; from the cache if the revision is a commit, or without a network."""
    if _COMMIT.fullmatch(address.revision or ""):  # which never changes
        with suppress(hub.errors.EntryNotFoundError, DownloadError, WeightsError):
            return _snapshot(hub, address, local=True)
    api = hub.HfApi(library_name="scgalore", library_version=__version__)
    try:
        info = api.model_info(address.repo_id, revision=address.revision, timeout=settings.download_timeout)
    except _http_error(hub) as error:
        if isinstance(error, hub.errors.HfHubHTTPError):
            raise  # an answer of the hub
        # This fails at once, whereas the client would retry a download for half a minute.
        try:
            folder = _snapshot(hub, address, local=True)
        except hub.errors.EntryNotFoundError:
            raise error from None
        logg.warning(
            f"There is no connection to {hub.constants.ENDPOINT}: using {address} from the cache, commit {folder.name[:8]}."
        )
        return folder
    names = {sibling.rfilename for sibling in info.siblings or ()}
    return _snapshot(hub, address, local=False, names=names)


def _snapshot(hub: ModuleType, address: HubAddress, *, local: bool, names: Collection[str] = (SUMS,)) -> Path:
    """Folder of the verified files of a model; damaged files in the cache are downloaded again.

    Parameters
    ----------
    hub, address
        Client of the hub, and address of the model.
    local
        Whether to use only the cache.
    names
        Files of the repository.
    """
    where: dict[str, Any] = {
        "repo_id": address.repo_id,
        "revision": address.revision,
        "cache_dir": settings.cachedir / "hub",
        "local_files_only": local,
        "library_name": "scgalore",
        "library_version": __version__,
    }
    again = "Ask its owner to publish the model again, or name another revision."
    listed: dict[str, str] = {}
    if SUMS in names:
        try:
            path = hub.hf_hub_download(filename=SUMS, **where)
        except hub.errors.EntryNotFoundError:
            if not local:
                raise
        else:
            listed = parse_sums(Path(path).read_bytes(), where=f"{SUMS} of {address}")
            if absent := sorted(listed.keys() - names) if not local else []:
                msg = f"{address} lacks {absent[0]}, which its {SUMS} lists. {again}"
                raise WeightsError(msg)
    patterns = [*map(escape, listed), SUMS] if listed else list(FOREIGN)
    where |= {"allow_patterns": patterns, "ignore_patterns": None if listed else ["*/*"]}
    for _ in range(2):
        folder = Path(hub.snapshot_download(**where))
        damaged = [path for path in folder.iterdir() if _is_damaged(path)]
        if not damaged:
            check_sums(folder, listed, what=str(address), instead=again)
            return folder
        for path in damaged:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        if local:
            break
    msg = f"{address}: {damaged[0].name} was damaged in the cache and has been removed. Load the model again with a network connection."
    raise DownloadError(msg)


def _is_damaged(path: Path) -> bool:
    """Whether the sha256 of a large file differs from its name in the cache, which is the sha256 recorded by the hub."""
    known = path.resolve().name  # the file's own name on systems without symbolic links
    return _SHA256.fullmatch(known) is not None and file_digest(path) != known


def publish(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
) -> HubAddress:
    """Upload the files of a folder in one commit, with their hashes in ``SHA256SUMS``.

    Files of an earlier model in the repository that the new one does not have are deleted.

    Parameters
    ----------
    folder
        Folder whose files are uploaded.
    repo_id, private, token, revision, commit_message
        As for :meth:`scgalore.model.CellModel.push_to_hub`.

    Returns
    -------
    Address with the new commit as its revision.

    Raises
    ------
    UploadError
        If the hub refuses the upload or cannot be reached, or the repository is public and ``private=True``.
    """
    hub = require_hub()
    if settings.offline or hub.constants.HF_HUB_OFFLINE:
        msg = f"{repo_id} was not published: sg.settings.offline or HF_HUB_OFFLINE is on. Turn that off."
        raise UploadError(msg)
    paths = {path.name: path for path in sorted(folder.iterdir())}
    sums = format_sums({name: file_digest(path) for name, path in paths.items()}).encode()
    api = hub.HfApi(token=token, library_name="scgalore", library_version=__version__)
    with _bars(), _errors(hub, UploadError, f"{repo_id} was not published", repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            msg = f"private=True, and the repository {repo_id} exists and is public. Make it private first, or give another name."
            raise UploadError(msg)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        operations = [hub.CommitOperationAdd(name, str(path)) for name, path in paths.items()]
        operations.append(hub.CommitOperationAdd(SUMS, sums))
        there = api.list_repo_files(repo_id, revision=revision)
        former = _former(api, repo_id, revision) if SUMS in there else set()
        stale = former.intersection(there).difference(paths)
        operations += [hub.CommitOperationDelete(name) for name in sorted(stale)]
        message = commit_message or f"Publish a model with scgalore {__version__}"
        # Not upload_folder, which may make several commits of one folder.
        commit = api.create_commit(repo_id, operations, commit_message=message, revision=revision)
    address = HubAddress(repo_id, commit.oid)
    logg.info(f"published {address}")
    return address


def _former(api: Any, repo_id: str, revision: str | None) -> set[str]:
    """Names of the files of the current model in the repository."""
    with TemporaryDirectory() as folder:
        path = api.hf_hub_download(repo_id, SUMS, revision=revision, local_dir=folder)
        with suppress(WeightsError):  # unreadable files are replaced
            return set(parse_sums(Path(path).read_bytes(), where=path))
    return set()


@contextmanager
def _bars() -> Iterator[None]:
    """Show the progress bars of the hub's client only if those of scgalore are shown."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if is_shown() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _errors(hub: ModuleType, kind: type[DownloadError | UploadError], what: str, repo_id: str) -> Iterator[None]:
    """Convert errors of the hub's client to errors of scgalore."""
    try:
        with writing(settings.cachedir):
            yield
    except (_http_error(hub), OSError, ValueError, RuntimeError) as error:
        if isinstance(error, OURS):
            raise
        # Neither the text of the error nor its chain: addresses of the hub may be signed, and answers may repeat a request.
        msg = f"{what}: {_cause(hub, error, repo_id)}"
        raise kind(msg) from None


def _http_error(hub: ModuleType) -> type[Exception]:
    """Base class of the errors of the HTTP library that the client uses."""
    base: type[Exception] = hub.errors.HfHubHTTPError.__bases__[0]
    return base


def _cause(hub: ModuleType, error: BaseException, repo_id: str) -> str:
    errors, http_error = hub.errors, _http_error(hub)
    if settings.offline or isinstance(error, errors.OfflineModeIsEnabled):
        return (
            "sg.settings.offline or HF_HUB_OFFLINE is on, and the cache does not have the whole model. Turn that off, or bring the model "
            "with 'scgalore weights bundle' and 'unbundle'."
        )
    if not isinstance(error, http_error) and isinstance(error.__cause__, http_error):
        error = error.__cause__  # the wrapped error
    if isinstance(error, errors.GatedRepoError):
        return f"its owner grants access on request. Ask for it at {hub.constants.ENDPOINT}/{repo_id}, and log in: hf auth login."
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision. Name a branch, a tag or a commit of it."
    response = getattr(error, "response", None)
    status = None if response is None else response.status_code
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return (
            f"the hub has no repository {repo_id} that the token may use, or no token was sent (status {status}). Check the name; where the "
            "repository is private, or is to be written to, log in (hf auth login) or set HF_TOKEN."
        )
    if status is not None:
        return f"the hub answered with status {status}. Try again later."
    if isinstance(error, http_error):
        return f"there is no connection to {hub.constants.ENDPOINT}. Check the network, or the variable HF_ENDPOINT."
    return f"{type(error).__name__}: {error}"
