"""Parameter descriptions shared by many public functions, and the decorator that inserts them into docstrings."""

import re
from collections.abc import Callable
from textwrap import indent
from typing import TypeVar

__all__ = ["PARAMETERS", "shared_parameters"]

F = TypeVar("F", bound=Callable[..., object])

PARAMETERS = {
    "adata": "Annotated data matrix, cells in rows.",
    "data": "Annotated data matrix, or a MuData with the modality ``mod``.",
    "query": "Annotated data matrix, or a MuData with the modality ``mod``; its genes may differ from those of the training data.",
    "model": (
        "Name in the registry of weights (:func:`scgalore.weights.list_weights`), address on the Hugging Face Hub\n"
        '(``"hf://owner/name@revision"``), folder of a checkpoint (saved by scgalore, or in the layout of scGPT or scBERT), or a\n'
        "model such as :class:`scgalore.model.SCGPT`."
    ),
    "layer": "Layer with the expression; ``None`` reads ``adata.X``.",
    "gene_symbols": "Column of ``adata.var`` with the gene names; ``None`` reads ``adata.var_names``.",
    "data_type": (
        'Content of the matrix: ``"counts"`` (may be fractional) or ``"log1p"`` (log-normalised). Detected from the values if\n'
        "``None``."
    ),
    "depth_key": "Column of ``adata.obs`` with the total counts of each cell, if the matrix does not contain all genes.",
    "species": (
        'Species of the genes in the data: ``"human"``, or ``"mouse"``, whose symbols and Ensembl ids are mapped to their human\n'
        "orthologs."
    ),
    "min_matched": (
        "Minimum fraction of the counts that must be in genes of the model's vocabulary; otherwise an error is raised. ``None``\n"
        "is 0.05; 0 disables the check."
    ),
    "groupby": (
        "Column of ``adata.obs`` with groups of cells, such as cell types, that are analysed separately; cells without a label are\n"
        "excluded. ``None`` analyses all cells together."
    ),
    "max_length": (
        "Maximum number of tokens per cell; the genes of longer cells are sampled, using ``rng``. ``None`` uses the length the weights were\n"
        "trained with."
    ),
    "labels_key": "Column of ``adata.obs`` with the labels.",
    "pert_key": 'Column of ``adata.obs`` with the perturbation of each cell: ``"KLF1"``, ``"KLF1+ctrl"`` or ``"KLF1+MAP2K6"``.',
    "pert_kind": (
        'Type of perturbation: ``"gene"``, or ``"compound"`` for drugs, cytokines and other stimuli. Each label is then one\n'
        "compound and is not parsed."
    ),
    "dose_key": (
        "Column of ``adata.obs`` with the dose of each compound, a positive number; 0 or missing for control. ``None`` if each\n"
        "compound has a single dose. Results name a compound with its dose: ``dexamethasone@0.5``."
    ),
    "vectors_key": (
        "Key of compound vectors, such as fingerprints: in ``adata.uns``, a table with compounds as index or a dictionary from\n"
        "compounds to vectors; or in ``adata.obsm``, one vector per cell, the same for all cells of a compound."
    ),
    "control": (
        'Label of control cells in that column, text or number. A list pools several labels (``["NT_1", "NT_2"]``), as does a\n'
        'pattern with ``*`` for any text (``"NT_*"``). Detected if ``None`` (``"control"``, ``"ctrl"``, ``"non-targeting"``, ...).'
    ),
    "context_key": (
        "Column of ``adata.obs`` with the cell type or line, within which cells are compared with control; ``None`` if there is\n"
        "only one."
    ),
    "separator": "Separator between gene names in a perturbation label. Detected if ``None``.",
    "batch_key": "Column of ``adata.obs`` with the batch of each cell; ``None`` if there is only one batch.",
    "key_added": "Key under which results are stored.",
    "mod": "Modality of a MuData to use; ignored for an AnnData.",
    "batch_size": "Maximum number of cells per batch; ``None`` is ``sg.settings.batch_size``. Results do not depend on it.",
    "batch_tokens": (
        "Maximum number of tokens per batch; memory use depends on it, results do not. ``None`` is ``sg.settings.batch_tokens``."
    ),
    "precision": (
        'Numerical precision: ``"32-true"`` (float32), ``"bf16-true"`` (bfloat16, faster but less accurate), or ``"auto"``,\n'
        "bfloat16 on GPUs that support it and float32 otherwise; ``None`` is ``sg.settings.precision``. On a\n"
        'CPU, ``"auto"`` uses bfloat16 if ``sg.settings.cpu_bfloat16`` is set and it was measured to be faster.'
    ),
    "accelerator": 'Device, as in Lightning: ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"mps"``; ``None`` is ``sg.settings.accelerator``.',
    "devices": (
        "Number of processes on this machine, started by torchrun or SLURM, that share the cells (:doc:`/distributed`); ``None``\n"
        "uses all of them."
    ),
    "rng": "Seed or NumPy generator. The same seed gives the same result; ``None`` gives a different one on each call.",
    "copy": "Whether to write to a copy and return it, instead of modifying the object in place.",
    "key": "Key under which the results are stored.",
    "ax": "Matplotlib axes to draw on; ``None`` creates a new figure.",
    "show": (
        "Whether to show the figure and return ``None``. If ``None``, a new figure is shown unless ``sc.settings.autoshow`` is\n"
        "off."
    ),
    "title": 'Title of the plot; ``None`` describes the results, ``""`` writes none.',
    "palette": (
        "Colors: name of a matplotlib colormap, list of colors, or dictionary from names to colors; ``None`` uses those\n"
        "of the style."
    ),
    "cmap": "Name of a matplotlib colormap.",
    "save": (
        'File to save the figure to. ``True`` and text that begins with ``_`` or ``.``, such as ``"_test.pdf"``, save to\n'
        "``sc.settings.figdir`` under the name of the plot and this text. ``None`` follows ``sc.settings.autosave``."
    ),
    "return_fig": "Whether to return the figure instead of the axes, without showing it.",
}
"""Description of each parameter, without type and default, which are in the signature."""


def _entry(match: re.Match[str]) -> str:
    margin, name = match[1], match[2]
    return indent(f"{name}\n{indent(PARAMETERS[name], '    ')}", margin)


def shared_parameters(function: F) -> F:
    """Replace every docstring line that is just ``{name}`` by the description of that parameter.

    Parameters
    ----------
    function
        Function or class whose docstring is completed.

    Returns
    -------
    The same object, with its docstring completed.
    """
    if function.__doc__:  # absent under python -OO
        function.__doc__ = re.sub(r"^([ \t]*)\{(\w+)\}$", _entry, function.__doc__, flags=re.MULTILINE)
    return function
