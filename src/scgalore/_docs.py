"""Parameter texts that many public functions share, and the decorator that puts them into docstrings."""

import re
from collections.abc import Callable
from textwrap import indent
from typing import TypeVar

__all__ = ["PARAMETERS", "shared_parameters"]

F = TypeVar("F", bound=Callable[..., object])

PARAMETERS = {
    "adata": "Annotated data matrix, cells in rows.",
    "data": "Annotated data matrix, or a MuData with the modality ``mod``.",
    "query": "Annotated data matrix, or a MuData with the modality ``mod``; its genes need not be those the model was trained on.",
    "model": (
        "Name in the registry of weights (:func:`scgalore.weights.list_weights`), folder of a checkpoint (ours, or in the\n"
        "layout of the original scGPT or scBERT), or a model such as :class:`scgalore.model.SCGPT`."
    ),
    "layer": "Layer to read the expression from; ``None`` is ``adata.X``.",
    "gene_symbols": "Column of ``adata.var`` that holds the gene names; ``None`` is ``adata.var_names``.",
    "data_type": (
        'What the matrix holds: ``"counts"`` (fractional ones, too) or ``"log1p"``, logarithms of normalised counts; ``None``\n'
        "decides by its values."
    ),
    "depth_key": "Column of ``adata.obs`` with the counts of each cell over all of its genes, where not all are in the matrix.",
    "species": (
        'Species of the genes in the data: ``"human"``, or ``"mouse"``, whose symbols and Ensembl ids are read as those of their\n'
        "human orthologs."
    ),
    "min_matched": (
        "Share of the expressed counts that must lie in genes the model knows; a smaller one is an error. ``None`` is 0.05, and\n"
        "0 allows any."
    ),
    "groupby": (
        "Column of ``adata.obs`` with groups of cells that are looked at apart, such as cell types; cells without a label are\n"
        "left out. ``None`` takes all cells together."
    ),
    "max_length": (
        "Most tokens of a cell; longer cells are sampled, with ``rng``. ``None`` is what the weights were trained with."
    ),
    "labels_key": "Column of ``adata.obs`` that holds the labels.",
    "pert_key": 'Column of ``adata.obs`` with the perturbation of each cell: ``"KLF1"``, ``"KLF1+ctrl"`` or ``"KLF1+MAP2K6"``.',
    "pert_kind": (
        'What perturbs: ``"gene"``, or ``"compound"`` for drugs, cytokines and other stimuli, whose labels are read as they are:\n'
        "one label, one compound."
    ),
    "dose_key": (
        "Column of ``adata.obs`` with the dose of each compound, a positive number; 0 or missing for control. ``None`` where each\n"
        "compound has one dose only. Results name a compound at its dose, ``dexamethasone@0.5``."
    ),
    "vectors_key": (
        "Key of vectors of compounds, such as fingerprints: in ``adata.uns`` a table with compounds as index, or a dictionary from\n"
        "compounds to vectors; or in ``adata.obsm`` a vector for each cell, the same for all cells of a compound."
    ),
    "control": (
        "Label of control in that column, as text or number: that label and no other. A list pools several\n"
        '(``["NT_1", "NT_2"]``), and so does a pattern in which ``*`` stands for any text (``"NT_*"``). ``None`` finds it if it\n'
        "is one of the usual words."
    ),
    "context_key": (
        "Column of ``adata.obs`` with the cell type or line, within which cells are compared with control; ``None`` if there is\n"
        "one only."
    ),
    "separator": "What stands between the genes of a label; ``None`` finds it.",
    "batch_key": "Column of ``adata.obs`` that holds the batch of each cell; ``None`` if there is one batch only.",
    "key_added": "Key to write under, used as it is given.",
    "mod": "Modality to work on; ignored for an AnnData.",
    "batch_size": "Most cells worked on together; ``None`` is ``sg.settings.batch_size``. Results do not depend on it.",
    "batch_tokens": (
        "Most tokens worked on together, which is what memory hangs on; ``None`` is ``sg.settings.batch_tokens``. Results do\n"
        "not depend on it."
    ),
    "precision": (
        'Arithmetic: ``"32-true"`` (float32), ``"bf16-true"`` (bfloat16, faster and less exact), or ``"auto"``, which is\n'
        "bfloat16 on GPUs that have it and float32 elsewhere; ``None`` is ``sg.settings.precision``."
    ),
    "accelerator": "Where to compute, in Lightning's words; ``None`` is ``sg.settings.accelerator``.",
    "devices": (
        "Number of processes on this machine that share the cells, which torchrun or SLURM has started (:doc:`/distributed`);\n"
        "``None`` takes as many as there are."
    ),
    "rng": "Seed or NumPy generator. The same value gives the same result; ``None`` a different one each time.",
    "copy": "Whether to return a changed copy and leave the object given as it is.",
    "key": "Key that the results were written under.",
    "ax": "Axes to draw on; ``None`` makes a new figure.",
    "show": (
        "Whether to show the figure and return nothing. ``None`` does so for a new figure, unless ``sc.settings.autoshow``\n"
        "is off."
    ),
    "title": 'Title of the plot; ``None`` writes the default one, ``""`` none.',
    "palette": (
        "Colors: name of a matplotlib colormap, list of colors, or dictionary from names to colors; ``None`` uses the default\n"
        "ones."
    ),
    "cmap": "Name of a matplotlib colormap.",
    "save": (
        'File to save the figure to. ``True`` and text that begins with ``_`` or ``.``, such as ``"_test.pdf"``, save to\n'
        "``sc.settings.figdir`` under the name of the plot and this text. ``None`` follows ``sc.settings.autosave``."
    ),
    "return_fig": "Whether to return the figure instead of the axes, without showing it.",
}
"""Text by name of the parameter, without types and defaults: those are in the signature."""


def _entry(match: re.Match[str]) -> str:
    margin, name = match[1], match[2]
    return indent(f"{name}\n{indent(PARAMETERS[name], '    ')}", margin)


def shared_parameters(function: F) -> F:
    """Replace every docstring line that is just ``{name}`` by the entry of that parameter.

    Parameters
    ----------
    function
        Function or class whose docstring is completed.

    Returns
    -------
    The same object.
    """
    if function.__doc__:  # absent under python -OO
        function.__doc__ = re.sub(r"^([ \t]*)\{(\w+)\}$", _entry, function.__doc__, flags=re.MULTILINE)
    return function
