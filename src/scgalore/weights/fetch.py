"""Folders of verified files for a name, from the package, the cache or a download."""

import os
from pathlib import Path

from scgalore._fetch import fetch_files
from scgalore._folders import recover_folder
from scgalore._settings import settings
from scgalore.errors import DownloadError, OptionError, WeightsError
from scgalore.weights.hub import HubAddress, fetch_hub, is_hub_address
from scgalore.weights.registry import WeightsEntry, get_entry, list_weights, suggestion

__all__ = ["fetch_weights", "resolve_model_folder"]

BUNDLED = Path(__file__).with_name("bundled")


def fetch_weights(name: str, *, progress: bool | None = None) -> Path:
    """Return the folder of registered weights, downloading files that are missing in the cache.

    All files are verified with their recorded sha256. Valid files are used without network access.

    Parameters
    ----------
    name
        One of :func:`~scgalore.weights.list_weights`.
    progress
        Whether to show a progress bar; ``None`` uses ``sg.settings.progress``.

    Returns
    -------
    Folder for :func:`~scgalore.weights.read_checkpoint`, below ``sg.settings.cachedir`` or inside the package.

    Raises
    ------
    OptionError
        If no weights have this name.
    DownloadError
        If files are missing and cannot be downloaded; the message explains how to provide them manually.

    See Also
    --------
    scgalore.weights.list_weights : List the names of all weights.
    scgalore.weights.bundle : Pack weights for a machine without a network.
    scgalore.weights.read_checkpoint : Read a checkpoint folder of any layout.

    Examples
    --------
    >>> import scgalore as sg
    >>> folder = sg.weights.fetch_weights("scgpt-mini")
    >>> (folder / "model.safetensors").exists()
    True
    """
    return fetch_entry(get_entry(name), progress=progress)


def resolve_model_folder(model: str | os.PathLike[str]) -> tuple[Path, WeightsEntry | None]:
    """Find the folder of a ``model`` argument, and its entry in the registry.

    A registered name always refers to the registered weights, even if the working directory has such a folder; use
    ``"./scgpt"`` for a folder of that name.

    Parameters
    ----------
    model
        Name of registered weights, address on the Hugging Face Hub (``"hf://owner/name"`` or
        ``"hf://owner/name@revision"``), or path of a folder.

    Returns
    -------
    The folder, and its entry: that of the registry, or for a model of the hub a new one, named by its address with the
    commit. ``None`` for other folders.

    Raises
    ------
    OptionError
        If ``model`` is not one of these, or huggingface_hub is required and not installed.
    DownloadError
        If the model is not in the cache and cannot be downloaded.
    WeightsError
        If a downloaded file has another hash than the published one.

    See Also
    --------
    scgalore.weights.fetch_weights : Download registered weights.
    scgalore.model.load : Load a model of any family.

    Examples
    --------
    >>> import scgalore as sg
    >>> folder, entry = sg.weights.resolve_model_folder("scgpt-mini")
    >>> entry.name
    'scgpt-mini'
    """
    if isinstance(model, str) and model in list_weights():
        return fetch_weights(model), get_entry(model)
    if isinstance(model, str) and is_hub_address(model):
        folder, address = fetch_hub(HubAddress.parse(model))
        return folder, WeightsEntry(str(address), "", (), licence="", citation="", homepage="")
    folder = Path(model).expanduser()
    recover_folder(folder)
    if folder.is_dir():
        return folder, None
    if folder.suffix == ".pth" and folder.is_file():
        return folder, None  # scBERT's weights are one file
    if folder.is_file():
        msg = f"model={os.fspath(model)!r} is a file; pass the folder it lies in: model={str(folder.parent)!r}."
        raise OptionError(msg)
    msg = (
        f"model={os.fspath(model)!r} is neither an existing folder nor the name of weights; a model of the Hugging Face Hub is "
        f"'hf://owner/name'. {suggestion(folder.name)}"
    )
    raise OptionError(msg)


def fetch_entry(entry: WeightsEntry, *, progress: bool | None = None) -> Path:
    """Like :func:`fetch_weights`, for an entry that need not be registered."""
    if entry.refusal is not None:
        msg = f"The weights {entry.name!r} cannot be fetched: {entry.refusal}. You can {_by_hand(entry)}"
        raise DownloadError(msg)
    folder = (BUNDLED if entry.bundled else settings.cachedir) / entry.name
    files = [file.remote for file in entry.files]
    if not entry.bundled:
        fetch_files(files, folder, what=f"Weights {entry.name!r}", instead=_by_hand(entry), progress=progress)
    elif bad := [file.name for file in files if not file.is_good(folder / file.name)]:
        msg = f"{bad[0]} of the bundled weights {entry.name!r} is damaged or missing. Install scgalore again."
        raise WeightsError(msg)
    return folder


def _by_hand(entry: WeightsEntry) -> str:
    names = [file.name for file in entry.files] + (["args.json"] if entry.args else [])
    shipped = [f'model="{name}"' for name in list_weights() if get_entry(name).bundled]
    small = (
        f" For a first try, {shipped[0]} is small, ships with the package and needs no connection." if shipped else ""
    )
    return (
        f'pass a folder of your own with {", ".join(names)}: model="/path/to/folder" (source: {entry.homepage}).{small}'
    )
