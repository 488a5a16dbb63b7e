"""Registry of weights: those of the package (``registry.toml``), and those registered by users."""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from scgalore._fetch import RemoteFile, refusal_of
from scgalore._files import whole_file
from scgalore._json import OBJECT, STRING, check_fields, nullable
from scgalore._options import INDEX, Kind
from scgalore._settings import settings
from scgalore.errors import OptionError, WeightsError

__all__ = ["WeightsEntry", "WeightsFile", "get_entry", "list_weights", "own_entry", "register"]

NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
TAKEN = ("datasets", "hub", "registry")  # folders in the cache that are not weights
SHA256 = Kind(
    "it must be 64 hexadecimal digits",
    lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value)),
)

FILE = {"name": STRING, "sha256": SHA256, "url": STRING, "size": nullable(INDEX)}
FILES = Kind(
    "it must be a list of files, each with name and sha256", lambda value: isinstance(value, list) and bool(value)
)
TEXTS = ("description", "licence", "citation", "homepage", "family", "url")
TABLE = {"files": FILES, **dict.fromkeys(TEXTS, STRING), "revision": nullable(STRING), "args": OBJECT}
"""Fields of weights in a user's registry; all but the first are optional."""


@dataclass(frozen=True)
class WeightsFile:
    """One file of a :class:`WeightsEntry`.

    Attributes
    ----------
    name
        File name inside the entry's folder.
    url
        Address at a fixed revision; empty if the file is part of the package or has no direct address.
    size
        Size in bytes, if known.
    sha256
        Expected sha256 of the content; empty if it is not published.

    See Also
    --------
    scgalore.weights.WeightsEntry : Registered weights.

    Examples
    --------
    >>> import scgalore as sg
    >>> [file.name for file in sg.weights.get_entry("scgpt-mini").files]
    ['config.json', 'vocab.json', 'model.safetensors']
    """

    name: str
    url: str = ""
    size: int | None = None
    sha256: str = ""

    @property
    def remote(self) -> RemoteFile:
        """Description of the file for a download."""
        return RemoteFile(self.name, (self.url,) if self.url else (), self.size, self.sha256)


@dataclass(frozen=True)
class WeightsEntry:
    """Registered weights.

    Attributes
    ----------
    name
        Name that is passed as ``model``, such as ``"scgpt"``.
    description
        One line about the cells and the size.
    files
        Files that :func:`~scgalore.weights.read_checkpoint` needs, small files first.
    licence, citation, homepage
        Those of the weights, which may differ from those of scgalore's code.
    revision
        Version of the source that addresses and hashes refer to.
    bundled
        Whether the files are shipped inside the package.
    args
        Hyperparameters, if the source has no ``args.json``.
    zero_shot
        One sentence on the measured quality of embeddings without fine-tuning, logged by :func:`scgalore.tl.embed`;
        empty if not measured.
    in_silico
        One sentence on the measured quality of in-silico perturbations, logged by
        :func:`scgalore.tl.perturb_in_silico`.
    family
        Entry of :data:`scgalore.model.FAMILIES` that reads them.

    See Also
    --------
    scgalore.weights.get_entry : Look up registered weights.

    Examples
    --------
    >>> import scgalore as sg
    >>> entry = sg.weights.get_entry("scgpt-mini")
    >>> entry.bundled
    True
    """

    name: str
    description: str
    files: tuple[WeightsFile, ...]
    licence: str
    citation: str
    homepage: str
    revision: str | None = None
    bundled: bool = False
    args: Mapping[str, Any] | None = None
    zero_shot: str = ""
    in_silico: str = ""
    family: str = "scgpt"

    @property
    def refusal(self) -> str | None:
        """Reason why these weights cannot be downloaded; ``None`` if they can."""
        if self.bundled:
            complete = all(file.sha256 for file in self.files)
            return None if complete else "they are not built yet in this version of scgalore"
        return refusal_of([file.remote for file in self.files])


def list_weights() -> list[str]:
    """Names of all registered weights, including those that cannot be downloaded (:attr:`WeightsEntry.refusal`).

    See Also
    --------
    scgalore.weights.get_entry : Look up registered weights.
    scgalore.weights.fetch_weights : Download registered weights.

    Examples
    --------
    >>> import scgalore as sg
    >>> "scgpt-mini" in sg.weights.list_weights()
    True
    """
    return list(_registry())


