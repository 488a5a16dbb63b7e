"""Matching of the columns of a matrix to tokens, in time linear in the number of names."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from scgalore._words import few
from scgalore.data.names import advice
from scgalore.errors import DataError
from scgalore.genes.identifiers import NameKind, ensembl_id, looks_like_mouse, mostly_mouse, ortholog, other_names

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from scgalore.data.vocab import GeneVocab

__all__ = ["GeneMatch", "advice_for", "match_genes", "tokens_of_each"]

# If two columns are the same gene, the one with the better kind of name gets the token.
_RANK = {kind: rank for rank, kind in enumerate(get_args(NameKind))}

# Suffix that var_names_make_unique adds to repeated names.
_NUMBERED = re.compile(r"(.+)-\d+")

_OTHER_SPECIES = re.compile(r"ENS[A-Z]+G\d")


@dataclass(frozen=True, eq=False)
class GeneMatch:
    """Token of each column of a matrix.

    Attributes
    ----------
    token_ids
        Token id of every column, int64, -1 for columns without a token.
    renamed
        Token of each matched column with another name.
    dropped
        Names that are not in the vocabulary.
    duplicates
        Names without token because another column is the same gene.
    numbered
        Names in ``dropped`` that are names of matched columns with a number, such as ``"TP53-1"``.
    species
        Species of the genes.
    without_ortholog
        Names in ``dropped`` of mouse genes without a human ortholog.
    """

    token_ids: NDArray[np.int64]
    renamed: dict[str, str]
    dropped: tuple[str, ...]
    duplicates: tuple[str, ...]
    numbered: tuple[str, ...] = ()
    species: str = "human"
    without_ortholog: tuple[str, ...] = ()

    @property
    def n_vars(self) -> int:
        """Number of columns."""
        return len(self.token_ids)

    @property
    def matched(self) -> int:
        """Number of columns with a token."""
        return int((self.token_ids >= 0).sum())

    def report(self) -> dict[str, Any]:
        """Numbers of matched and renamed columns, and dropped names, for ``uns``."""
        of_mouse = {
            "with_ortholog": self.n_vars - len(self.without_ortholog),
            "without_ortholog": len(self.without_ortholog),
        }
        return {
            "matched": self.matched,
            "n_vars": self.n_vars,
            "renamed": len(self.renamed),
            "dropped": list(self.dropped),
            "species": self.species,
            **(of_mouse if self.species == "mouse" else {}),
        }

    def summary(self) -> str:
        """Summary in one line."""
        if self.species == "mouse":
            ways = {"human ortholog": len(self.renamed)}
        else:
            by_id = sum(ensembl_id(name) is not None for name in self.renamed)
            ways = {"Ensembl id": by_id, "alias": len(self.renamed) - by_id}
        how = [f"{n:,} by {what}" for what, n in ways.items() if n]
        text = f"{self.matched:,} of {self.n_vars:,} genes matched" + (f" ({', '.join(how)})" if how else "")
        lacking = len(self.dropped) - len(self.without_ortholog)
        for n, what in (
            (len(self.without_ortholog), "without a human ortholog"),
            (lacking, "not in the vocabulary"),
            (len(self.duplicates), "omitted because another column is the same gene"),
        ):
            text += f", {n:,} {what}" if n else ""
        return text


def match_genes(
    names: Iterable[str],
    vocab: GeneVocab,
    *,
    species: str = "human",
    columns: Callable[[], dict[str | None, list[str]]] | None = None,
) -> GeneMatch:
    """Find the token of every gene.

    A name that is a token gets this token. Others are looked up by Ensembl id, then as a current, previous or alias
    symbol; mouse genes by the names of their human ortholog. Ambiguous names get no token, and no two columns get
    the same token. The result does not depend on the order of the columns.

    Parameters
    ----------
    names
        Gene names, usually ``adata.var_names``: symbols, Ensembl ids with or without version, or both.
    vocab
        The model's vocabulary.
    species
        Species of the genes: ``"human"`` or ``"mouse"``.
    columns
        Function that returns names in other columns (``scgalore.data.names.other_columns``), for advice.

    Returns
    -------
    Token ids, and renamed and dropped names.

    Raises
    ------
    DataError
        If no name matches, the names are of another species, or two columns of the same name would get the same
        token.
    """
    names = list(map(str, names))
    if not names:
        msg = "The data has no genes (0 variables)."
        raise DataError(msg)
    read = _Names(vocab, species, columns)
    exact = {name for name in names if read.is_gene(name)}
    unknown = set(names) - exact
    if unknown or species != "human":
        _refuse_species(names, exact, read)
    renamed, lost = _rename(unknown, exact, read)
    _refuse_repeated(names, exact | renamed.keys())
    token_of = {name: name for name in exact} | renamed
    if not token_of:
        raise DataError(_nothing_matched(names, read))
    ids = {name: vocab[token] for name, token in token_of.items()}
    dropped = tuple(name for name in names if name not in ids and name not in lost)
    return GeneMatch(
        token_ids=np.array([ids.get(name, -1) for name in names], dtype=np.int64),
        renamed={name: renamed[name] for name in names if name in renamed},
        dropped=dropped,
        duplicates=tuple(name for name in names if name in lost),
        numbered=tuple(name for name in dropped if (found := _NUMBERED.fullmatch(name)) and found[1] in ids),
        species=species,
        without_ortholog=tuple(name for name in dropped if ortholog(name) is None) if species == "mouse" else (),
    )


def tokens_of_each(names: Iterable[str], vocab: GeneVocab, *, species: str = "human") -> list[int]:
    """Token of each name, looked up separately: two names of one gene have the same token; -1 for names without token.

    Parameters
    ----------
    names, vocab, species
        As for :func:`match_genes`.
    """
    return _Names(vocab, species).tokens(names)


def advice_for(
    names: Sequence[str],
    vocab: GeneVocab,
    *,
    species: str = "human",
    columns: Callable[[], dict[str | None, list[str]]] | None = None,
) -> str:
    """Advice on how to match more of the names; ``""`` if there is no better way.

    Parameters
    ----------
    names, vocab, species, columns
        As for :func:`match_genes`.
    """
    return _Names(vocab, species, columns).advice(names)


@dataclass
class _Names:
    """Names of a species, looked up in a vocabulary."""

    vocab: GeneVocab
    species: str
    columns: Callable[[], dict[str | None, list[str]]] | None = None

    def is_gene(self, name: str) -> bool:
        return name in self.vocab and not (name.startswith("<") and name.endswith(">"))

    def tokens(self, names: Iterable[str]) -> list[int]:
        """Token of each name, looked up separately, -1 for names without token."""
        found = (name if self.is_gene(name) else self.other_token(name)[1] for name in names)
        return [-1 if token is None else self.vocab[token] for token in found]

    def other_token(self, name: str) -> tuple[NameKind, str | None]:
        """Token of a name by its other names: the first one that is an unambiguous token."""
        other = other_names(name, self.species)
        for step in other.steps:
            found = [gene if self.is_gene(gene) else self._endings.get(gene) for gene in step]
            tokens = [token for token in found if token is not None]
            if tokens:
                return other.kind, tokens[0] if len(tokens) == 1 else None
        return other.kind, None

    def advice(self, names: Sequence[str], fallback: str = "") -> str:
        """Advice on how to match more names."""

        def count(names: Sequence[str], species: str) -> int:
            return sum(token >= 0 for token in replace(self, species=species).tokens(names))

        return advice(names, self.species, count, self.columns, fallback)

    @cached_property
    def _endings(self) -> dict[str, str]:
        """Mapping from ``"_ENSG..."`` to the token with this ending, if unique."""
        tokens: dict[str, list[str]] = defaultdict(list)
        for token in self.vocab.tokens:
            gene_id = ensembl_id(token)
            if gene_id is not None and token.endswith(f"_{gene_id}"):
                tokens[f"_{gene_id}"].append(token)
        return {ending: found[0] for ending, found in tokens.items() if len(found) == 1}


def _rename(unknown: set[str], exact: set[str], read: _Names) -> tuple[dict[str, str], set[str]]:
    """Tokens for names that are not tokens, and names that lost their token to a column with a better name."""
    claims: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name in unknown:
        kind, token = read.other_token(name)
        if token is not None:
            claims[token].append((_RANK[kind], name))
    renamed = {min(claimants)[1]: token for token, claimants in claims.items() if token not in exact}
    lost = {name for claimants in claims.values() for _, name in claimants if name not in renamed}
    return renamed, lost


def _refuse_repeated(names: Sequence[str], wanted: Collection[str]) -> None:
    # Repeated names without token (Y_RNA) are dropped and do no harm.
    repeated = [name for name, count in Counter(names).items() if count > 1 and name in wanted]
    if repeated:
        msg = (
            f"{len(repeated):,} genes of the vocabulary occur in more than one column: {few(repeated)}. "
            "Sum such columns, or keep one: adata = adata[:, ~adata.var_names.duplicated()].copy(). "
            "adata.var_names_make_unique() does not help: it renames all but the first to names that are in no vocabulary "
            f"({repeated[0] + '-1'!r}), so their counts would be lost."
        )
        raise DataError(msg)


def _refuse_species(names: Sequence[str], exact: set[str], read: _Names) -> None:
    """Raise an error if most names are not those of the species, since the few matches would be by chance."""
    # A few symbols are identical in mouse and human (C3, F10), so mouse data would pass a check for any match.
    of_mouse = [name for name in names if looks_like_mouse(name)]
    if read.species == "mouse":
        strangers = [name for name in names if not looks_like_mouse(name) and ortholog(name) is None]
        if 2 * len(strangers) > len(names):
            msg = (
                f"species='mouse', and {len(strangers):,} of {len(names):,} gene names do not look like mouse genes "
                f"({few(strangers)}). {read.advice(names, 'Omit species= if they are human.')}"
            )
            raise DataError(msg)
    elif 2 * len(of_mouse) > len(names) and len(exact) <= 0.05 * len(names) and not mostly_mouse(read.vocab.tokens):
        hint = "For rat genes, use human orthologs as adata.var_names, or a model with a mouse vocabulary."
        msg = (
            f"{len(of_mouse):,} of {len(names):,} gene names look like mouse or rat genes ({few(of_mouse)}), but those of the "
            f"vocabulary do not ({few(read.vocab.tokens)}). Pass species='mouse' to map mouse genes to human orthologs; changing "
            f"the case would match other genes. {read.advice(names)} {hint}"
        )
        raise DataError(" ".join(msg.split()))


def _nothing_matched(names: Sequence[str], read: _Names) -> str:
    column = "if the gene names are in a column of adata.var, pass its name as gene_symbols="
    if all(name.isdecimal() for name in names):
        hint = f"The data's names are numbers; {column}."
    elif any(_OTHER_SPECIES.match(name) for name in names):
        hint = "The data has Ensembl ids of another species than human; replace them by the human orthologs."
    elif any(ensembl_id(name) for name in names):
        hint = f"Human Ensembl ids were translated, but none is a token; {column}, and check the model."
    else:
        hint = f"{column[0].upper()}{column[1:]}; expected human symbols or Ensembl ids, as in the vocabulary."
    return (
        f"None of the {len(names):,} gene names is in the vocabulary of {len(read.vocab):,} tokens. "
        f"The data has {few(names)}; the vocabulary has {few(read.vocab.tokens)}. {read.advice(names, hint)}"
    )
