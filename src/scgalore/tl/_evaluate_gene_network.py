"""Scores of gene networks by known targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scgalore import __version__
from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._keys import NetworkKeys
from scgalore._options import COUNT, INDEX, Option, number
from scgalore._rng import seed_from
from scgalore._words import few
from scgalore.data.cells import gene_names
from scgalore.data.expression import LogExpression
from scgalore.data.hashing import cell_keys
from scgalore.data.reading import Reading
from scgalore.data.records import read_network_record
from scgalore.data.resolve import copied, refuse_elsewhere, writable_adata
from scgalore.data.results import Results, refuse_overwrite
from scgalore.errors import DataError, OptionError
from scgalore.genes.sets import GeneColumns
from scgalore.networks.boosting import boosted_importances
from scgalore.networks.coexpression import correlations
from scgalore.networks.scores import METRICS, Truth, score_pairs, shuffled, summary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore._typing import Data, Rng

BASELINES = ("correlation", "boosting", "expression", "out_degree")

TOP = Option("top", number("it must be a fraction between 0 and 1", lambda value: 0 < value < 1), "", 0.01)
MIN_TARGETS = Option("min_targets", COUNT, "", 10)
N_SHUFFLES = Option("n_shuffles", INDEX, "", 100)


@shared_parameters
def evaluate_gene_network(
    data: Data,
    truth: pd.DataFrame,
    *,
    edges: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
    baselines: Sequence[str] = BASELINES,
    top: float = 0.01,
    min_targets: int = 10,
    n_shuffles: int = 100,
    layer: str | None = None,
    gene_symbols: str | None = None,
    data_type: str | None = None,
    species: str = "human",
    mod: str = "rna",
    rng: Rng = 0,
    key: str = NetworkKeys().network,
    key_added: str | None = None,
    copy: bool = False,
) -> Data | None:
    """Score networks against known targets of transcription factors, next to simple baselines and to chance.

    All pairs of a factor and a target of the truth are scored, if both are in the data. A gene that is not a target of any factor may
    not have been tested, so it is not counted as a negative. Chance is estimated by shuffling the edges of the truth, keeping the number
    of targets of each factor and of factors of each target: a score that shuffled truths also reach reflects hubs and not edges. See
    :doc:`/genes`.

    Parameters
    ----------
    {data}
    truth
        Known edges, one per row, with columns ``source`` (or ``tf``) and ``target``.
    edges
        Edges to score, with columns ``source``, ``target``, and ``rank`` (1 is the best) or ``weight`` (the largest is the best); or a
        dictionary of several such tables by name. ``None`` uses the edges of each group stored by :func:`scgalore.tl.gene_network`.
        Missing pairs rank last.
    baselines
        ``"correlation"``: Pearson correlation without its sign. ``"boosting"``: regression of each target on the factors with
        boosted trees, as in GRNBoost2, which takes about 0.1 s per target. ``"expression"``: mean expression of the target.
        ``"out_degree"``: the number of known targets of the factor, taken from the truth: the score of a method that knows only which
        factors have many targets. May be empty.
    top
        Fraction of the pairs, the best ones, whose odds of being an edge are compared with those of the others.
    min_targets
        Minimum number of known targets of a factor that is scored separately.
    n_shuffles
        Number of shuffled truths; 0 for none.
    {layer}
    {gene_symbols}
    {data_type}
    {species}
    {mod}
    rng
        Seed or NumPy generator, for shuffling and boosting. Results do not depend on the order of cells and genes.
    key
        Key of the network to score.
    {key_added}
    {copy}

    Returns
    -------
    ``None``, or with ``copy=True`` the container it was given, with this key set:

    `adata.uns['evaluate_gene_network' | key_added]` : :class:`dict`
        ``scores``, a table with one row for each network and baseline: ``auprc_ratio``, the area under the precision-recall curve, and
        ``early_precision_ratio``, the precision among as many best pairs as there are edges, both divided by the fraction of edges, so
        that a random order has 1; and ``odds_ratio`` of the ``top`` pairs. Each also with ``_null`` and ``_null_sd``, mean and standard
        deviation for shuffled truths, and ``_p``, the fraction of these that score as high (with one added); with the prefix ``mean_``,
        the means over separately ranked factors. ``covered`` is the fraction of pairs that the network contains. ``by_source``, a table with the
        scores of each factor; ``n_sources``, ``n_targets``, ``n_edges``, ``params`` and ``version``.

    Raises
    ------
    DataError
        If the truth has no edge between genes of the data, all of their pairs are edges, or a table of edges has another form.
    MissingKeyError
        If there is no network, or ``layer``, ``gene_symbols`` or ``mod`` does not exist.
    OptionError
        If an option is out of range, a baseline is unknown, or two rows would have the same name.

    See Also
    --------
    scgalore.tl.gene_network : Rank edges from regulators to target genes.
    scgalore.get.gene_network_scores : Read scores of networks as a table.

    Examples
    --------
    Here ``adata`` has blood cells. Known targets are usually read from a file.

    >>> import pandas as pd, scgalore as sg
    >>> edges = [("SPI1", "CTSS"), ("SPI1", "LYZ"), ("SPI1", "CST3"), ("IRF8", "CD74")]
    >>> truth = pd.DataFrame(edges, columns=["source", "target"])
    >>> sg.tl.gene_network(adata, method="coexpression", n_edges=None)
    >>> sg.tl.evaluate_gene_network(adata, truth, min_targets=1, baselines=["correlation"])
    >>> scores = sg.get.gene_network_scores(adata)
    """
    keys, seed = NetworkKeys.from_key_added(key_added), seed_from(rng)
    top, min_targets, n_shuffles = TOP.check(top), MIN_TARGETS.check(min_targets), N_SHUFFLES.check(n_shuffles)
    baselines = _checked(baselines)
    reading = Reading(layer, gene_symbols, data_type, None, species)
    read = [*reading.reads(), *([("uns", "key=", key)] if edges is None else [])]
    refuse_overwrite({"uns": [keys.evaluation]}, read)
    data = copied(data, mod=mod) if copy else data
    adata = writable_adata(data, mod=mod)
    refuse_elsewhere(data, mod=mod, obs={}, gene_symbols=gene_symbols)
    genes = gene_names(adata, reading.gene_symbols)
    known = _truth(truth, genes, species)
    networks = {name: _strength(table, known, name) for name, table in _tables(adata, edges, key).items()}
    if taken := sorted({*networks} & {*baselines}):
        msg = f"{taken[0]!r} is the name of a network and of a baseline. Rename the network, or leave the baseline out of baselines=."
        raise OptionError(msg)
    n_targets = (known.edges & known.counts).sum(axis=1)
    _warn_of_few(n_targets, known.counts.sum(axis=1) - n_targets, min_targets)
    with logg.step(f"scoring {len(networks):,} networks against {int(known.edges.sum()):,} edges") as step:
        networks |= _baselines(baselines, adata, reading, known, genes, seed)
        nulls = shuffled(known, n_shuffles, seed=seed)
        scores, by_source = {}, []
        for name, strength in networks.items():
            found = score_pairs(strength, known, nulls, top=top, min_targets=min_targets)
            covered = float(np.isfinite(strength[known.counts]).mean())
            scores[name] = {**summary(found), "covered": covered}
            table = pd.DataFrame(found.by_source, columns=list(METRICS))
            table.insert(0, "network", name)
            table.insert(1, "source", list(known.sources))
            table.insert(2, "n_targets", n_targets)
            by_source.append(table[n_targets > 0])
            if covered < 0.5 and name not in baselines:
                logg.warning(
                    f"{name!r} has a weight for {covered:.0%} of the pairs that are scored; the others rank last. Make it with n_edges=None "
                    "and a smaller min_cells=."
                )
        content = {
            "scores": pd.DataFrame.from_dict(scores, orient="index"),
            "by_source": pd.concat(by_source, ignore_index=True),
            "n_sources": len(known.sources),
            "n_targets": len(known.targets),
            "n_edges": int((known.edges & known.counts).sum()),
            "params": {
                **reading.of_tokens(),
                "key": key if edges is None else None,
                "baselines": baselines,
                "top": top,
                "min_targets": min_targets,
                "n_shuffles": n_shuffles,
                "rng": seed,
            },
            "version": __version__,
        }
        Results(uns={keys.evaluation: (content, "scores of networks")}).write(data, adata, mod=mod, step=step)
    return data if copy else None


def _checked(baselines: str | Sequence[str]) -> list[str]:
    wanted = [baselines] if isinstance(baselines, str) else list(baselines)
    if unknown := [name for name in wanted if name not in BASELINES]:
        msg = f"baselines={wanted}: {unknown[0]!r} is none of {', '.join(map(repr, BASELINES))}. Score other edges with edges=."
        raise OptionError(msg)
    return [name for name in BASELINES if name in wanted]


def _pairs(table: Any, where: str) -> pd.DataFrame:
    """Check and return a table with columns ``source`` and ``target``, without missing values."""
    if not isinstance(table, pd.DataFrame):
        msg = f"{where} is a {type(table).__name__}; expected a table with columns source and target."
        raise DataError(msg)
    table = table.rename(columns={"tf": "source"}) if "source" not in table else table
    if absent := [name for name in ("source", "target") if name not in table]:
        msg = f"{where} has no column {absent[0]!r}; it has {list(table.columns)}. Rename its columns to source and target."
        raise DataError(msg)
    if table.empty or table[["source", "target"]].isna().any(axis=None):
        msg = f"{where} has no edge, or edges without a source or target. Expected a name of a gene in each row of both columns."
        raise DataError(msg)
    return table


def _truth(table: pd.DataFrame, genes: Sequence[str], species: str) -> Truth:
    """Known edges between genes of the data, with the names in the data."""
    table = _pairs(table, "truth")[["source", "target"]].astype(str)
    name_of = GeneColumns(genes, species).each(list(pd.unique(table.to_numpy().ravel())))
    here = table[table["source"].isin(name_of) & table["target"].isin(name_of)]
    here = here.apply(lambda side: side.map(name_of))
    here = here[here["source"] != here["target"]]
    if here.empty:
        msg = (
            f"None of the {len(table):,} edges of truth ({few(table['source'].unique())}) is between two genes of the data, whose genes are "
            f"named {', '.join(genes[:3])}, .... Pass gene_symbols= if var_names are other identifiers."
        )
        raise DataError(msg)
    # Targets of factors that were not measured were tested as well.
    looked_at = table["target"][table["target"].isin(name_of)].map(name_of)
    # By name, so that random numbers do not depend on the order of the columns.
    sources, targets = (pd.Index(sorted({genes[i] for i in side})) for side in (here["source"], looked_at))
    edges = np.zeros((len(sources), len(targets)), dtype=bool)
    i, j = (here[side].map(lambda column: genes[column]) for side in ("source", "target"))
    edges[sources.get_indexer(pd.Index(i)), targets.get_indexer(pd.Index(j))] = True
    truth = Truth(tuple(sources), tuple(targets), edges)
    if edges[truth.counts].all():
        msg = (
            f"All {len(here):,} pairs of the {len(sources):,} factors and {len(targets):,} targets of truth in the data are edges, so "
            "they cannot be ranked. Pass the targets of more factors, in the data or not: edges are compared with targets of other "
            "factors."
        )
        raise DataError(msg)
    return truth


def _warn_of_few(n_targets: NDArray[np.int64], n_others: NDArray[np.int64], min_targets: int) -> None:
    """Warn if no factor can be scored separately."""
    fewer = np.minimum(n_targets, n_others)
    if fewer.max() < min_targets:
        logg.warning(
            f"no factor of truth has min_targets={min_targets} targets in the data and as many genes that are not its targets, so scores "
            f"with mean_ are NaN; the most that one has is {fewer.max()}. Pass a smaller min_targets=, or a truth with more edges."
        )


def _tables(adata: AnnData, edges: Any, key: str) -> dict[str, pd.DataFrame]:
    if edges is None:
        record = read_network_record(adata, key)
        table, params = record["edges"], record["params"]
        names = table["group"].astype(str)
        if names.nunique() == 1:
            return {str(params["method"]): table}
        return {name: table[names == name] for name in names.unique()}
    if isinstance(edges, Mapping):
        return {str(name): table for name, table in edges.items()}
    return {"network": edges}


def _strength(table: pd.DataFrame, known: Truth, name: str) -> NDArray[np.float64]:
    """Score by which a network ranks the pairs of the truth; NaN for missing pairs."""
    table = _pairs(table, f"The network {name!r}")
    if "rank" not in table and "weight" not in table:
        msg = f"The network {name!r} has neither a column rank nor weight; it has {list(table.columns)}. Add one."
        raise DataError(msg)
    if table.duplicated(["source", "target"]).any():
        msg = f"The network {name!r} has edges more than once. Pass one group at a time, as a dictionary of tables."
        raise DataError(msg)
    strength = -table["rank"] if "rank" in table else table["weight"]
    i, j = (
        pd.Index(names).get_indexer(pd.Index(table[side]))
        for names, side in ((known.sources, "source"), (known.targets, "target"))
    )
    here = (i >= 0) & (j >= 0)
    found = np.full(known.edges.shape, np.nan)
    found[i[here], j[here]] = strength.to_numpy(dtype=np.float64)[here]
    return found


def _baselines(
    names: Sequence[str], adata: AnnData, reading: Reading, known: Truth, genes: Sequence[str], seed: int
) -> dict[str, NDArray[np.float64]]:
    column_of = {gene: column for column, gene in enumerate(genes)}
    sources, targets = (np.array([column_of[gene] for gene in side]) for side in (known.sources, known.targets))
    shape = known.edges.shape

    def expression() -> LogExpression:
        return LogExpression.from_adata(adata, reading)

    def mean() -> NDArray[np.float64]:
        total = sum(rows[:, targets].sum(axis=0, dtype=np.float64) for _, rows in expression().chunks())
        # Rounded, so that equal means are equal in whatever order cells were added.
        return np.broadcast_to(np.asarray(total).ravel().astype(np.float32).astype(np.float64), shape)

    def boosting() -> NDArray[np.float64]:
        names = np.union1d(known.sources, known.targets)
        columns = [column_of[name] for name in names]
        x = sp.vstack([rows[:, columns] for _, rows in expression().chunks()], format="csr")
        # Trees sample cells by index, so cells are sorted by their expression.
        order = np.argsort(cell_keys(x.indices.astype(np.int64), x.data, x.indptr), kind="stable")
        of_sides = (np.searchsorted(names, side) for side in (known.sources, known.targets))
        return boosted_importances(x[order].toarray(), *of_sides, seed=seed)

    def correlation() -> NDArray[np.float64]:
        everywhere = np.zeros(adata.n_obs, dtype=np.int64)
        return np.abs(correlations(expression().chunks(), everywhere, sources, targets, n_groups=1)[0][0]).astype(
            np.float64
        )

    made: dict[str, Callable[[], NDArray[np.float64]]] = {
        "correlation": correlation,
        "boosting": boosting,
        "expression": mean,
        "out_degree": lambda: np.broadcast_to(known.edges.sum(axis=1, keepdims=True).astype(np.float64), shape),
    }
    return {name: made[name]() for name in names}