def get_entry(name: str) -> WeightsEntry:
    """Look up registered weights.

    Parameters
    ----------
    name
        One of :func:`list_weights`.

    Raises
    ------
    OptionError
        If no weights have this name.

    See Also
    --------
    scgalore.weights.list_weights : List the names of all weights.
    scgalore.weights.fetch_weights : Download registered weights.

    Examples
    --------
    >>> import scgalore as sg
    >>> sg.weights.get_entry("scgpt-mini").family
    'scgpt'
    """
    registry = _registry()
    if name not in registry:
        msg = f"No weights are registered as {name!r}. {suggestion(name)}"
        raise OptionError(msg)
    return registry[name]


def register(
    name: str,
    url: str,
    sha256: str | Mapping[str, str] | None = None,
    *,
    family: str = "scgpt",
    licence: str = "",
    description: str = "",
    citation: str = "",
    homepage: str = "",
    save: bool = False,
) -> WeightsEntry:
    """Register weights on your own server under a name, or a mirror for weights of the package.

    The files are downloaded to the cache folder when first used, and their hashes are verified.

    Parameters
    ----------
    name
        Name to pass as ``model``. For a name of the package, only the address of its files is changed.
    url
        Address of the files, with ``{file}`` as placeholder for their names:
        ``"https://models.example.org/blood/{file}"``. Without a placeholder, the address of a single file. User name and
        password are read from ``~/.netrc``.
    sha256
        Hash of each file by name, or of the single file. ``None`` for weights of the package, whose hashes are known.
    family
        Entry of :data:`scgalore.model.FAMILIES`.
    licence, description, citation, homepage
        Information on the weights, for ``scgalore weights list`` and the cards of models trained from them.
    save
        Whether to store the name in ``sg.settings.cachedir`` for later processes; otherwise, it is only registered in
        this process.

    Returns
    -------
    The new entry.

    Raises
    ------
    OptionError
        If the name, the address or a hash is invalid.

    See Also
    --------
    scgalore.weights.fetch_weights : Download registered weights.
    scgalore.weights.bundle : Pack weights for a machine without a network.

    Examples
    --------
    >>> import scgalore as sg
    >>> sums = {"config.json": "0" * 64, "vocab.json": "1" * 64, "model.safetensors": "2" * 64}
    >>> entry = sg.weights.register("blood", "https://models.example.org/blood/{file}", sums, licence="CC-BY-4.0")
    >>> "blood" in sg.weights.list_weights()
    True
    """
    known = _packaged().get(name)
    if sha256 is None:
        if known is None or not all(file.sha256 for file in known.files):
            msg = f"sha256= is missing for {name!r}, whose hashes the package does not know. Pass the hash of each file by its name."
            raise OptionError(msg)
        sha256 = {file.name: file.sha256 for file in known.files}
    if isinstance(sha256, str):
        sha256 = {unquote(urlsplit(url).path).rpartition("/")[2]: sha256}
    if len(sha256) > 1 and "{file}" not in url:
        msg = f"url={url!r} is one address, and there are {len(sha256)} files. Write {{file}} in place of their names."
        raise OptionError(msg)
    texts = {
        "family": family,
        "licence": licence,
        "description": description,
        "citation": citation,
        "homepage": homepage,
    }
    files = [{"name": file, "sha256": digest} for file, digest in sha256.items()]
    entry = own_entry(name, {**texts, "url": url, "files": files}, where="sg.weights.register")
    if save:
        with whole_file(settings.cachedir / "registry" / f"{name}.toml") as draft:
            draft.write_text(toml_of(entry), encoding="utf-8")
    _REGISTERED[name] = entry
    return entry


_REGISTERED: dict[str, WeightsEntry] = {}


def own_entry(name: str, table: Mapping[str, Any], *, where: object) -> WeightsEntry:
    """Check a table of a user's registry and make an entry of it.

    Parameters
    ----------
    name
        Name of the weights.
    table
        Fields as in ``registry.toml``.
    where
        Source of the table, for messages.

    Raises
    ------
    OptionError
        If a field is missing or invalid, or the package has other weights of this name.
    """
    where = f"{where}, weights {name!r}"
    if not NAME.fullmatch(name) or name in TAKEN:
        msg = f"{where}: a name has letters, digits, '.', '_' and '-', and is none of {', '.join(TAKEN)}."
        raise OptionError(msg)
    try:
        check_fields(table, TABLE, where=where, missing=list(TABLE)[1:])
        for file in table["files"]:
            check_fields(file, FILE, where=f"{where}, files", missing=["url", "size"])
        if unknown := sorted({*table}.difference(TABLE)):
            msg = f"{where}: {unknown[0]!r} is unknown. Expected {', '.join(TABLE)}."
            raise OptionError(msg)
    except WeightsError as error:
        raise OptionError(str(error)) from error
    url = table.get("url", "").replace("{revision}", table.get("revision") or "")
    files = tuple(WeightsFile(**{"url": url.replace("{file}", file["name"]), **file}) for file in table["files"])
    for file in files:
        _check_file(file, where)
    texts = {text: table.get(text, "") for text in TEXTS if text not in ("url", "family")}
    known = _packaged().get(name)
    if known is None:
        return WeightsEntry(
            name,
            files=files,
            family=table.get("family", "scgpt"),
            revision=table.get("revision"),
            args=table.get("args"),
            **texts,
        )
    return _mirror(known, files, where)


