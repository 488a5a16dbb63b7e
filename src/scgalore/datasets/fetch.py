"""Download and verify registered data sets, and read them into an AnnData."""

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
    """Return the h5ad file of a registered data set, downloading it if it is not cached.

    The hash of the download is verified; if one URL fails, the next is tried. From an archive, the h5ad
    file is extracted and the rest deleted. A valid file in the cache is used without network access.

    Parameters
    ----------
    name
        One of :func:`list_datasets`.
    progress
        Whether to show a progress bar; by default ``sg.settings.progress``.

    Returns
    -------
    Path of the original file in ``sg.settings.cachedir``.

    Raises
    ------
    OptionError
        If no data set has this name.
    DownloadError
        If the file is missing and cannot be downloaded; the message explains how to provide it manually.

    See Also
    --------
    scgalore.datasets.load_dataset : Read a data set by its name.
    scgalore.datasets.list_datasets : List the names of all data sets.

    Examples
    --------
    >>> import anndata, scgalore as sg
    >>> path = sg.datasets.fetch_dataset("perturbench_devel")  # doctest: +SKIP
    >>> adata = anndata.read_h5ad(path, backed="r")  # doctest: +SKIP
    """
    return fetch_entry(get_entry(name), progress=progress)


def load_dataset(name: str, *, canonical: bool = True, progress: bool | None = None) -> AnnData:
    """Read a registered data set into memory, downloading it if it is not cached.

    Parameters
    ----------
    name
        One of :func:`list_datasets`.
    canonical
        Whether to standardise labels and gene names; see :func:`to_canonical`.
    progress
        Whether to show a progress bar while downloading; by default ``sg.settings.progress``.

    Returns
    -------
    Cells by genes. ``uns["dataset"]`` contains name, licence, citation and hash.

    Raises
    ------
    OptionError
        If no data set has this name.
    DownloadError
        If the file is missing and cannot be downloaded.

    See Also
    --------
    scgalore.datasets.fetch_dataset : Download a data set and return its path.
    scgalore.datasets.list_datasets : List the names of all data sets.
    scgalore.datasets.to_canonical : Standardise your own file from one of the sources.

    Examples
    --------
    >>> import scgalore as sg
    >>> adata = sg.datasets.load_dataset("perturbench_devel")  # doctest: +SKIP
    """
    return load_entry(get_entry(name), canonical=canonical, progress=progress)


def load_entry(entry: DatasetEntry, *, canonical: bool = True, progress: bool | None = None) -> AnnData:
    """Like :func:`load_dataset`, for an entry that may be unregistered."""
    adata = ad.read_h5ad(fetch_entry(entry, progress=progress))
    if canonical:
        make_canonical(adata, source=entry.source, cell_type=entry.cell_type)
    adata.uns[UNS_KEY] = to_uns({**_record(entry), **(adata.uns[UNS_KEY] if canonical else {})})
    return adata


def fetch_entry(entry: DatasetEntry, *, progress: bool | None = None) -> Path:
    """Like :func:`fetch_dataset`, for an entry that may be unregistered."""
    by_hand = f"read your own copy and call sg.datasets.to_canonical(adata, source={entry.source!r})"
    if entry.refusal is not None:
        msg = (
            f"The data set {entry.name!r} cannot be downloaded: {entry.refusal}. You can {by_hand} (source: "
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
    """Path for the hash of an extracted file, if only the hash of the archive was published."""
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
                msg = f"{archive} contains {len(names)} files called {member.name}, among {packed.namelist()[:10]}."
                raise DownloadError(msg)
            # Only the content is extracted: paths in the archive do not determine where it is written.
            with whole_file(target) as draft:
                with packed.open(names[0]) as source, draft.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                if member.digest and file_digest(draft) != member.digest:
                    msg = f"{member.name} in {archive} does not have the sha256 in the registry."
                    raise DownloadError(msg)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        msg = f"{archive} could not be unpacked: {error}. Delete it to download it again."
        raise DownloadError(msg) from error
    if not member.digest:
        with whole_file(_stamp(target)) as draft:
            draft.write_text(file_digest(target) + "\n")
