"""Random numbers that depend on the content of a cell and a gene, not on positions.

Every draw is a pure function of ``(seed, stream, content of the cell, token)``: it is independent of the order of
the cells, the batch, the number of workers and the process. The generator is SplitMix64 (Steele, Lea and
Flood, OOPSLA 2014): ``token`` indexes the sequence that starts at a state made from seed, stream and cell.
"""

from __future__ import annotations

import hashlib
from hashlib import blake2b
from string import hexdigits
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike, NDArray

__all__ = ["cell_keys", "digest", "fold_seed", "is_digest", "splitmix64", "uniforms"]

_STEP = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1

DIGITS = 16
"""Length of a :func:`digest`."""


def splitmix64(x: ArrayLike) -> NDArray[np.uint64]:
    """Mix 64-bit numbers with the SplitMix64 finaliser (a bijection).

    Parameters
    ----------
    x
        Integers of any shape; negative ones are read as their 64 bits.

    Returns
    -------
    uint64 array of the same shape.
    """
    z = np.asarray(x).astype(np.uint64)
    with np.errstate(over="ignore"):  # overflow is intended; 0-d arrays would warn
        z += np.uint64(_STEP)
        z ^= z >> np.uint64(30)
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        return z


def fold_seed(seed: int, *parts: int | str) -> int:
    """Derive a new seed from a seed and its use, such as an epoch or a name.

    Parameters
    ----------
    seed
        Any integer.
    parts
        Integers or names; their order matters.
    """
    state = int(splitmix64(np.uint64(seed & _MASK)))
    for part in parts:
        if isinstance(part, str):
            # Not hash(), which Python salts in every process.
            part = int.from_bytes(blake2b(part.encode(), digest_size=8).digest(), "little")
        state = int(splitmix64(np.uint64(state ^ (part & _MASK))))
    return state


def cell_keys(genes: NDArray[np.int64], values: ArrayLike, indptr: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Key of each cell, computed from its genes and their expression.

    The key is a sum over genes, so it does not depend on their order or on the position of the cell. Two cells with the
    same content have the same key, and thus the same random draws.

    Parameters
    ----------
    genes
        Token ids of the expressed genes of all cells, concatenated.
    values
        Their expression, hashed as float32.
    indptr
        Start of each cell; one longer than the number of cells.

    Returns
    -------
    uint64 array, one key per cell.
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    mixed = splitmix64((genes.astype(np.uint64) << np.uint64(32)) | bits)
    # Differences of a wrapping running sum are exact modulo 2**64 and, unlike reduceat, right for empty cells.
    total = np.zeros(len(mixed) + 1, dtype=np.uint64)
    np.cumsum(mixed, out=total[1:])
    return splitmix64(total[indptr[1:]] - total[indptr[:-1]])


def uniforms(seed: int, stream: int | str, cell_key: ArrayLike, token_id: ArrayLike) -> NDArray[np.float64]:
    """Uniform random numbers in [0, 1), one per pair of cell and token.

    Parameters
    ----------
    seed
        Any integer.
    stream
        Use of the numbers; different streams are independent.
    cell_key
        Result of :func:`cell_keys`, uint64 or the same bits as int64.
    token_id
        Token ids, broadcast against the keys.
    """
    start = splitmix64(np.array(cell_key).astype(np.uint64) ^ np.uint64(fold_seed(seed, stream)))
    with np.errstate(over="ignore"):
        state = start + np.array(token_id).astype(np.uint64) * np.uint64(_STEP)
    return (splitmix64(state) >> np.uint64(11)) * np.float64(2.0**-53)


def is_digest(value: object) -> bool:
    """Whether a value has the format of :func:`digest`."""
    return isinstance(value, str) and len(value) == DIGITS and set(value) <= set(hexdigits.lower())


def digest(arrays: Iterable[NDArray[np.generic]]) -> str:
    """Hash the bytes of arrays, 16 hexadecimal digits of SHA-256."""
    state = hashlib.sha256()
    for array in arrays:
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()[:DIGITS]
