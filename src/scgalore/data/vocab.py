"""The tokens a model knows. How columns of a matrix find theirs is in :mod:`scgalore.data.match`.

Everything here takes time in proportion to the number of tokens, of which the released vocabularies hold 60,697.
"""

from __future__ import annotations

import json
import operator
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from scgalore._logging import info
from scgalore._words import few
from scgalore.errors import DataError, MissingKeyError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from scgalore._typing import PathLike

__all__ = ["SPECIALS", "GeneVocab"]

SPECIALS = ("<pad>", "<cls>", "<eoc>")
"""Tokens that are no genes, in the order in which they follow the genes."""


class GeneVocab:
    """Tokens and their ids, 0 to n - 1. Cannot be changed; equal to another with the same content.

    Made by :meth:`from_file`, :meth:`from_dict` or :meth:`from_genes`.
    """

    __slots__ = ("_added", "_ids", "_tokens")

    def __init__(self, tokens: Iterable[str], *, added: tuple[str, ...] = ()) -> None:
        self._tokens = tuple(tokens)
        self._ids = {token: i for i, token in enumerate(self._tokens)}
        self._added = added
        if len(self._ids) < len(self._tokens):
            twice = [token for token, count in Counter(self._tokens).items() if count > 1]
            msg = f"{len(twice):,} tokens occur more than once ({few(twice)}), expected each once."
            raise DataError(msg)

    @classmethod
    def from_file(cls, path: PathLike, specials: Sequence[str] = SPECIALS) -> Self:
        """Read a ``vocab.json``, an object of token and id in any order.

        Parameters
        ----------
        path
            The file.
        specials
            Special tokens the vocabulary must have; missing ones are appended and listed in :attr:`added`.
        """
        path = Path(path)
        try:
            mapping = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            msg = f"Cannot read the vocabulary {path}: {error.strerror}. A model folder holds it as 'vocab.json'."
            raise WeightsError(msg) from error
        except ValueError as error:
            # Upstream also reads pickles, which can run code.
            msg = f"{path} is not a JSON file ({error}). Expected an object of token and id; pickles are not read."
            raise WeightsError(msg) from error
        if not isinstance(mapping, dict):
            msg = f"{path} holds a JSON {type(mapping).__name__}, expected an object of token and id."
            raise WeightsError(msg)
        return cls.from_dict(mapping, specials)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, int], specials: Sequence[str] = SPECIALS) -> Self:
        """Take tokens and ids from a mapping, in any order.

        Parameters
        ----------
        mapping
            Id of each token. The ids must be 0 to n - 1, each once.
        specials
            Special tokens the vocabulary must have; missing ones are appended and listed in :attr:`added`.
        """
        tokens = _by_id(mapping)
        added = tuple(token for token in dict.fromkeys(specials) if token not in mapping)
        if added:
            info(f"the vocabulary has no {', '.join(added)}: appended from id {len(tokens):,} on")
        return cls((*tokens, *added), added=added)

    @classmethod
    def from_genes(cls, genes: Iterable[str], specials: Sequence[str] = SPECIALS) -> Self:
        """Number genes in the order given, with the special tokens after them.

        Parameters
        ----------
        genes
            Gene names, each once.
        specials
            Tokens to append.
        """
        tokens = list(genes)
        known = set(tokens)
        return cls((*tokens, *(token for token in dict.fromkeys(specials) if token not in known)))

    def __len__(self) -> int:
        return len(self._tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def __getitem__(self, token: str) -> int:
        try:
            return self._ids[token]
        except KeyError:
            msg = f"{token!r} is none of the {len(self):,} tokens. ids() gives -1 for such, match_genes() knows renamed genes."
            raise MissingKeyError(msg) from None

    def __eq__(self, other: object) -> bool:
        return self._tokens == other._tokens if isinstance(other, GeneVocab) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"GeneVocab({len(self):,} tokens: {few(self._tokens)})"

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens, by id."""
        return self._tokens

    @property
    def added(self) -> tuple[str, ...]:
        """Special tokens that the source lacked; no weights exist for them."""
        return self._added

    @property
    def pad_id(self) -> int:
        """Id of ``<pad>``."""
        return self["<pad>"]

    @property
    def cls_id(self) -> int:
        """Id of ``<cls>``."""
        return self["<cls>"]

    def ids(self, tokens: Iterable[str]) -> NDArray[np.int64]:
        """Ids of many tokens, -1 for those that are unknown.

        Parameters
        ----------
        tokens
            Names, compared as they are written.
        """
        get = self._ids.get
        return np.fromiter((get(token, -1) for token in tokens), dtype=np.int64)

    def gene_ids(self) -> NDArray[np.int64]:
        """Ids of all tokens that are not special, sorted."""
        return np.array([i for token, i in self._ids.items() if not token.startswith("<")], dtype=np.int64)

    def to_dict(self) -> dict[str, int]:
        """Id of each token, ordered by id."""
        return dict(self._ids)

    def save(self, path: PathLike) -> None:
        """Write the tokens as JSON, readable by :meth:`from_file` and by the original program.

        Parameters
        ----------
        path
            File to write. One that exists is replaced only once the new one is complete.
        """
        path = Path(path)
        # Beside the target, so that the move is one step on the same file system.
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            unfinished.write_text(json.dumps(self._ids, indent=2), encoding="utf-8")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def _by_id(mapping: Mapping[str, int]) -> list[str]:
    """Tokens in the order of their ids, once these have been checked."""
    expected = f"Expected {{token: id}} with the ids 0 to {len(mapping) - 1:,}, each once"
    if not mapping or not all(isinstance(token, str) for token in mapping):
        msg = f"The vocabulary is empty or has tokens that are no strings. {expected}."
        raise WeightsError(msg)
    try:
        ids = np.fromiter(map(operator.index, mapping.values()), dtype=np.int64, count=len(mapping))
    except (TypeError, OverflowError) as error:
        msg = f"The vocabulary has ids that are no whole numbers ({error}). {expected}."
        raise WeightsError(msg) from error
    order = np.argsort(ids)
    wrong = np.flatnonzero(ids[order] != np.arange(len(ids)))
    if wrong.size:
        at, found = int(wrong[0]), int(ids[order[wrong[0]]])
        what = (
            f"has no token with id {at:,}" if found > at else f"has the id {found:,} " + ("twice" if at else "below 0")
        )
        msg = f"The vocabulary of {len(mapping):,} tokens {what}. {expected}; is the file cut off or merged from two?"
        raise WeightsError(msg)
    tokens = list(mapping)
    return [tokens[i] for i in order]
