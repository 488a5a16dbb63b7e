"""Split perturbations into training, validation and test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._rng import seed_from
from scgalore.data.cells import gene_names
from scgalore.data.columns import read_column
from scgalore.data.reading import AS_IT_IS
from scgalore.data.resolve import copied, refuse_elsewhere, writable_adata
from scgalore.data.results import Results, refuse_overwrite
from scgalore.data.split import PARTS
from scgalore.data.texts import texts_of
from scgalore.errors import DataError, OptionError
from scgalore.perturb.labels.parsing import agents_of
from scgalore.perturb.labels.reading import read_conditions
from scgalore.perturb.labels.unknown import check_genes
from scgalore.perturb.splits.own import record_split
from scgalore.perturb.splits.split import default_kind, split_conditions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from scgalore._typing import Control, Data, Label, Rng
    from scgalore.perturb.labels.conditions import Conditions
    from scgalore.perturb.splits.split import PerturbationSplit


@shared_parameters
def split_perturbations(
    data: Data,
    kind: str | None = None,
    *,
    pert_key: str = "perturbation",
    control: Control = None,
    separator: str | None = None,
    pert_kind: str = "gene",
    dose_key: str | None = None,
    context_key: str | None = None,
    train_gene_set_size: float | None = None,
    combo_seen2_train_frac: float | None = None,
    validation_size: float | None = None,
    test_size: float | None = None,
    test_perts: Sequence[Label] | None = None,
    only_test_set_perts: bool | None = None,
    validation_contexts: Sequence[Label] | None = None,
    test_contexts: Sequence[Label] | None = None,
    validation_compounds: Sequence[Label] | None = None,
    test_compounds: Sequence[Label] | None = None,
    validation_doses: Sequence[float] | None = None,
    test_doses: Sequence[float] | None = None,
    parts: Mapping[Any, Any] | None = None,
    gene_symbols: str | None = None,
    mod: str = "rna",
    rng: Rng = 42,
    key_added: str = "split",
    copy: bool = False,
) -> Data | None:
    """Split perturbations into training, validation and test.

    The kinds of GEARS :cite:p:`Roohani2024` reproduce published splits, given the
    same seed; :doc:`/concepts/perturbation-splits` explains each kind. Labels of the same genes (``"A+ctrl"`` and
    ``"ctrl+A"``, a symbol and its alias or Ensembl id) are one perturbation and stay together. Control cells are always
    in ``"train"``. Cells without a valid label are in no split: missing values, texts such as ``"nan"``, and control
    words other than ``control``. A warning lists labels that are neither genes of the data nor in the package's gene
    tables.

    Parameters
    ----------
    {data}
    kind
        ``"simulation"``, ``"simulation_single"``, ``"combo_seen0"``, ``"combo_seen1"``, ``"combo_seen2"``,
        ``"single"``, ``"no_test"`` or ``"no_split"``, as in GEARS; ``"cell"`` holds out cells at random, ``"context"``
        whole cell types, ``"custom"`` follows ``parts``. For compounds, ``"compound"`` holds out compounds with all of
        their doses, and ``"dose"`` holds out doses of all compounds; the kinds of GEARS are for genes. ``None`` is
        ``"simulation"`` for genes and ``"compound"`` for compounds.
    pert_key
        Column of ``adata.obs`` with the perturbation of each cell: ``"A"``, ``"A+ctrl"`` or ``"A+B"``. Cells without a
        label are in no split.
    {control}
    separator
        Separator between genes of a label; ``None`` detects ``"+"``, or ``"_"`` if labels consist of genes or other
        labels.
    {pert_kind}
    {dose_key}
    context_key
        Column of ``adata.obs`` with the cell type or line, which ``kind="context"`` holds out and by which
        ``kind="cell"`` is stratified.
    train_gene_set_size
        Fraction of genes seen in training (``simulation``, ``simulation_single``); ``None`` is 0.75.
    combo_seen2_train_frac
        Fraction of doubles of two seen genes that are trained on (``simulation``); ``None`` is 0.75.
    validation_size
        Fraction of genes, labels, cells, contexts, compounds or doses (depending on ``kind``) held out for selecting
        the epoch; ``None`` is 0.1.
    test_size
        Fraction held out for testing, likewise (``combo_seen0``, ``1``, ``2``, ``single``, ``cell``, ``context``,
        ``compound``, ``dose``); ``None`` is 0.1.
    test_perts
        Genes that must be held out (``simulation``); they are swapped with others.
    only_test_set_perts
        Whether only ``test_perts`` are held out.
    validation_contexts, test_contexts
        Contexts to hold out (``context``); ``None`` draws them.
    validation_compounds, test_compounds
        Compounds to hold out (``compound``); ``None`` draws them.
    validation_doses, test_doses
        Doses to hold out (``dose``); ``None`` draws them.
    parts
        For ``custom``: ``{"test": ["A", "A+B"], ...}`` or ``{"A": "test", ...}``, with ``"train"``, ``"validation"``,
        ``"test"`` and ``"dropped"``. If none is assigned to training, all others are.
    {gene_symbols}
    {mod}
    {rng}
    key_added
        Key of the results in ``adata.obs`` and ``adata.uns``.
    {copy}

    Returns
    -------
    ``None``, or with ``copy=True`` the container it was given, with these keys set:

    `adata.obs['split' | key_added]` : :class:`pandas.Series` (dtype `category`)
        ``"train"``, ``"validation"`` or ``"test"``; missing for dropped cells.
    `adata.uns['split' | key_added]` : :class:`dict`
        ``params``; canonical names of the perturbations in ``train``, ``validation``, ``test`` and ``dropped``;
        ``groups`` of the test perturbations (``combo_seen0``, ``combo_seen1``, ``combo_seen2``, ``unseen_single``; for
        compounds ``unseen_compound``, and ``unseen_dose`` if the compound was seen at other doses);
        ``cells``, a table of cell numbers by label and split; ``labels_sha256`` of the sorted labels, one per line;
        ``version``. Other functions use this record to recognise the column as a split of these perturbations.

    Raises
    ------
    MissingKeyError
        If a column, ``mod``, or a perturbation in ``parts`` does not exist.
    DataError
        If a label cannot be parsed, there is no control or no perturbation, or no training cells remain.
    OptionError
        If an option is out of range or belongs to other kinds, or ``control`` is not among the labels.

    See Also
    --------
    scgalore.pp.collapse_guides : Map guides to the genes they target.
    scgalore.tl.finetune : Fine-tune a model on your cells.
    scgalore.tl.predict_perturbation : Predict expression after perturbations.

    Examples
    --------
    >>> import numpy as np, pandas as pd, scgalore as sg
    >>> from anndata import AnnData
    >>> labels = ["ctrl", "KLF1+ctrl", "CEBPA+ctrl", "BAK1+ctrl", "CEBPA+KLF1"]
    >>> adata = AnnData(np.ones((5, 1), "float32"), obs=pd.DataFrame({"perturbation": labels}, index=list("abcde")))
    >>> sg.pp.split_perturbations(adata, "custom", parts={"test": ["CEBPA+KLF1"]})
    >>> adata.obs["split"].tolist()
    ['train', 'train', 'train', 'train', 'test']
    """
    options = {
        "train_gene_set_size": train_gene_set_size,
        "combo_seen2_train_frac": combo_seen2_train_frac,
        "validation_size": validation_size,
        "test_size": test_size,
        "test_perts": test_perts,
        "only_test_set_perts": only_test_set_perts,
        "validation_contexts": validation_contexts,
        "test_contexts": test_contexts,
        "validation_compounds": validation_compounds,
        "test_compounds": test_compounds,
        "validation_doses": validation_doses,
        "test_doses": test_doses,
        "parts": parts,
    }
    seed = seed_from(rng)
    data = copied(data, mod=mod) if copy else data
    adata = _checked(
        data,
        mod=mod,
        key_added=key_added,
        columns={"pert_key": pert_key, "context_key": context_key, "dose_key": dose_key},
    )
    labels: dict[str, Any] = {
        "pert_key": pert_key,
        "separator": separator,
        "pert_kind": pert_kind,
        "dose_key": dose_key,
    }
    genes = gene_names(adata, gene_symbols)
    conditions = read_conditions(adata.obs, control=control, genes=genes, **labels)
    conditions.report()
    check_genes(conditions, refuse=False)
    contexts = None if context_key is None else _contexts(adata, context_key, conditions)
    kind = default_kind(conditions) if kind is None else kind
    with logg.step(f"splitting {len(conditions.perturbations):,} perturbations ({kind})") as step:
        split = split_conditions(conditions, kind, seed=seed, contexts=contexts, **options)
        _report(split, conditions)
        params = {
            "kind": kind,
            **labels,
            "control": conditions.control,
            "separator": conditions.separator,
            "context_key": context_key,
            "rng": seed,
            **{name: value for name, value in split.options.items() if name != "parts"},
        }
        parts_of_cells, record = record_split(split, conditions, adata.obs, params)
        if key_added in adata.obs and key_added not in adata.uns:
            logg.warning(
                f"adata.obs[{key_added!r}] existed without a record of a split and is replaced. Use key_added= for another name."
            )
        Results(
            obs={key_added: (parts_of_cells, "split of each cell")},
            uns={key_added: (record, "perturbations of each split")},
        ).write(data, adata, mod=mod, step=step)
    return data if copy else None


def _checked(data: Data, *, mod: str, key_added: str, columns: dict[str, str | None]) -> AnnData:
    adata = writable_adata(data, mod=mod)
    if not isinstance(key_added, str) or not key_added or "/" in key_added:
        msg = f"key_added={key_added!r}: expected a string without '/'."
        raise OptionError(msg)
    reads = [("obs", f"{name}=", key) for name, key in columns.items()]
    writes = {"obs": (key_added,), "uns": (key_added,)}
    refuse_elsewhere(data, mod=mod, obs=columns)
    refuse_overwrite(writes, [*reads, *AS_IT_IS.reads()], data=data, mod=mod)
    for column in columns.values():
        if column is not None:
            read_column(adata.obs, column, hint=f"Pass {'=, '.join(columns)}=.")
    return adata


def _contexts(adata: AnnData, key: str, conditions: Conditions) -> list[str]:
    column = adata.obs[key]
    n_missing = int((column.isna().to_numpy() & (conditions.codes >= 0)).sum())
    if n_missing:
        msg = f"{n_missing:,} cells with a perturbation have no value in adata.obs[{key!r}]. Fill it in or exclude these cells."
        raise DataError(msg)
    return [text or "" for text in texts_of(column)]


def _report(split: PerturbationSplit, conditions: Conditions) -> None:
    sizes = ", ".join(f"{len(getattr(split, part))} {part}" for part in (*PARTS, "dropped"))
    logg.info(f"    perturbations: {sizes}")
    several = [group for group in conditions.spellings[1:] if len(group) > 1]
    if several:
        logg.info(f"    {len(several)} perturbations have several labels, such as {' and '.join(several[0])}: merged")
    if split.moved:
        logg.warning(
            f"The labels of {len(split.moved)} perturbations, such as {split.moved[0]}, were assigned to different splits; "
            "all their cells are held out."
        )
    partners = split.partners_in_validation()
    if partners:
        logg.warning(
            f"{len(partners)} of {sum(len(agents_of(name)) > 1 for name in split.test)} test combinations, such as {partners[0]}, have "
            "a gene whose single perturbation is in the validation split: not trained on, but counted as seen."
        )
    empty = [part for part in PARTS if not getattr(split, part)]
    if empty:
        logg.warning(f"No perturbation is in the {' or '.join(empty)} split. Increase validation_size or test_size.")
