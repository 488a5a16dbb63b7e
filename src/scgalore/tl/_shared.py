"""Steps shared by the functions of this subpackage: find the model, check the object, record provenance."""

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
"""Layouts of weights that are not stored in a file."""

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
    """Return a model as it is, or load it from a name or folder."""
    if isinstance(model, CellModel):
        return model
    if isinstance(model, str | os.PathLike):
        return load(model)
    msg = f"model is a {type(model).__name__}; pass a name, a folder, or a model such as scgalore.model.SCGPT."
    raise OptionError(msg)


def model_of_reference(reference: Reference, model: str | os.PathLike[str] | CellModel | None) -> CellModel:
    """Return the model a reference was built with: the one passed, in memory, or found by name or folder.

    Raises
    ------
    OptionError
        If the model is another one, or cannot be found.
    """
    made = reference.made["model"]
    if model is None and reference.model is not None:
        found = reference.model
    elif model is None and made["layout"] in IN_MEMORY:
        msg = (
            f"The reference was built with {made['name']!r}, a model that was only in memory. Pass it as model=, or the folder "
            "it was saved to."
        )
        raise OptionError(msg)
    elif model is None:
        try:
            found = load(made["name"])
        except (OptionError, WeightsError, OSError) as error:
            msg = f"The reference was built with {made['name']!r}, which cannot be loaded. {error} Pass that model as model=."
            raise OptionError(msg) from error
    else:
        found = as_model(model)
    if (identity := found.embedding_identity) != made["identity"]:
        msg = (
            f"The reference was built with {made['name']!r} (weights {made['identity']}), but this is {found.provenance['name']!r} (weights "
            f"{identity}); embeddings of different models cannot be compared. Pass the model of the reference, or build a reference with this model."
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
    """Embeddings of genes in each group of cells, float32 ``(n_groups, n_genes, d)``, and the number of cells of each.

    Parameters
    ----------
    model, cells
        The model and its input cells.
    columns
        Columns of the matrix that have a token.
    groups, n_groups
        Index of the group of each cell, -1 for none, and the number of groups.
    kind
        ``"contextual"``, or ``"static"``, which are the same in all groups.
    options
        Device, precision and batch size.
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
    """Learned embeddings of tokens, before values are added, float32 ``(n, d)``."""
    network = model.network
    ids = torch.from_numpy(tokens).to(network.gene_table.weight.device)
    return network.gene_embeddings(ids).float().cpu().numpy()


def refuse_conditions(fitted: CellModel) -> None:
    """Raise an error for networks that need more input than the expression of a cell, for in-silico perturbations.

    Raises
    ------
    OptionError
        If the network reads perturbation flags, or normalises within batches.
    """
    name = fitted.provenance["name"]
    if fitted.network.reads_flags:
        msg = (
            f"{name!r} was trained on a perturbation screen and reads perturbation flags; expected a model that was not. "
            "To predict perturbations of your cells with it: adata.obs['perturbation'] = 'control'; "
            "sg.tl.predict_perturbation(adata, genes, model=model, pert_key='perturbation')."
        )
        raise OptionError(msg)
    if fitted.network.reads_batches:
        msg = f"{name!r} normalises its input within each sequencing batch, which is unknown for these cells. Pass a model that does not, such as 'scgpt'."
        raise OptionError(msg)


def provenance(model: CellModel, cells: TokenCells) -> dict[str, Any]:
    """Weights, version and genes behind a result, for ``uns``."""
    return {"weights": dict(model.provenance), "version": __version__, "genes": cells.genes_report()}


def measured_proteins(
    data: Data, mod: str | Sequence[str], protein: str | AnnData | None
) -> tuple[str, str | AnnData | None]:
    """Find the modality with the RNA, and the proteins: ``protein``, or the second modality.

    Raises
    ------
    OptionError
        If both are given, or ``protein`` is neither a key nor an AnnData.
    """
    mod, second = first_modality(data, mod)
    if second is not None and protein is not None:
        msg = "protein= and a second modality in mod= both specify the proteins. Omit one."
        raise OptionError(msg)
    found = second if protein is None else protein
    if found is not None and not PROTEIN_KIND.fits(found):
        msg = f"protein={found!r}: {PROTEIN_KIND.expected}, or None."
        raise OptionError(msg)
    return mod, found


def read_measured(adata: AnnData, protein: str | AnnData | None, layer: str | None) -> Proteins | None:
    """Read and check the proteins of the cells; ``None`` if none are given.

    Raises
    ------
    OptionError
        If a layer is given without proteins.
    """
    if protein is not None:
        return read_proteins(adata, protein, layer)
    if layer is not None:
        msg = f"protein_layer={layer!r} needs proteins, but none are given. Pass protein= with an AnnData, or a MuData with two modalities in mod=."
        raise OptionError(msg)
    return None
