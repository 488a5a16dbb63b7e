"""JSON files of unknown origin: read up to a maximum size and checked against the expected fields."""

from __future__ import annotations

import json
from reprlib import Repr
from typing import TYPE_CHECKING, Any

from scgalore._options import Kind
from scgalore.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["OBJECT", "STRING", "check_fields", "named", "nullable", "read_json"]

MAX_BYTES = 1 << 23
"""Maximum size of a file that describes a model; those we write are about a thousandth of it."""

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


def read_json(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read a file that contains one JSON object.

    Parameters
    ----------
    path
        File to read.
    max_bytes
        Maximum size; larger files are not read.

    Raises
    ------
    WeightsError
        If the file does not exist, is too large, is not JSON, contains a key twice or contains anything but an object.
    """
    try:
        if (size := path.stat().st_size) > max_bytes or not path.is_file():
            found = f"has {size:,} bytes" if path.is_file() else "is not a regular file"
            msg = f"{path} {found}; expected a JSON file of at most {max_bytes:,} bytes."
            raise WeightsError(msg)
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}. Download or save it again."
        raise WeightsError(msg) from error
    except RecursionError as error:
        msg = f"{path} is nested too deeply for a file that describes a model. Download or save it again."
        raise WeightsError(msg) from error
    except _TwiceError as error:
        msg = f"{path} contains {named(error.args[0])} twice; expected each name once. Download or save it again."
        raise WeightsError(msg) from error
    except WeightsError:
        raise
    except ValueError as error:
        msg = f"{path} is not valid JSON ({error}). Download or save it again."
        raise WeightsError(msg) from error
    if not isinstance(content, dict):
        msg = f"{path} contains a {type(content).__name__}; expected a JSON object."
        raise WeightsError(msg)
    return content


def check_fields(content: Any, kinds: Mapping[str, Kind], *, where: Any, missing: Iterable[str] = ()) -> None:
    """Check the fields of an object from a file against their declared types and ranges.

    Parameters
    ----------
    content
        The object; fields that are not declared are not checked.
    kinds
        Kind of each declared field.
    where
        File or part of it, for the message.
    missing
        Declared fields that are optional.

    Raises
    ------
    WeightsError
        If ``content`` is not an object, or a field is missing or of another kind.
    """
    if not hasattr(content, "keys"):
        msg = f"{where} is {named(content)}; expected an object with {', '.join(kinds)}."
        raise WeightsError(msg)
    if absent := [name for name in kinds if name not in content and name not in set(missing)]:
        msg = f"{where} lacks {', '.join(absent)}: {'; '.join(f'{name}, {kinds[name].expected}' for name in absent)}."
        raise WeightsError(msg)
    for name, kind in kinds.items():
        if name in content and not kind.fits(content[name]):
            msg = f"{where}: {name} is {named(content[name])}; {kind.expected}."
            raise WeightsError(msg)


def named(value: Any) -> str:
    """Short representation of a value from a file, for a message."""
    return _SHORT.repr(value).encode("utf-8", "backslashreplace").decode()


def nullable(kind: Kind) -> Kind:
    """Kind that also accepts null."""
    return Kind(f"{kind.expected}, or null", lambda value: value is None or kind.fits(value))


STRING = Kind("it must be a string", lambda value: isinstance(value, str))
OBJECT = Kind("it must be an object", lambda value: isinstance(value, dict))


class _TwiceError(ValueError):
    """A key of an object occurs twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _TwiceError(twice)
    return content
