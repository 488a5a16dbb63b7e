"""``SHA256SUMS``: the files of a folder with their hashes, in the format of the command ``sha256sum``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from scgalore._files import file_digest
from scgalore.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SUMS", "check_sums", "format_sums", "parse_sums"]

SUMS = "SHA256SUMS"
SUMS_BYTES = 1 << 20

_LINE = re.compile(r"([0-9a-f]{64}) [ *](\S.*)")


def format_sums(digests: Mapping[str, str]) -> str:
    """Content of the file for hashes by name."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def parse_sums(content: bytes, *, where: object) -> dict[str, str]:
    """Read hashes by name.

    Parameters
    ----------
    content
        Of the file.
    where
        The file, for messages.

    Raises
    ------
    WeightsError
        If the content has another format, or a name is outside of the folder.
    """
    found = {}
    for line in content[:SUMS_BYTES].decode("utf-8", "replace").splitlines():
        match = _LINE.fullmatch(line)
        path = None if match is None else Path(match[2])
        if match is None or path is None or path.is_absolute() or ".." in path.parts or match[2] in found:
            msg = f"{where} has the line {line[:80]!r}. Expected the sha256 and the name of a file of the folder, each file once."
            raise WeightsError(msg)
        found[match[2]] = match[1]
    if not found or len(content) > SUMS_BYTES:
        msg = f"{where} has {len(content):,} bytes. Expected a list of files with their sha256."
        raise WeightsError(msg)
    return found


def check_sums(folder: Path, digests: Mapping[str, str], *, what: str, instead: str) -> None:
    """Compare files with their hashes.

    Parameters
    ----------
    folder
        Folder of the files.
    digests
        Hashes by name.
    what
        Description of the folder, for messages.
    instead
        Advice, as a sentence.

    Raises
    ------
    WeightsError
        If a file is missing or has another hash.
    """
    for name, expected in digests.items():
        if not (folder / name).is_file():
            msg = f"{what} lacks {name}, which its {SUMS} lists. {instead}"
            raise WeightsError(msg)
        if (found := file_digest(folder / name)) != expected:
            msg = f"{what}: {name} has the sha256 {found}, and {SUMS} lists {expected}. {instead}"
            raise WeightsError(msg)
