"""Weights in one file, for machines without a network."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from scgalore import _logging as logg
from scgalore._files import file_digest, whole_file
from scgalore._folders import writing
from scgalore._settings import settings
from scgalore.errors import OptionError, WeightsError
from scgalore.weights.fetch import resolve_model_folder
from scgalore.weights.hub import HubAddress, is_hub_address
from scgalore.weights.registry import get_entry, is_packaged, list_weights, toml_of
from scgalore.weights.sums import SUMS, SUMS_BYTES, check_sums, format_sums, parse_sums

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgalore._typing import PathLike

__all__ = ["bundle", "unbundle"]


def bundle(models: Sequence[str], path: PathLike) -> Path:
    """Pack weights into one file; missing files are downloaded and verified.

    The file is a tar archive of folders of the cache, with the hashes of all files in ``SHA256SUMS``. Names registered by
    :func:`register` are also available on the other machine.

    Parameters
    ----------
    models
        Names from :func:`list_weights`, or addresses on the Hugging Face Hub.
    path
        File to create; an existing file is replaced.

    Returns
    -------
    The path.

    Raises
    ------
    OptionError
        If a name is unknown, or its weights are part of the package.
    DownloadError, WeightsError
        If weights cannot be downloaded, or have the wrong hash. No file is created then.

    See Also
    --------
    scgalore.weights.unbundle : Unpack weights from such a file.
    scgalore.weights.register : Register weights on your own server.

    Examples
    --------
    >>> import scgalore as sg
    >>> sg.weights.bundle(["scgpt"], "weights.tar")  # doctest: +SKIP
    """
    content: dict[str, Path | bytes] = {}
    for model in models:
        if is_hub_address(model):
            content |= _of_hub(HubAddress.parse(model))
            continue
        entry = get_entry(model)
        if entry.bundled:
            msg = f"The weights {model!r} are part of the package, and need not be bundled. Leave the name out."
            raise OptionError(msg)
        folder, _ = resolve_model_folder(model)
        content |= {f"{model}/{file.name}": folder / file.name for file in entry.files}
        if not is_packaged(model):
            content[f"registry/{model}.toml"] = toml_of(entry).encode()
    digests = {name: _digest(one) for name, one in content.items()}
    target = Path(path).expanduser().absolute()
    with whole_file(target) as draft, tarfile.open(draft, "w") as archive:
        for name, one in {SUMS: format_sums(digests).encode(), **content}.items():
            _add(archive, name, one)
    logg.info(f"bundled {', '.join(models)} in {target}")
    return target


def _of_hub(address: HubAddress) -> dict[str, Path | bytes]:
    """Folders of the hub's cache that contain a model, with files instead of links."""
    folder, entry = resolve_model_folder(str(address))
    assert entry is not None
    commit, repo = folder.name, folder.parent.parent
    files = [path for path in folder.iterdir() if path.is_file()]
    files += [path for path in (repo / "trees").glob(f"{commit}*") if path.is_file()]
    files += [path for path in (repo / "refs").rglob("*") if path.is_file() and path.read_text() == commit]
    return {path.relative_to(settings.cachedir).as_posix(): path for path in files}


def _digest(one: Path | bytes) -> str:
    return hashlib.sha256(one).hexdigest() if isinstance(one, bytes) else file_digest(one)


def _add(archive: tarfile.TarFile, name: str, one: Path | bytes) -> None:
    member = tarfile.TarInfo(name)  # without owner and time of the file, so that equal weights give equal bytes
    member.mode = 0o644
    if isinstance(one, bytes):
        member.size = len(one)
        archive.addfile(member, io.BytesIO(one))
    else:
        member.size = one.stat().st_size
        with one.open("rb") as file:
            archive.addfile(member, file)


def unbundle(path: PathLike) -> list[str]:
    """Unpack a file created by :func:`bundle` into the cache folder, and verify it.

    Parameters
    ----------
    path
        File to unpack.

    Returns
    -------
    Names and addresses that can now be passed as ``model``.

    Raises
    ------
    OptionError
        If the file does not exist.
    WeightsError
        If the file is not a bundle, or is damaged. Nothing is unpacked then.

    See Also
    --------
    scgalore.weights.bundle : Pack weights for a machine without a network.

    Examples
    --------
    >>> import scgalore as sg
    >>> sg.weights.unbundle("weights.tar")  # doctest: +SKIP
    ['scgpt']
    """
    source = Path(path).expanduser()
    if not source.is_file():
        msg = f"{source} is not a file. Expected one that 'scgalore weights bundle' made."
        raise OptionError(msg)
    draft = settings.cachedir / f".{uuid4().hex[:8]}.draft"
    again = "Copy the file again, or make it again."
    with writing(settings.cachedir):
        try:
            digests = _unpack(source, draft)
            check_sums(draft, digests, what=str(source), instead=again)
            for name in digests:
                (settings.cachedir / name).parent.mkdir(parents=True, exist_ok=True)
                (draft / name).replace(settings.cachedir / name)
        except (tarfile.TarError, EOFError) as error:
            msg = f"{source} is not a bundle of weights, or is damaged ({error}). {again}"
            raise WeightsError(msg) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return _models(digests)


def _unpack(source: Path, draft: Path) -> dict[str, str]:
    """Write the files to a folder, and return their hashes by name."""
    with tarfile.open(source, "r:") as archive:
        first = archive.next()
        content = None if first is None or first.name != SUMS or first.size > SUMS_BYTES else archive.extractfile(first)
        if content is None:
            msg = f"{source} is not a bundle of weights: it does not begin with {SUMS}."
            raise WeightsError(msg)
        digests = parse_sums(content.read(), where=f"{SUMS} of {source}")
        for member in archive:
            if member.name == SUMS:
                continue
            if member.name not in digests or not member.isreg():
                msg = f"{source} holds {member.name!r}, which its {SUMS} does not list. It was not made by scgalore."
                raise WeightsError(msg)
            (draft / member.name).parent.mkdir(parents=True, exist_ok=True)
            with (draft / member.name).open("wb") as target:
                shutil.copyfileobj(archive.extractfile(member), target)  # type: ignore[arg-type]
    return digests


def _models(digests: dict[str, str]) -> list[str]:
    found: dict[str, None] = {}
    for name in digests:
        parts = Path(name).parts
        if parts[0] == "hub" and len(parts) == 5 and parts[2] == "snapshots":
            owner, repo = parts[1].removeprefix("models--").split("--", 1)
            found[str(HubAddress(f"{owner}/{repo}", parts[3]))] = None
        elif parts[0] in list_weights():
            found[parts[0]] = None
    return list(found)
