"""Registry of model families. To add one, add a :class:`~scgalore.model.family.Family` to :data:`FAMILIES`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scgalore._keys import CellKeys
from scgalore.model.adapter_files import is_adapter_folder
from scgalore.model.files import family_of
from scgalore.model.loading import load_model
from scgalore.model.scbert import SCBERT_FAMILY
from scgalore.model.scgpt import SCGPT_FAMILY
from scgalore.weights import get_entry, list_weights

if TYPE_CHECKING:
    from scgalore._typing import PathLike
    from scgalore.model.cell_model import CellModel
    from scgalore.model.family import Family

__all__ = ["FAMILIES", "known_keys", "load"]

FAMILIES: dict[str, Family] = {family.name: family for family in (SCGPT_FAMILY, SCBERT_FAMILY)}


def load(model: PathLike = "scgpt", *, base: PathLike | None = None) -> CellModel:
    """Load a model of any family.

    Parameters
    ----------
    model
        Name in the registry (:func:`scgalore.weights.list_weights`); address on the Hugging Face Hub, ``"hf://owner/name"``
        or ``"hf://owner/name@revision"``, where a revision is a branch, a tag or a commit; or folder: one that ``save`` or
        ``save_adapter`` of a model wrote, or one in the layout of a family's authors.
    base
        Location of the base weights of an adapter, if it differs from the one recorded in its folder.

    Returns
    -------
    A model of its family's class, such as :class:`scgalore.model.SCGPT`, in evaluation mode, on the CPU.

    Raises
    ------
    OptionError
        If ``model`` is neither a name nor an address nor a folder.
    WeightsError
        If files are missing, damaged or not those that were published, or the model was trained for a task that is not
        registered.
    DownloadError
        If the weights are not downloaded and cannot be.

    See Also
    --------
    scgalore.weights.list_weights : List the names of all weights.
    scgalore.model.CellModel : Methods of all models.

    Examples
    --------
    >>> import scgalore as sg
    >>> type(sg.model.load("scgpt-mini")).__name__
    'SCGPT'
    """
    return load_model(model, base=base, families=FAMILIES)


def known_keys(model: PathLike | CellModel, uns: str, key_added: str | None = None) -> CellKeys | None:
    """Names of the slots of a model's results, without loading it; ``None`` if its family is unknown before loading.

    Parameters
    ----------
    model
        Name, folder or model.
    uns, key_added
        As for :meth:`scgalore.model.CellModel.keys`.
    """
    family = model.family if hasattr(model, "family") else _family_of(model)
    if family is None:
        return None
    return CellKeys.from_key_added(key_added, uns=uns, embedding=family.embedding, stem=family.stem)


def _family_of(model: PathLike) -> Family | None:
    if isinstance(model, str) and model in list_weights():
        return FAMILIES.get(get_entry(model).family)
    folder = Path(model).expanduser()
    return family_of(folder, FAMILIES) if folder.exists() and not is_adapter_folder(folder) else None
