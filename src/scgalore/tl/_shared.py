"""Steps that the functions of this subpackage share: find the model, check the object, record where results come from."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgalore import __version__
from scgalore.data.proteins import PROTEIN_KIND, read_proteins
from scgalore.data.resolve import first_modality
from scgalore.errors import OptionError, WeightsError
from scgalore.model import CellModel, load
from scgalore.model.inference import mean_states

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore._typing import Data
    from scgalore.data.cells import TokenCells
    from scgalore.data.proteins import Proteins
    from scgalore.mapping import Reference
    from scgalore.model.inference import RunOptions

IN_MEMORY = ("none", "memory")
"""Layouts of weights that no file holds."""

__all__ = [
    "IN_MEMORY",
    "as_model",
    "embed_genes",
    "measured_proteins",
    "model_of_reference",
    "provenance",
    "read_measured",
    "static_embeddings",
]


def as_model(model: str | os.PathLike[str] | CellModel) -> CellModel:
    """Take a model as it is, or load it."""
    if isinstance(model, CellModel):
        return model
    if isinstance(model, str | os.PathLike):
        return load(model)
    msg = f"model is a {type(model).__name__}; pass a name, a folder, or a model such as scgalore.model.SCGPT."
    raise OptionError(msg)


def model_of_reference(reference: Reference, model: str | os.PathLike[str] | CellModel | None) -> CellModel:
    """The model that a reference was built with: as passed, as it is in memory, or as it is found by its name or in its folder.

    Raises
    ------
    OptionError
        If it is another one, or cannot be found.
    """
    made = reference.made["model"]
    if model is None and reference.model is not None:
        found = reference.model
    elif model is None and made["layout"] in IN_MEMORY:
        msg = (
            f"The reference was built with {made['name']!r}, a model in memory that had not been read from a folder. Pass it as model=, or the folder "
            "that it was saved to."
        )
        raise OptionError(msg)
    elif model is None:
        try:
            found = load(made["name"])
        except (OptionError, WeightsError, OSError) as error:
            msg = f"The reference was built with {made['name']!r}, which cannot be loaded ({error}) Pass that model as model=."
            raise OptionError(msg) from error
    else:
        found = as_model(model)
    if (identity := found.embedding_identity) != made["identity"]:
        msg = (
            f"The reference was built with {made['name']!r} (weights {made['identity']}), and this is {found.provenance['name']!r} (weights "
            f"{identity}); embeddings by two models cannot be compared. Pass the model of the reference, or build one with this model."
        )
        raise OptionError(msg)
    return found


def embed_genes(
    model: CellModel,
    cells: TokenCells,
    columns: NDArray[np.int64],
    groups: NDArray[np.int64],
    n_groups: int,
    *,
    kind: str,
    options: RunOptions,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Embeddings of genes in each group of cells, float32 ``(n_groups, n_genes, d)``, and how many cells they are from.

    Parameters
    ----------
    model, cells
        The model, and cells that it reads.
    columns
        Columns of the matrix that have a token.
    groups, n_groups
        Number of the group of each cell, -1 for none, and how many there are.
    kind
        ``"contextual"``, or ``"static"``, which are the same in all groups and from all of their cells.
    options
        Where and how to compute.
    """
    tokens = cells.match.token_ids[columns]
    if kind == "static":
        found = static_embeddings(model, tokens)
        sizes = np.bincount(groups[groups >= 0], minlength=n_groups)
        return np.repeat(found[None], n_groups, axis=0), np.repeat(sizes[:, None], len(tokens), axis=1)
    encoder = model.family.encoder
    found, n_cells = mean_states(
        model.network, cells, tokens, groups, n_groups=n_groups, encoder=encoder, options=options
    )
    model.network.cpu()
    return found, n_cells


@torch.no_grad()
def static_embeddings(model: CellModel, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """What the network has learned of some tokens, before values are added, float32 ``(n, d)``."""
    network = model.network
    ids = torch.from_numpy(tokens).to(network.gene_table.weight.device)
    return network.gene_embeddings(ids).float().cpu().numpy()


def refuse_conditions(fitted: CellModel) -> None:
    """Refuse networks that need to be told more of a cell than its expression, where genes are changed in silico.

    Raises
    ------
    OptionError
        If the network reads perturbation flags, or normalises within batches.
    """
    name = fitted.provenance["name"]
    if fitted.network.reads_flags:
        msg = (
            f"{name!r} reads perturbation flags: it was trained on a screen, and predicts what was done there, in cells of any data: "
            "adata.obs['perturbation'] = 'control'; sg.tl.predict_perturbation(adata, genes, model=model, pert_key='perturbation'). "
            "Here, pass a model that was not trained on a screen."
        )
        raise OptionError(msg)
    if fitted.network.reads_batches:
        msg = f"{name!r} normalises its input within each sequencing batch, which is not known here. Pass a model that does not, such as 'scgpt'."
        raise OptionError(msg)


def provenance(model: CellModel, cells: TokenCells) -> dict[str, Any]:
    """Weights, version and genes that made a result, for ``uns``."""
    return {"weights": dict(model.provenance), "version": __version__, "genes": cells.genes_report()}


def measured_proteins(
    data: Data, mod: str | Sequence[str], protein: str | AnnData | None
) -> tuple[str, str | AnnData | None]:
    """Modality with the RNA, and where the proteins are: named by ``protein``, or the second modality.

    Raises
    ------
    OptionError
        If both name them, or ``protein`` is neither a key nor an AnnData.
    """
    mod, second = first_modality(data, mod)
    if second is not None and protein is not None:
        msg = "protein= and a second modality in mod= both name the proteins. Leave one out."
        raise OptionError(msg)
    found = second if protein is None else protein
    if found is not None and not PROTEIN_KIND.fits(found):
        msg = f"protein={found!r}: {PROTEIN_KIND.expected}, or None."
        raise OptionError(msg)
    return mod, found


def read_measured(adata: AnnData, protein: str | AnnData | None, layer: str | None) -> Proteins | None:
    """Proteins of the cells, checked; ``None`` where none are named.

    Raises
    ------
    OptionError
        If a layer is named and no proteins.
    """
    if protein is not None:
        return read_proteins(adata, protein, layer)
    if layer is not None:
        msg = f"protein_layer={layer!r} says which layer of the proteins to read, and none are named. Pass protein= with an AnnData, or a MuData with two modalities in mod=."
        raise OptionError(msg)
    return None
