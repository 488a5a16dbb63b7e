"""Cells mapped to a reference: labels, cells of types that it lacks, and the neighbours among a million cells.

Labels: each assay of symphony's PBMC and each donor of Kang et al. 2018 is the query, the other cells are the reference. Compared are
`sg.tl.map_to_reference` with the bundled weights (made again without the data set) and with weights fine-tuned on the reference, neighbours
in the embedding as it is, neighbours in 50 principal components of expression, with equal votes, and with unit norm and the same weighted votes, and
`sg.tl.annotate` with the fine-tuned model. Fine-tuning is short (``TRAINING``), with the linear model as by default, and without.

Types: one type after the other is left out of the reference, and its cells of the query are to be told from the others by a score.

A million cells: 512 made numbers each (200 types in 30 dimensions, and noise), as embeddings. The same is measured of `pynndescent`, on fewer of them.
Memory is anonymous memory of the process, without the pages of mapped files, which the system takes back when it needs to.
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from benchmarks.classes_floor import data_sets, weights_without
from benchmarks.harness import begin, parser, results_folder, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

K = 15
TRAINING = {"max_epochs": 5, "batch_size": 16, "lr": 2e-3, "max_length": 200, "accelerator": "cpu"}
MAPPED, TRAINED, ALONE = "mapped", "mapped, fine-tuned", "mapped, fine-tuned without linear model"
RAW, PCA, PCA_UNIT, ANNOTATED = "embedding as it is", "PCA", "PCA, unit norm, weighted", "sg.tl.annotate, fine-tuned"
METHODS = (MAPPED, TRAINED, ALONE, RAW, PCA, PCA_UNIT, ANNOTATED)
FEWEST_NEW = 5
OURS = "novelty (ours)"
SCORES = (
    OURS,
    "highest probability",
    "distance, embedding as it is",
    "distance, PCA",
    "novelty of sg.tl.annotate",
)


def queries(folder: Path | None) -> Iterator[tuple[str, str, AnnData, NDArray[np.bool_], bool]]:
    """Title, weights, cells with ``obs["type"]`` and ``obs["batch"]``, which of them are the query, and whether the others have batches."""
    for name, files, adata, cases in data_sets(folder):
        if name not in ("pbmc68k", "Kang", "symphony"):
            continue
        weights = weights_without(name, files, folder) if folder is not None else "scgpt-mini"
        for case, held in cases.items():
            if case.startswith(("assay", "donor")) or (folder is None and held is None):
                query = held if held is not None else np.arange(adata.n_obs) % 5 == 0
                if name == "Kang":
                    adata.obs["batch"] = adata.obs["sample_id"].astype(str).str[-3:]
                yield f"{name}, {case}", weights, adata, query, name == "symphony"


def dense(adata: AnnData) -> Floats:
    """Expression as an array."""
    return np.asarray(adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X, dtype=np.float32)


def components(reference: AnnData, query: AnnData, *, unit: bool) -> tuple[Floats, Floats]:
    """Both in principal components of the reference."""
    from sklearn.decomposition import PCA as Components
    from sklearn.preprocessing import normalize

    found = Components(50, random_state=0).fit(dense(reference))
    both = found.transform(dense(reference)), found.transform(dense(query))
    return tuple(map(normalize, both)) if unit else both  # type: ignore[return-value]


def neighbours(reference: Floats, query: Floats, types: NDArray[Any], *, weighted: bool) -> tuple[NDArray[Any], Floats]:
    """Labels by vote, and mean distances."""
    from sklearn.neighbors import KNeighborsClassifier

    from scgalore.mapping.votes import weights_of

    found = KNeighborsClassifier(K, weights=weights_of if weighted else "uniform").fit(reference, types)
    return found.predict(query), found.kneighbors(query)[0].mean(axis=1)


def scored(label: NDArray[Any], truth: NDArray[Any]) -> tuple[float, float]:
    """Accuracy and macro F1, over the types of the query."""
    from sklearn.metrics import f1_score

    return float((label == truth).mean()), float(f1_score(truth, label, labels=np.unique(truth), average="macro"))


def labels(
    weights: str, adata: AnnData, held: NDArray[np.bool_], training: dict[str, Any], *, batches: bool
) -> tuple[dict[str, Any], dict[str, float]]:
    """Accuracy and macro F1 of each method, and the calibration of the mapping."""
    import scgalore as sg
    from scgalore.tasks.calibration import calibration_error

    reference, query = adata[~held].copy(), adata[held].copy()
    types, truth = (cells.obs["type"].to_numpy(dtype=str) for cells in (reference, query))
    found = {}
    models: dict[str, Any] = {MAPPED: weights}
    for name, prior in ((TRAINED, "linear"), (ALONE, "none")):
        models[name] = sg.tl.finetune(
            reference.copy(), weights, labels_key="type", prior=prior, test_size=0, **training
        )
    for name, model in models.items():
        index = sg.tl.build_reference(reference, model, labels="type", accelerator="cpu")
        sg.tl.map_to_reference(query, index, label_far=True, accelerator="cpu")
        found[name] = query.obs["scgpt_mapped_type"].to_numpy(dtype=str)
        if name == MAPPED:
            probability = query.obs["scgpt_mapped_type_score"].to_numpy()
            calibrated = {
                "left out": index.calibrations["type"].error_after,
                "query": calibration_error(probability, found[name] == truth),
            }
            embedding = query.obsm["X_scGPT"]
    if batches:
        index = sg.tl.build_reference(reference, weights, labels="type", batch_key="batch", accelerator="cpu")
        sg.tl.map_to_reference(query, index, label_far=True, accelerator="cpu")
        probability = query.obs["scgpt_mapped_type_score"].to_numpy()
        calibrated["left out, batch_key"] = index.calibrations["type"].error_after
        calibrated["query, batch_key"] = calibration_error(probability, found[MAPPED] == truth)
    sg.tl.embed(reference, weights, accelerator="cpu")
    found[RAW] = neighbours(reference.obsm["X_scGPT"], embedding, types, weighted=False)[0]
    found[PCA] = neighbours(*components(reference, query, unit=False), types, weighted=False)[0]
    found[PCA_UNIT] = neighbours(*components(reference, query, unit=True), types, weighted=True)[0]
    sg.tl.annotate(query, models[TRAINED], accelerator="cpu")
    found[ANNOTATED] = query.obs["scgpt_label"].to_numpy(dtype=str)
    return {name: scored(label, truth) for name, label in found.items()}, calibrated


def plotted(weights: str, adata: AnnData, held: NDArray[np.bool_]) -> dict[str, float]:
    """How well 15 neighbours in the plane of a UMAP of the reference name query cells: placed by neighbours, and transformed."""
    from umap import UMAP

    import scgalore as sg

    reference, query = adata[~held].copy(), adata[held].copy()
    types, truth = (cells.obs["type"].to_numpy(dtype=str) for cells in (reference, query))
    sg.tl.embed(reference, weights, accelerator="cpu")
    sg.tl.embed(query, weights, accelerator="cpu")
    index = sg.tl.build_reference(reference, weights, labels="type", accelerator="cpu")
    both = [index.space(cells.obsm["X_scGPT"])[0] for cells in (reference, query)]
    fitted = UMAP(n_neighbors=K, random_state=0, n_jobs=1).fit(both[0])
    reference.obsm["X_umap"] = fitted.embedding_
    index = sg.tl.build_reference(reference, weights, labels="type", basis="X_umap", accelerator="cpu")
    sg.tl.map_to_reference(query, index, label_far=True, accelerator="cpu")
    plane = {
        "placed by neighbours": query.obsm["scgpt_mapped_umap"],
        "umap-learn's transform": fitted.transform(both[1]),
    }
    return {
        name: scored(neighbours(fitted.embedding_, at, types, weighted=False)[0], truth)[0]
        for name, at in plane.items()
    }


def left_out(
    weights: str, adata: AnnData, held: NDArray[np.bool_], left: str, *, batches: bool
) -> dict[str, Any] | None:
    """Area under the ROC curve of each score, and the share of new and of known cells that are unknown; ``None`` for too few cells."""
    from sklearn.metrics import roc_auc_score

    import scgalore as sg
    from scgalore.tasks.novelty import Novelty

    types = adata.obs["type"].to_numpy(dtype=str)
    known = np.unique(types[~held & (types != left)])
    reference = adata[~held & (types != left)].copy()
    query = adata[held & np.isin(types, [*known, left])].copy()
    new = (query.obs["type"] == left).to_numpy()
    if new.sum() < FEWEST_NEW:
        return None
    done = {}
    for name, key in {"": None, ", batch_key": "batch"}.items():
        if key is None or batches:
            index = sg.tl.build_reference(reference, weights, labels="type", batch_key=key, accelerator="cpu")
            sg.tl.map_to_reference(query, index, accelerator="cpu")
            unknown = (query.obs["scgpt_mapped_type"] == "unknown").to_numpy()
            done |= {f"new{name}": float(unknown[new].mean()), f"known{name}": float(unknown[~new].mean())}
    sg.tl.embed(reference, weights, accelerator="cpu")
    model = index.model
    names, codes = np.unique(reference.obs["type"].to_numpy(dtype=str), return_inverse=True)
    novelty = Novelty.fit(model.cells(reference), np.arange(reference.n_obs), codes)
    assert novelty is not None
    votes = names[codes]
    scores = {
        OURS: query.obs["scgpt_mapped_novelty"].to_numpy(),
        "highest probability": -query.obs["scgpt_mapped_type_score"].to_numpy(),
        "distance, embedding as it is": neighbours(
            reference.obsm["X_scGPT"], query.obsm["X_scGPT"], votes, weighted=False
        )[1],
        "distance, PCA": neighbours(*components(reference, query, unit=False), votes, weighted=False)[1],
        "novelty of sg.tl.annotate": novelty.of(model.cells(query)),
    }
    return {"area": {name: float(roc_auc_score(new, score)) for name, score in scores.items()}, "done": done}


def made(n: int, d: int, seed: int) -> Floats:
    """Embeddings of made cells, with unit norm."""
    rng, shape = np.random.default_rng(seed), np.random.default_rng(0)
    axes, centres = shape.normal(size=(30, d)).astype(np.float32), shape.normal(size=(200, 30)).astype(np.float32)
    found = np.empty((n, d), dtype=np.float32)
    for start in range(0, n, 8192):
        m = min(8192, n - start)
        inside = centres[rng.integers(0, 200, m)] + 0.5 * rng.normal(size=(m, 30)).astype(np.float32)
        noisy = inside @ axes + 0.5 * rng.normal(size=(m, d)).astype(np.float32)
        found[start : start + m] = noisy / np.linalg.norm(noisy, axis=1, keepdims=True)
    return found


class Anonymous:
    """Most anonymous memory of this process, in bytes, above what it had at the start; looked at twenty times a second."""

    def __enter__(self) -> Anonymous:
        self.start = self.most = self._now()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.added = self.most - self.start

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self.most = max(self.most, self._now())

    @staticmethod
    def _now() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def nearest(queries: Floats, space: Any, embedding: Floats, k: int) -> NDArray[np.int64]:
    """True neighbours, by all products."""
    best, rows = np.full((len(queries), k), -np.inf, np.float32), np.zeros((len(queries), k), np.int64)
    for start in range(0, len(embedding), 8192):
        cosines = queries @ space(embedding[start : start + 8192])[0].T
        near = np.argpartition(cosines, -k, axis=1)[:, -k:]
        every = np.concatenate([best, np.take_along_axis(cosines, near, axis=1)], axis=1)
        numbers = np.concatenate([rows, near + start], axis=1)
        keep = np.argpartition(every, -k, axis=1)[:, -k:]
        best, rows = np.take_along_axis(every, keep, axis=1), np.take_along_axis(numbers, keep, axis=1)
    return rows


def overlap(found: NDArray[np.integer], true: NDArray[np.integer]) -> float:
    """Share of the true neighbours that were found."""
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), true.tolist(), strict=True)]))


def many(n: int, d: int, n_components: int | None, n_queries: int, *, peer: bool) -> dict[str, float]:
    """Build a reference of made cells in a file, query it, and compare with all products."""
    from scgalore.mapping import read_reference, write_reference
    from scgalore.mapping.reference import Cells, Column, Reference
    from scgalore.tl._build_reference import _scratch

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        embedding = np.lib.format.open_memmap(place / "cells.npy", mode="w+", dtype=np.float32, shape=(n, d))
        for start in range(0, n, 100_000):
            embedding[start : start + 100_000] = made(min(100_000, n - start), d, start + 1)
        asked = made(n_queries, d, 0)
        codes = (np.arange(n) % 20).astype(np.int32)
        cells = Cells(np.arange(n).astype("S"), {"type": Column(tuple(map(str, range(20))), codes)})
        about = {"model": {"name": "made"}, "tokens": {}, "keys": {}}
        found: dict[str, float] = {}
        with Anonymous() as memory:
            begin_ = time.perf_counter()
            built = Reference.of_embedding(
                embedding, cells, n_components=n_components, made=about, empty=_scratch(place)
            )
            reference = write_reference(built, place / "reference.h5")
            found |= {"build_s": time.perf_counter() - begin_}
        found |= {"build_bytes": memory.added, "file_bytes": (place / "reference.h5").stat().st_size}
        del built, reference
        with Anonymous() as memory:
            begin_ = time.perf_counter()
            reference = read_reference(place / "reference.h5")
            found["open_s"] = time.perf_counter() - begin_
            begin_ = time.perf_counter()
            neighbors = reference.find(asked)
            reference.probabilities(neighbors, "type")
            found |= {"query_s": time.perf_counter() - begin_}
        found |= {"query_bytes": memory.added, "n_probe": reference.lists.n_probe, "n_lists": reference.lists.n_lists}
        some = reference.space(asked[:200])[0]
        true = nearest(some, reference.space, embedding, 10)
        found["recall"] = overlap(reference.lists.cells[reference.lists.search(some, 10)], true)
        if peer:
            found |= pynndescent(reference.space, embedding, asked, some, true)
        del embedding, reference
    return found


def pynndescent(
    space: Any, embedding: Floats, asked: Floats, some: Floats, true: NDArray[np.int64]
) -> dict[str, float]:
    """The same with a graph of neighbours."""
    from pynndescent import NNDescent

    NNDescent(some, metric="cosine", n_neighbors=15).query(some, k=10)  # compiles
    directions = space(embedding)[0]
    with Anonymous() as memory:
        begin_ = time.perf_counter()
        graph = NNDescent(directions, metric="cosine", n_neighbors=30, random_state=0, n_jobs=1)
        graph.prepare()
        built = time.perf_counter() - begin_
        begin_ = time.perf_counter()
        graph.query(space(asked)[0], k=15)
        queried = time.perf_counter() - begin_
    recall = overlap(graph.query(some, k=10)[0], true)
    return {"peer_build_s": built, "peer_query_s": queried, "peer_bytes": memory.added, "peer_recall": recall}


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    report = begin("mapping", "Cells mapped to a reference", arguments)
    cases = list(queries(None if arguments.quick else arguments.data))
    training = {**TRAINING, "max_epochs": 1} if arguments.quick else TRAINING
    every, calibrated, rows = [], [], []
    for title, weights, adata, held, batches in cases:
        found, errors = labels(weights, adata, held, training, batches=batches)
        every.append(found)
        calibrated.append(errors)
        rows.append((title, int(held.sum()), *(f"{found[m][0]:.3f} / {found[m][1]:.3f}" for m in METHODS)))
        say(" | ".join(map(str, rows[-1])))
    mean = {m: np.mean([found[m] for found in every], axis=0) for m in METHODS}
    rows.append(("mean", "", *(f"{mean[m][0]:.3f} / {mean[m][1]:.3f}" for m in METHODS)))
    report.table("Labels of the query: accuracy / macro F1.", ("query", "cells", *METHODS), rows)
    of_part = {
        part: np.mean([errors[part] for errors in calibrated if part in errors])
        for part in dict.fromkeys(part for errors in calibrated for part in errors)
    }
    shown = ", ".join(f"{part}: {error:.3f}" for part, error in of_part.items())
    report.note(
        "Expected calibration error of the mapping with the bundled weights, of cells of the reference that were left out and of the query, mean over "
        f"the queries (with batch_key: over those whose reference has batches): {shown}."
    )
    report.measured["calibration"] = dict(of_part)
    in_plane = [plotted(weights, adata, held) for _, weights, adata, held, batches in cases if batches]
    if in_plane:
        shown = ", ".join(f"{name} {np.mean([one[name] for one in in_plane]):.3f}" for name in in_plane[0])
        report.note(
            f"Accuracy of {K} neighbours in the plane of a UMAP of the reference, mean over {len(in_plane)} queries: {shown}."
        )
        report.measured["plane"] = in_plane
    report.measured["labels"] = {title: found for (title, *_), found in zip(cases, every, strict=True)}
    report.claim(
        "mean accuracy of the mapping",
        "at least that of neighbours in principal components",
        f"{mean[MAPPED][0]:.3f} ({mean[PCA][0]:.3f}; with unit norm and weights {mean[PCA_UNIT][0]:.3f})",
        holds=bool(mean[MAPPED][0] >= max(mean[PCA][0], mean[PCA_UNIT][0])),
    )
    areas: dict[str, list[dict[str, float]]] = {}
    done: dict[str, list[dict[str, float]]] = {}
    for title, weights, adata, held, batches in cases:
        for type_ in np.unique(adata.obs["type"].to_numpy(dtype=str))[: 2 if arguments.quick else None]:
            result = left_out(weights, adata, held, type_, batches=batches)
            if result is not None:
                say(f"{title}, {type_}: {result['area'][OURS]:.3f}")
                areas.setdefault(title, []).append(result["area"])
                done.setdefault(title.partition(",")[0], []).append(result["done"])
    rows = [
        (title, len(some), *(f"{np.mean([one[s] for one in some]):.3f}" for s in SCORES))
        for title, some in areas.items()
    ]
    flat = [one for some in areas.values() for one in some]
    rows.append(("all", len(flat), *(f"{np.mean([one[s] for one in flat]):.3f}" for s in SCORES)))
    report.table(
        f"A type left out of the reference: area under the ROC curve, means over the types of which the query has at least {FEWEST_NEW} cells.",
        ("query", "types", *SCORES),
        rows,
    )
    keys = ("new", "known", "new, batch_key", "known, batch_key")
    shares = {
        name: {key: np.mean([one[key] for one in some]) for key in keys if key in some[0]}
        for name, some in done.items()
    }
    report.table(
        "Share of the cells that became unknown, mean over types and queries.",
        ("data", "new cells", "known cells", "new cells, batch_key", "known cells, batch_key"),
        [(name, *(f"{of[key]:.2f}" if key in of else "" for key in keys)) for name, of in shares.items()],
    )
    report.measured["left out"] = {"area": areas, "unknown": shares}
    area = {s: float(np.mean([one[s] for one in flat])) for s in SCORES}
    rival = max(SCORES[1:], key=area.__getitem__)
    report.claim(
        "mean area under the ROC curve of the novelty",
        "reported",
        f"{area[OURS]:.3f} ({rival}: {area[rival]:.3f})",
        holds=None,
    )
    n, n_queries = (20_001, 500) if arguments.quick else (1_000_000, 10_000)
    sizes = [(n, 512, None, False), (n, 512, 50, False), (n // 10, 512, None, True), (n // 10, 512, 50, True)]
    found_of = {}
    for n_cells, d, n_components, peer in sizes:
        name = f"{n_cells:,} x {d}, {n_components or d} axes"
        found_of[name] = many(n_cells, d, n_components, n_queries, peer=peer)
        say(f"{name}: {found_of[name]}")
    mb = 1e6
    rows = []
    for name, f in found_of.items():
        of = f"{f['n_probe']:.0f} of {f['n_lists']:.0f}"
        rows.append(
            (
                name,
                f"{f['build_s']:.0f}",
                f"{f['build_bytes'] / mb:,.0f}",
                f"{f['file_bytes'] / mb:,.0f}",
                f"{f['open_s']:.2f}",
            )
            + (f"{f['query_s']:.1f}", f"{f['query_bytes'] / mb:,.0f}", of, f"{f['recall']:.3f}")
        )
        if "peer_recall" in f:
            size = f"{f['peer_bytes'] / mb:,.0f}"
            numbers = (
                f"{f['peer_build_s']:.0f}",
                size,
                "",
                "",
                f"{f['peer_query_s']:.1f}",
                size,
                "",
                f"{f['peer_recall']:.3f}",
            )
            rows.append((f"{name}, pynndescent, in memory", *numbers))
    columns = ("cells", "build, s", "memory, MB", "file, MB", "open, s", f"{n_queries:,} queries, s", "memory, MB")
    report.table("Made embeddings.", (*columns, "lists looked at", "recall at 10"), rows)
    report.measured["many"] = found_of
    first = next(iter(found_of.values()))
    report.claim(
        "recall at 10 of a million cells, 512 axes",
        "at least 0.95",
        f"{first['recall']:.3f}",
        holds=first["recall"] >= 0.95,
    )
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
