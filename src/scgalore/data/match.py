"""Which column of a matrix is which token.

Everything here takes time in proportion to the number of names.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from scgalore._words import few
from scgalore.errors import DataError
from scgalore.genes.identifiers import NameKind, ensembl_id, looks_like_mouse, other_names

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from scgalore.data.vocab import GeneVocab

__all__ = ["GeneMatch", "match_genes"]

# Of two columns that are the same gene, the one with the better kind of name keeps the token.
_RANK = {kind: rank for rank, kind in enumerate(get_args(NameKind))}

_OTHER_SPECIES = re.compile(r"ENS[A-Z]+G\d")


@dataclass(frozen=True, eq=False)
class GeneMatch:
    """Which token each column of a matrix is.

    Attributes
    ----------
    token_ids
        Token id of every column, int64, -1 for a column without one.
    renamed
        Token of each matched column whose name is written differently.
    dropped
        Names that the vocabulary does not hold.
    duplicates
        Names left out because a column with a better name has their token.
    """

    token_ids: NDArray[np.int64]
    renamed: dict[str, str]
    dropped: tuple[str, ...]
    duplicates: tuple[str, ...]

    @property
    def n_vars(self) -> int:
        """Number of columns."""
        return len(self.token_ids)

    @property
    def matched(self) -> int:
        """Number of columns with a token."""
        return int((self.token_ids >= 0).sum())

    def report(self) -> dict[str, Any]:
        """Numbers of matched and renamed columns and the names that were dropped, for ``uns``."""
        return {
            "matched": self.matched,
            "n_vars": self.n_vars,
            "renamed": len(self.renamed),
            "dropped": list(self.dropped),
        }

    def summary(self) -> str:
        """One line for the user."""
        by_id = sum(ensembl_id(name) is not None for name in self.renamed)
        by_alias = len(self.renamed) - by_id
        how = [f"{n:,} by {what}" for n, what in ((by_id, "Ensembl id"), (by_alias, "alias")) if n]
        text = f"{self.matched:,} of {self.n_vars:,} genes matched" + (f" ({', '.join(how)})" if how else "")
        if self.dropped:
            text += f", {len(self.dropped):,} not in the vocabulary"
        if self.duplicates:
            text += f", {len(self.duplicates):,} left out because another column is the same gene"
        return text


def match_genes(names: Iterable[str], vocab: GeneVocab) -> GeneMatch:
    """Find the token of every gene.

    A name that is a token itself keeps it. Others are looked up by Ensembl id, then as a current, previous or alias
    symbol; what is ambiguous gets no token, and no two columns get the same. The result does not depend on the
    order of the columns.

    Parameters
    ----------
    names
        Gene names, usually ``adata.var_names``: symbols, Ensembl ids with or without version, or both.
    vocab
        The model's vocabulary.

    Returns
    -------
    Token ids, and what was renamed or left out.

    Raises
    ------
    DataError
        If no name matches, if the names are a mouse's and the vocabulary's are not, or if two columns of the same name
        would be the same token.
    """
    names = list(map(str, names))
    if not names:
        msg = "The data has no genes (0 variables)."
        raise DataError(msg)
    genes = {token: i for token, i in vocab.to_dict().items() if not (token.startswith("<") and token.endswith(">"))}
    exact = genes.keys() & set(names)
    unknown = set(names) - exact
    if unknown:
        _refuse_mouse(names, exact, genes)
    renamed, lost = _rename(unknown, exact, genes)
    _refuse_repeated(names, exact | renamed.keys())
    token_of = {name: name for name in exact} | renamed
    if not token_of:
        raise DataError(_nothing_matched(names, genes))
    ids = {name: genes[token] for name, token in token_of.items()}
    return GeneMatch(
        token_ids=np.array([ids.get(name, -1) for name in names], dtype=np.int64),
        renamed={name: renamed[name] for name in names if name in renamed},
        dropped=tuple(name for name in names if name not in ids and name not in lost),
        duplicates=tuple(name for name in names if name in lost),
    )


def _rename(unknown: set[str], exact: set[str], genes: Collection[str]) -> tuple[dict[str, str], set[str]]:
    """Tokens for names that are none, and the names that lost theirs to a column with a better name."""
    ending = _by_ending(genes)
    claims: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name in unknown:
        other = other_names(name)
        for step in other.steps:
            found = [gene if gene in genes else ending[gene] for gene in step if gene in genes or gene in ending]
            if len(found) == 1:
                claims[found[0]].append((_RANK[other.kind], name))
            if found:
                break
    renamed = {min(claimants)[1]: token for token, claimants in claims.items() if token not in exact}
    lost = {name for claimants in claims.values() for _, name in claimants if name not in renamed}
    return renamed, lost


def _by_ending(genes: Collection[str]) -> dict[str, str]:
    """``"_ENSG..."`` -> the token that ends so, where it is one."""
    tokens: dict[str, list[str]] = defaultdict(list)
    for token in genes:
        gene_id = ensembl_id(token)
        if gene_id is not None and token.endswith(f"_{gene_id}"):
            tokens[f"_{gene_id}"].append(token)
    return {ending: found[0] for ending, found in tokens.items() if len(found) == 1}


def _refuse_repeated(names: Sequence[str], wanted: Collection[str]) -> None:
    # Repeated names that no vocabulary entry answers to (Y_RNA) are dropped with the rest and do no harm.
    repeated = [name for name, count in Counter(names).items() if count > 1 and name in wanted]
    if repeated:
        msg = (
            f"{len(repeated):,} genes of the vocabulary occur in more than one column: {few(repeated)}. "
            "Sum such columns, or keep one: adata = adata[:, ~adata.var_names.duplicated()].copy(). "
            "adata.var_names_make_unique() is no way out: it turns all but the first into names that no vocabulary "
            f"holds ({repeated[0] + '-1'!r}), and their counts would be lost."
        )
        raise DataError(msg)


def _refuse_mouse(names: Sequence[str], exact: set[str], genes: Collection[str]) -> None:
    # A few symbols are the same in mouse and human (C3, F10), so "nothing matched" alone would let mouse data through.
    if len(exact) > 0.05 * len(names) or _mouse_share(names) <= 0.5 or _mouse_share(genes) > 0.5:
        return
    mouse = [name for name in names if looks_like_mouse(name)]
    msg = (
        f"{len(mouse):,} of {len(names):,} gene names look like mouse or rat genes ({few(mouse)}), but those of the "
        f"vocabulary do not ({few(genes)}). Names are not matched by changing their case, since the genes differ: replace "
        "them by their human orthologs in adata.var_names, or use a model with a mouse vocabulary."
    )
    raise DataError(msg)


def _mouse_share(names: Collection[str]) -> float:
    return sum(map(looks_like_mouse, names)) / max(len(names), 1)


def _nothing_matched(names: Sequence[str], genes: Collection[str]) -> str:
    upper = sum(name.upper() in genes for name in names)
    column = "if the gene names are in a column of adata.var, pass its name as gene_symbols="
    if all(name.isdecimal() for name in names):
        hint = f"The data's names are numbers; {column}."
    elif any(_OTHER_SPECIES.match(name) for name in names):
        hint = "The data has Ensembl ids of another species than human; replace them by the human orthologs."
    elif any(ensembl_id(name) for name in names):
        hint = f"Human Ensembl ids were translated, but not into any of these tokens; {column}, and check the model."
    elif upper:
        hint = f"{upper:,} would match in upper case: if these are human genes, write them so in adata.var_names."
    else:
        hint = (
            f"{column[0].upper()}{column[1:]}; expected are human symbols or Ensembl ids, as the vocabulary has them."
        )
    return (
        f"None of the {len(names):,} gene names is in the vocabulary of {len(genes):,} genes. "
        f"The data has {few(names)}; the vocabulary has {few(genes)}. {hint}"
    )
