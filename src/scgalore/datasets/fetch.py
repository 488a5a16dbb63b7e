"""From a name to a verified h5ad file, and to an AnnData."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import anndata as ad

from scgalore import _logging as logg
from scgalore._fetch import fetch_files
from scgalore._files import file_digest, whole_file
from scgalore._settings import settings
from scgalore._uns import to_uns
from scgalore.datasets.canonical import UNS_KEY, make_canonical
from scgalore.datasets.registry import DatasetEntry, get_entry
from scgalore.errors import DownloadError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from anndata import AnnData

    from scgalore._fetch import RemoteFile

__all__ = ["fetch_dataset", "load_dataset"]


def fetch_dataset(name: str, *, progress: bool | None = None) -> Path:
    """Give the h5ad file of a registered data set, downloading it if the cache lacks it.

    The download is held against its recorded hash, and the next address is tried if one fails. Of an archive, the h5ad
    file is unpacked and the rest deleted. A good file in the cache is used without touching the network.

    Parameters
    ----------
    name
        One of :func:`list_datasets`.
    progress
        Whether to show a progress bar; by default as ``sg.settings.progress`` says.

    Returns
    -------
    Path of the file as its authors made it, below ``sg.settings.cachedir``.

    Raises
    ------
    OptionError
        If no data set has this name.
    DownloadError
        If the file is missing and cannot be fetched; the message says how to provide it by hand.
    """
    return fetch_entry(get_entry(name), progress=progress)


def load_dataset(name: str, *, canonical: bool = True, progress: bool | None = None) -> AnnData:
    """Read a registered data set into memory, fetching it if the cache lacks it.

    Parameters
    ----------
    name
        One of :func:`list_datasets`.
    canonical
        Whether to bring labels and gene names into one form; see :func:`to_canonical`.
    progress
        Whether to show a progress bar while downloading; by default as ``sg.settings.progress`` says.

    Returns
    -------
    Cells by genes. ``uns["dataset"]`` holds name, licence, citation and hash.

    Raises
    ------
    OptionError
        If no data set has this name.
    DownloadError
        If the file is missing and cannot be fetched.

    Examples
    --------
    >>> import scgalore as sg
    >>> adata = sg.datasets.load_dataset("perturbench_devel")  # doctest: +SKIP
    """
    return load_entry(get_entry(name), canonical=canonical, progress=progress)


def load_entry(entry: DatasetEntry, *, canonical: bool = True, progress: bool | None = None) -> AnnData:
    """Like :func:`load_dataset`, for an entry that need not be registered."""
    adata = ad.read_h5ad(fetch_entry(entry, progress=progress))
    if canonical:
        make_canonical(adata, source=entry.source, cell_type=entry.cell_type)
    adata.uns[UNS_KEY] = to_uns({**_record(entry), **(adata.uns[UNS_KEY] if canonical else {})})
    return adata


def fetch_entry(entry: DatasetEntry, *, progress: bool | None = None) -> Path:
    """Like :func:`fetch_dataset`, for an entry that need not be registered."""
    by_hand = f"read a copy of your own and call sg.datasets.to_canonical(adata, source={entry.source!r})"
    if entry.refusal is not None:
        msg = (
            f"The data set {entry.name!r} cannot be fetched: {entry.refusal}. You can {by_hand} (source: "
            f"{' '.join(entry.file.urls) or entry.homepage})."
        )
        raise DownloadError(msg)
    folder = settings.cachedir / "datasets" / entry.name
    kept = folder / (entry.member or entry.file).name
    logg.info(
        f"data set {entry.name}\n    licence: {entry.licence}\n    please cite: {entry.citation}\n    file: {kept}"
    )
    if entry.member is None or not _is_unpacked(kept, entry.member):
        what = f"Data set {entry.name!r}"
        fetch_files([entry.file], folder, what=what, instead=f"{by_hand}.", progress=progress)
    if entry.member is not None and (archive := folder / entry.file.name).is_file():
        if not _is_unpacked(kept, entry.member):
            _unpack(archive, entry.member, kept)
        archive.unlink()
    return kept


def _record(entry: DatasetEntry) -> dict[str, Any]:
    file = entry.file
    return {
        "name": entry.name,
        "description": entry.description,
        "licence": entry.licence,
        "citation": entry.citation,
        "homepage": entry.homepage,
        "file": file.name,
        file.algorithm: file.digest,
    }


def _stamp(path: Path) -> Path:
    """Where the hash of an unpacked file is kept whose own hash nobody has published, only the archive's."""
    return path.with_name(f"{path.name}.sha256")


def _is_unpacked(path: Path, member: RemoteFile) -> bool:
    if member.digest:
        return member.is_good(path)
    stamp = _stamp(path)
    return path.is_file() and stamp.is_file() and stamp.read_text().strip() == file_digest(path)


def _unpack(archive: Path, member: RemoteFile, target: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as packed:
            names = [name for name in packed.namelist() if PurePosixPath(name).name == member.name]
            if len(names) != 1:
                msg = f"{archive} holds {len(names)} files called {member.name}, among {packed.namelist()[:10]}."
                raise DownloadError(msg)
            # Only the content leaves the archive: no path in it decides where anything is written.
            with whole_file(target) as draft:
                with packed.open(names[0]) as source, draft.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                if member.digest and file_digest(draft) != member.digest:
                    msg = f"{member.name} in {archive} is not the file that the registry's sha256 asks for."
                    raise DownloadError(msg)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        msg = f"{archive} could not be unpacked: {error}. Delete it to have it fetched again."
        raise DownloadError(msg) from error
    if not member.digest:
        with whole_file(_stamp(target)) as draft:
            draft.write_text(file_digest(target) + "\n")