def _mirror(known: WeightsEntry, files: tuple[WeightsFile, ...], where: str) -> WeightsEntry:
    """Entry for weights of the package at another address."""
    own = {file.name: file for file in files}
    same = own.keys() == {file.name for file in known.files} and not known.bundled
    if not same or any(file.sha256 not in ("", own[file.name].sha256) for file in known.files):
        msg = f"{where}: the package has other weights of this name, with the files {', '.join(file.name for file in known.files)}. Choose another name."
        raise OptionError(msg)
    return replace(
        known, files=tuple(replace(file, url=own[file.name].url, sha256=own[file.name].sha256) for file in known.files)
    )


def _check_file(file: WeightsFile, where: str) -> None:
    address = urlsplit(file.url)
    if Path(file.name).name != file.name or file.name.startswith("."):
        msg = f"{where}: {file.name!r} is not a plain file name."
        raise OptionError(msg)
    if address.scheme not in ("http", "https") or not address.hostname:
        msg = f"{where}: the address of {file.name} is {file.url!r}. Expected one that begins with https:// or http://."
        raise OptionError(msg)
    if address.username is not None or address.password is not None:
        msg = f"{where}: the address of {file.name} holds a user name or a password. Write them into ~/.netrc, and leave them out here."
        raise OptionError(msg)


def toml_of(entry: WeightsEntry) -> str:
    """Text of an entry as a file of a user's registry."""
    fields = {name: getattr(entry, name) for name in ("description", "licence", "citation", "homepage", "family")}
    lines = [f"[weights.{json.dumps(entry.name)}]"]
    lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items() if value]
    if entry.args:
        lines += ["", f"[weights.{json.dumps(entry.name)}.args]"]
        lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in entry.args.items()]
    for file in entry.files:
        lines += ["", f"[[weights.{json.dumps(entry.name)}.files]]"]
        own = {"name": file.name, "url": file.url, "sha256": file.sha256, "size": file.size}
        lines += [
            f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in own.items() if value is not None
        ]
    return "\n".join(lines) + "\n"


def is_packaged(name: str) -> bool:
    """Whether the package has weights of this name."""
    return name in _packaged()


def suggestion(name: str) -> str:
    """Sentences that list the registered names, the one closest to ``name`` first."""
    close = get_close_matches(name.lower(), list_weights(), n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Registered are: {', '.join(list_weights())}."


def _registry() -> dict[str, WeightsEntry]:
    """All entries: of the package, of files of the user, and of this process; later ones take precedence."""
    found = dict(_packaged())
    files = sorted((settings.cachedir / "registry").glob("*.toml"))
    for path in [*files, *([] if settings.registry is None else [settings.registry])]:
        try:
            state = path.stat()
        except OSError as error:
            msg = f"The registry of weights {path} cannot be read: {error.strerror}. Correct sg.settings.registry (SCGALORE_REGISTRY)."
            raise OptionError(msg) from error
        found |= _of_file(path, state.st_mtime_ns, state.st_size)
    return found | _REGISTERED


@lru_cache(maxsize=64)
def _of_file(path: Path, *_state: int) -> dict[str, WeightsEntry]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        msg = f"The registry of weights {path} cannot be read: {error}. Correct or remove it."
        raise OptionError(msg) from error
    tables = content.get("weights")
    if not isinstance(tables, dict):
        msg = f"The registry of weights {path} has no tables [weights.NAME]. Correct or remove it."
        raise OptionError(msg)
    return {name: own_entry(name, table, where=path) for name, table in tables.items()}


@cache
def _packaged() -> dict[str, WeightsEntry]:
    content = tomllib.loads(Path(__file__).with_name("registry.toml").read_text(encoding="utf-8"))
    return {name: _entry(name, content["origins"], **table) for name, table in content["weights"].items()}


def _entry(
    name: str,
    origins: Mapping[str, Mapping[str, str]],
    *,
    origin: str,
    files: list[dict[str, Any]],
    url: str = "",
    **fields: Any,
) -> WeightsEntry:
    return WeightsEntry(
        name=name,
        files=tuple(
            WeightsFile(**{"url": url.format(revision=fields.get("revision"), file=file["name"]), **file})
            for file in files
        ),
        **{**origins[origin], **fields},
    )
