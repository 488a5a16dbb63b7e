"""Map guides of a screen to their target genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgalore import __version__
from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._keys import PerturbationKeys, check_key
from scgalore.data.cells import gene_names
from scgalore.data.columns import read_column
from scgalore.data.reading import AS_IT_IS
from scgalore.data.resolve import copied, writable_adata
from scgalore.data.results import Results, refuse_overwrite
from scgalore.data.texts import texts_of
from scgalore.errors import OptionError
from scgalore.perturb.labels.collapse import Collapser, compiled, read_guide_table
from scgalore.perturb.labels.conditions import labels_with_counts
from scgalore.perturb.labels.control import find_controls
from scgalore.perturb.labels.genes import GeneNames

if TYPE_CHECKING:
    import re
    from collections.abc import Mapping

    from scgalore._typing import Control, Data

KEY = PerturbationKeys().genes


@shared_parameters
def collapse_guides(
    data: Data,
    pert_key: str = "perturbation",
    *,
    pattern: str | re.Pattern[str] | None = None,
    table: Mapping[Any, Any] | pd.Series | pd.DataFrame | None = None,
    control: Control = None,
    separator: str | None = None,
    gene_symbols: str | None = None,
    mod: str = "rna",
    key_added: str = KEY,
    copy: bool = False,
) -> Data | None:
    """Map guides to the genes they target.

    Screens label cells by guide (``"KLF1_1"``, ``"sgKLF1-2"``), while models and splits need genes. The column of
    guides is kept; pass the new column as ``pert_key=``.

    Parameters
    ----------
    {data}
    pert_key
        Column of ``adata.obs`` with the guide or guides of each cell.
    pattern
        Regular expression that matches the whole name of a guide, with one group, or a group ``gene``, for the gene:
        ``r"(.+)_guide[AB]"``. ``None`` recognises the usual formats: ``A_1``, ``A-2``, ``A_g2``, ``A_sgRNA3``,
        ``sgA_1``, ``A_P1P2``, ``A_+_53715438.23-P1P2`` and ``A_`` with the sequence of the guide, where ``A`` is a gene
        in the data, in the package's gene tables or in another label, or a control word (``NT_1``). Gene symbols are
        never split: ``HLA-A`` and ``NKX2-5`` are not guides.
    table
        Gene of each guide, instead of a pattern: a dictionary or Series from guide to gene, or a DataFrame with a
        column ``"guide"`` (or guides as index) and a column ``"gene"`` (or similar names).
    control
        Labels of control guides, which become ``"control"``: a label, a pattern such as ``"NT_*"``, or a list. ``None``
        keeps control words, so that ``NT_1`` becomes ``NT``.
    separator
        Separator between guides of a cell with several; ``None`` is ``"+"``, or ``"_"`` between genes.
    {gene_symbols}
    {mod}
    key_added
        Key of the results in ``adata.obs`` and ``adata.uns``.
    {copy}

    Returns
    -------
    ``None``, or with ``copy=True`` the container it was given, with these keys set:

    `adata.obs['perturbed_gene' | key_added]` : :class:`pandas.Series` (dtype `category`)
        Gene, genes joined by ``"+"``, or control; the original label if it could not be mapped; missing if it is
        missing.
    `adata.uns['perturbed_gene' | key_added]` : :class:`dict`
        ``labels`` (a table, one row per label: ``target``, ``n_cells`` and ``how``, which is ``"guide"``, ``"gene"``,
        ``"control"``, ``"missing"`` or ``"unmapped"``), ``targets`` (one row per target: ``n_guides``, ``n_cells``),
        ``unmapped`` (labels), ``params`` and ``version``.

    Raises
    ------
    MissingKeyError
        If the column or modality does not exist.
    OptionError
        If ``key_added`` is ``pert_key``, both a pattern and a table are given, the pattern or table is invalid, or
        ``control`` matches no label.
    DataError
        If a table maps a guide to several genes.

    See Also
    --------
    scgalore.pp.split_perturbations : Split perturbations into training, validation and test.

    Examples
    --------
    >>> import numpy as np, pandas as pd, scgalore as sg
    >>> from anndata import AnnData
    >>> guides = ["NT_1", "NT_2", "KLF1_1", "KLF1_2", "HLA-A_1", "KLF1_1+HLA-A_2"]
    >>> adata = AnnData(np.ones((6, 1), "float32"), obs=pd.DataFrame({"perturbation": guides}, index=list("abcdef")))
    >>> sg.pp.collapse_guides(adata)
    >>> adata.obs["perturbed_gene"].tolist()
    ['NT', 'NT', 'KLF1', 'KLF1', 'HLA-A', 'KLF1+HLA-A']
    >>> adata.uns["perturbed_gene"]["targets"].loc["KLF1", "n_guides"].item()
    2
    """
    check_key(key_added)
    if pattern is not None and table is not None:
        msg = "pattern= and table= both define the target of a guide. Pass only one of them."
        raise OptionError(msg)
    data = copied(data, mod=mod) if copy else data
    adata = writable_adata(data, mod=mod)
    reads = [("obs", "pert_key=", pert_key), *AS_IT_IS.reads()]
    refuse_overwrite({"obs": (key_added,), "uns": (key_added,)}, reads, data=data, mod=mod)
    texts = texts_of(read_column(adata.obs, pert_key, asked="pert_key"))
    counts = {str(text): int(n) for text, n in pd.Series(texts, dtype=object).value_counts(sort=False).items()}
    collapser = Collapser(
        labels=frozenset(counts),
        controls=() if control is None else find_controls(counts, control),
        gene_names=GeneNames(gene_names(adata, gene_symbols)),
        separator=separator,
        pattern=None if pattern is None else compiled(pattern),
        table=None if table is None else read_guide_table(table),
    )
    with logg.step(f"mapping {len(counts):,} labels of guides to genes") as step:
        target = {label: collapser.target(label) for label in counts}
        labels = pd.DataFrame(
            {
                "target": [gene or "" for gene, _ in target.values()],
                "n_cells": list(counts.values()),
                "how": [how for _, how in target.values()],
            },
            index=list(counts),
        )
        content = {
            "labels": labels,
            "targets": labels[labels["how"] != "missing"]
            .groupby("target", sort=False)["n_cells"]
            .agg(n_guides="size", n_cells="sum"),
            "unmapped": labels.index[labels["how"] == "unmapped"].tolist(),
            "params": {
                "pert_key": pert_key,
                "pattern": None if pattern is None else getattr(pattern, "pattern", pattern),
                "table": table is not None,
                "control": list(collapser.controls) or None,
                "separator": separator,
                "gene_symbols": gene_symbols,
            },
            "version": __version__,
        }
        _report(labels)
        of_label = {label: gene for label, (gene, _) in target.items()}
        genes = pd.Categorical(np.array([None if text is None else of_label[text] for text in texts], dtype=object))
        Results(
            obs={key_added: (genes, "perturbed genes of each cell")},
            uns={key_added: (content, "guides of each gene")},
        ).write(data, adata, mod=mod, step=step)
    return data if copy else None


def _report(labels: pd.DataFrame) -> None:
    guides = labels[labels["how"] == "guide"]
    n_targets = guides["target"].nunique()
    logg.info(
        f"    {len(guides):,} labels are guides of {n_targets:,} targets, and {len(labels) - len(guides):,} are not"
    )
    unmapped = {str(text): n for text, n in labels.loc[labels["how"] == "unmapped", "n_cells"].items()}
    if unmapped:
        logg.warning(
            f"{len(unmapped):,} of {len(labels):,} labels are neither genes nor guides and are kept unchanged: "
            f"{labels_with_counts(unmapped)}. Pass pattern= or table= for guides, and control=[...] for controls."
        )
