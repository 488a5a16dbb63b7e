"""Build references that queries are mapped to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np

from scgalore import __version__
from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._folders import refuse_unwritable, writing
from scgalore._keys import MappingKeys
from scgalore._options import is_whole
from scgalore._rng import seed_from
from scgalore.data.columns import read_column
from scgalore.data.labels import class_codes, class_colors, in_order
from scgalore.data.reading import Reading
from scgalore.data.resolve import cells_of, refuse_elsewhere, resolve_adata
from scgalore.data.texts import looks_missing, texts_of
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.mapping.files import read_reference, write_reference
from scgalore.mapping.reference import FEWEST_LEFT_OUT, Cells, Column, Reference, distinct
from scgalore.mapping.space import blocks
from scgalore.model.inference import RunOptions
from scgalore.tl._shared import IN_MEMORY, as_model, model_of_reference
from scgalore.weights import list_weights
from scgalore.weights.hub import is_hub_address

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore._typing import Data, PathLike, Rng
    from scgalore.data.cells import TokenCells
    from scgalore.model import CellModel

N_EMBEDDED = 65_536
"""Number of cells whose embeddings are in memory at once."""


@shared_parameters
def build_reference(
    sources: Data | PathLike | Sequence[Data | PathLike],
    model: PathLike | CellModel | None = None,
    *,
    labels: str | Sequence[str] | None = None,
    batch_key: str | None = None,
    basis: str | None = None,
    path: PathLike | None = None,
    extend: PathLike | Reference | None = None,
    n_neighbors: int = 15,
    n_components: int | None = 50,
    layer: str | None = None,
    gene_symbols: str | None = None,
    data_type: str | None = None,
    species: str = "human",
    min_matched: float | None = None,
    mod: str = "rna",
    max_length: int | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    accelerator: str | None = None,
    devices: int | str | None = None,
    rng: Rng = 0,
) -> Reference:
    """Build a reference of labelled cells for :func:`scgalore.tl.map_to_reference`.

    Cells are embedded by one model. Embeddings are centred, projected to principal axes, each divided by the square
    root of its standard deviation, and compared by cosine distance. Some cells of the reference are held out and mapped
    to the others, to calibrate label probabilities and to measure the usual distance of a reference cell from its
    neighbours.

    Parameters
    ----------
    sources
        Cells with labels: an AnnData, a MuData with the modality ``mod``, the path of an ``.h5ad`` file, or a list of
        these. They may have different genes. Files and backed objects are read in blocks.
    model
        Name in the registry of weights, folder of a checkpoint, or a model; a fine-tuned one works best. May be omitted
        with ``extend``. A model that was not saved has to be passed again to :func:`scgalore.tl.map_to_reference` when
        the reference is read from a file.
    labels
        Columns of ``obs`` with labels to transfer, such as ``["cell_type", "tissue"]``.
    batch_key
        Column of ``obs`` with the batch of each cell, such as its donor or assay. Held-out cells are then mapped to
        cells of other batches, so that the measured accuracy holds for a query from a new batch. A model that removes
        batch effects (``task="integration"``) reads this column too, or the one it was trained with, and embeds each
        source at once.
    basis
        Key of ``obsm`` with two-dimensional coordinates, such as ``"X_umap"``, into which queries are placed.
    path
        File to write the reference to, completely or not at all. By default it is kept in memory.
    extend
        Reference, or path of one, to which the cells are added. It must have been built with the same model,
        ``labels``, ``batch_key`` and ``basis``, which may be omitted. Axes are kept, and calibration is repeated. A
        reference in a file is replaced by the larger one, unless ``path`` names another file.
    n_neighbors
        Number of neighbours used for voting.
    n_components
        Maximum number of principal axes; ``None`` keeps all.
    {layer}
    {gene_symbols}
    {data_type}
    {species}
    {min_matched}
    {mod}
    max_length
        Maximum number of tokens per cell; the genes of longer cells are sampled, using ``rng``. The same limit applies
        to queries. ``None`` uses the length the weights were trained with.
    {precision}
    {batch_size}
    {batch_tokens}
    {accelerator}
    {devices}
    {rng}

    Returns
    -------
    The reference. With ``path``, its large arrays stay in the file, and memory grows by only about 60 bytes per cell;
    while it is built, embeddings are stored on the disk of ``path``, 4 bytes per number.

    Raises
    ------
    MissingKeyError
        If a column, ``basis``, ``layer`` or ``mod`` does not exist.
    DataError
        If a label is missing, no gene matches, or the matrix contains neither counts nor log-normalised values (raised
        before cells are embedded); or if a cell would be in the reference twice, with the same name and embedding.
        Nothing is written.
    OptionError
        If an option is out of range, ``path`` exists, or ``extend`` was built with another model.

    See Also
    --------
    scgalore.tl.map_to_reference : Transfer labels from a reference.
    scgalore.tl.annotate : Predict labels or values of new cells.

    Examples
    --------
    >>> import scanpy as sc, scgalore as sg
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> index = sg.tl.build_reference(adata[::2].copy(), "scgpt-mini", labels=["bulk_labels"])
    >>> query = adata[1::2].copy()
    >>> sg.tl.map_to_reference(query, index)
    >>> index.labels
    ('bulk_labels',)
    """
    seed = seed_from(rng)
    reading = Reading(layer, gene_symbols, data_type, None, species, min_matched)
    how: dict[str, Any] = {
        "precision": precision,
        "batch_size": batch_size,
        "batch_tokens": batch_tokens,
        "accelerator": accelerator,
        "devices": devices,
    }
    RunOptions.of(**how)  # raises before anything is read
    _check_number("n_neighbors", n_neighbors)
    if n_components is not None:
        _check_number("n_components", n_components)
    base = read_reference(extend) if isinstance(extend, str | os.PathLike) else extend
    if base is not None and not isinstance(base, Reference):
        msg = f"extend is a {type(base).__name__}; expected a reference or its path."
        raise OptionError(msg)
    asked = {"labels": _listed(labels), "batch_key": batch_key, "basis": basis}
    keys: dict[str, Any] = asked if base is None else _same_keys(base, asked)
    if keys["labels"]:
        _check_names(keys["labels"])
    else:
        msg = "labels= is empty. Pass the columns of obs with labels to transfer, such as labels=['cell_type']."
        raise OptionError(msg)
    target = _target(path, base)
    atlas = [_resolved(one, mod, keys, gene_symbols) for one in _sources(sources)]
    columns = _read_cells(atlas, keys)
    fitted = _model(model, base)
    tokens = {"max_length": max_length, "rng": seed} if base is None else dict(base.made["tokens"])
    n_obs = sum(adata.n_obs for adata in atlas)
    with logg.step(f"building a reference of {n_obs:,} cells with {fitted.provenance['name']}"):
        _warn_of_correction(fitted)
        known = _record_of_model(fitted) if base is None else base.made["model"]
        if target is not None and known["layout"] in IN_MEMORY:
            logg.warning(
                f"{known['name']!r} exists only in memory, so the reference file cannot refer to it. Either save it with model.save(folder) and "
                "build with model=folder, or pass the model to sg.tl.map_to_reference as well."
            )
        parts = [fitted.cells(adata, **reading.of_tokens(), **tokens) for adata in atlas]
        columns = replace(columns, genes=distinct(part.measured_genes() for part in parts))
        empty = _scratch(target)
        embedding = _embedded(fitted, parts, atlas, reading, keys["batch_key"], empty, how)
        if base is None:
            made = {
                "model": known,
                "tokens": tokens,
                "keys": keys,
                "n_components": n_components,
                "version": __version__,
            }
            sizes: dict[str, Any] = {"n_neighbors": n_neighbors, "n_components": n_components}
            found = Reference.of_embedding(embedding, columns, **sizes, made=made, rng=seed, empty=empty)
        else:
            found = base.extended(embedding, columns, rng=seed, empty=empty)
        _report(found)
        found = replace(found, model=fitted)
        return found if target is None else write_reference(found, target)


def _check_number(name: str, value: object) -> None:
    if not is_whole(value, 1):
        msg = f"{name}={value!r}: it must be a whole number, at least 1."
        raise OptionError(msg)


def _listed(labels: str | Sequence[str] | None) -> list[str] | None:
    if labels is None:
        return None
    return [labels] if isinstance(labels, str) else list(labels)


def _check_names(labels: Sequence[str]) -> None:
    """Raise an error if results of two columns would have the same name."""
    for slot, names in MappingKeys.from_key_added(None, tuple(labels)).slots.items():
        if twice := {name for name in names if names.count(name) > 1}:
            msg = f"labels={list(labels)}: two results of a query would both be named {min(twice)!r} in {slot}. Rename a column."
            raise OptionError(msg)


def _same_keys(base: Reference, asked: dict[str, Any]) -> dict[str, Any]:
    """Keys of the reference; keys that were passed must agree with them."""
    keys = dict(base.made["keys"])
    for name, value in asked.items():
        if value is not None and value != keys[name]:
            msg = f"{name}={value!r}, but the reference to extend was built with {name}={keys[name]!r}. Omit it, or build a new reference."
            raise OptionError(msg)
    return keys


def _target(path: PathLike | None, base: Reference | None) -> Path | None:
    """Resolve the file to write to, if any."""
    if path is None:
        return None if base is None else base.path
    target = Path(path).expanduser().absolute()
    if target.exists() and (base is None or target != base.path):
        msg = f"path={str(path)!r} already exists. Pass another path, or delete it."
        raise OptionError(msg)
    if not target.parent.is_dir():
        msg = f"path={str(path)!r}: the folder {target.parent} does not exist. Create it first."
        raise OptionError(msg)
    refuse_unwritable(target.parent, "path")
    return target


def _sources(sources: Any) -> list[Any]:
    listed = list(sources) if isinstance(sources, Sequence) and not isinstance(sources, str) else [sources]
    if not listed:
        msg = "No cells to build a reference from. Pass an AnnData, the path of an .h5ad file, or a list of these."
        raise OptionError(msg)
    return listed


def _resolved(one: Any, mod: str, keys: dict[str, Any], gene_symbols: str | None) -> AnnData:
    if isinstance(one, str | os.PathLike):
        return cells_of(str(Path(one).expanduser()), "sources")
    adata = resolve_adata(one, mod=mod)
    obs = {"batch_key": keys["batch_key"], **{f"labels[{i}]": name for i, name in enumerate(keys["labels"])}}
    refuse_elsewhere(one, mod=mod, obs=obs, gene_symbols=gene_symbols)
    return adata


def _read_cells(atlas: list[AnnData], keys: dict[str, Any]) -> Cells:
    """Names, labels, batches and coordinates of all cells."""
    labels = {name: _column(atlas, name, "labels") for name in keys["labels"]}
    batches = None if keys["batch_key"] is None else _column(atlas, keys["batch_key"], "batch_key")
    if batches is not None and len(batches.classes) < 2:
        msg = f"batch_key={keys['batch_key']!r}: all cells are in one batch, {batches.classes[0]!r}. Omit batch_key=."
        raise DataError(msg)
    at = None if keys["basis"] is None else np.concatenate([_coordinates(adata, keys["basis"]) for adata in atlas])
    names = np.concatenate([np.char.encode(adata.obs_names.to_numpy(dtype=str), "utf-8") for adata in atlas])
    return Cells(names, labels, batches, at)


def _column(atlas: list[AnnData], key: str, asked: str) -> Column:
    """Read a column of obs of all cells, as classes."""
    found = [read_column(adata.obs, key, asked=asked) for adata in atlas]
    for number, column in enumerate(found):
        texts = texts_of(column)
        missing = np.array([text is None or looks_missing(text) for text in texts], dtype=bool)
        if missing.any():
            where = f"adata.obs[{key!r}]" + (f" of source {number}" if len(found) > 1 else "")
            msg = (
                f"{missing.sum():,} of {len(column):,} cells have no label in {where}. Exclude them with "
                f"adata[adata.obs[{key!r}].notna()], or label them."
            )
            raise DataError(msg)
    of_all = np.concatenate([texts_of(column) for column in found])
    categories = {_categories(column) for column in found}
    classes = in_order(of_all) if len(categories) > 1 or None in categories else categories.pop()
    assert classes is not None
    there = set(of_all)
    classes = tuple(name for name in classes if name in there)
    colors = None if len(atlas) > 1 else class_colors(atlas[0], key, classes)
    codes = np.concatenate([class_codes(column, classes) for column in found]).astype(np.int32)
    return Column(classes, codes, None if colors is None else tuple(colors.tolist()))


def _categories(column: Any) -> tuple[str, ...] | None:
    return tuple(texts_of(column.cat.categories)) if hasattr(column, "cat") else None


def _coordinates(adata: AnnData, basis: str) -> NDArray[np.float32]:
    if basis not in adata.obsm:
        msg = f"basis={basis!r} is not a key of adata.obsm, which has {list(adata.obsm)}. Compute it first, for example with sc.tl.umap."
        raise MissingKeyError(msg)
    at = np.asarray(adata.obsm[basis], dtype=np.float32)
    if at.ndim != 2 or at.shape[1] != 2 or not np.isfinite(at).all():
        msg = f"adata.obsm[{basis!r}] has shape {at.shape}; expected two finite coordinates per cell."
        raise DataError(msg)
    return at


def _model(model: PathLike | CellModel | None, base: Reference | None) -> CellModel:
    if base is not None:
        return model_of_reference(base, model)
    if model is None:
        msg = "model= is missing. Pass a name from sg.weights.list_weights(), a folder, or a fine-tuned model."
        raise OptionError(msg)
    return as_model(model)


def _record_of_model(model: CellModel) -> dict[str, Any]:
    """Record of the model in a reference: its location, as an absolute path, and its identity."""
    known: dict[str, Any] = {**model.provenance, "identity": model.embedding_identity}
    is_folder = known["name"] not in list_weights() and not is_hub_address(known["name"])
    if known["layout"] not in IN_MEMORY and is_folder:
        known["name"] = str(Path(known["name"]).absolute())
    return known


def _warn_of_correction(model: CellModel) -> None:
    """Warn if the network was trained to correct a linear model: its embedding need not separate the classes."""
    trained = model.result is not None and (model.result.best_epoch is None or model.result.best_epoch >= 0)
    if trained and getattr(model.memory, "prior", None) is not None:
        logg.warning(
            "The network of this model was trained to correct a linear model, so cells of one type need not be close to each other in its "
            "embedding. For a reference, fine-tune with prior='none', or use the model before fine-tuning."
        )


def _embedded(
    model: CellModel,
    parts: list[TokenCells],
    atlas: list[AnnData],
    reading: Reading,
    batch_key: str | None,
    empty: Any,
    how: dict[str, Any],
) -> NDArray[np.float32]:
    """Embed all cells in blocks; a whole source at once if batch effects are estimated from its cells."""
    embedding, start = empty((0, 0), np.float32), 0
    for part, adata in zip(parts, atlas, strict=True):
        for rows in blocks(part.n_obs, part.n_obs if model.knows_batches else N_EMBEDDED):
            if model.knows_batches:
                found = model.embed(part, adata, reading, batch_key=batch_key, **how).embedding
            else:
                found = model.run(part, rows=np.arange(rows.start, rows.stop), **how).embedding
            if not len(embedding):
                embedding = empty((sum(part.n_obs for part in parts), found.shape[1]), np.float32)
            embedding[start + rows.start : start + rows.stop] = found
        start += part.n_obs
    return embedding


def _scratch(target: Path | None) -> Any:
    """Return a function that makes empty arrays, in memory or in a temporary file next to the target."""
    if target is None:
        return np.empty

    def empty(shape: tuple[int, int], dtype: Any) -> NDArray[Any]:
        n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if n_bytes == 0:
            return np.empty(shape, dtype)
        with writing(target), TemporaryFile(dir=target.parent) as file:
            # Allocating the file here raises an error on a full disk; writing to the map would end in a signal.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            else:
                file.truncate(n_bytes)
            return np.memmap(file, dtype=dtype, mode="r+", shape=shape)

    return empty


def _report(found: Reference) -> None:
    for name, calibration in found.calibrations.items():
        logg.info(
            f"    {name}: {100 * found.accuracies[name]:.1f} % of held-out reference cells get the right label, with an "
            f"expected calibration error of {calibration.error_after:.3f}"
        )
    if found.lists.n_lists > 1:
        logg.info(
            f"    {found.lists.n_lists:,} lists, {found.lists.n_probe} searched per query: {100 * found.lists.recall:.1f} % of "
            "the true neighbours found in a sample of cells"
        )
    if found.gap_threshold is None:
        logg.warning(
            f"The reference has {found.n_obs:,} cells; at least {FEWEST_LEFT_OUT + 1} are needed to detect query cells that are far from it."
        )
