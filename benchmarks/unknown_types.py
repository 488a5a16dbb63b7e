"""Cells of a type that training had none of: are they found? One cell type after the other is left out, several seeds.

All cells of the type that is left out go to the query, with a quarter of the cells of the other types. Each score is to tell the new
cells from those of known types; the area under its ROC curve is 0.5 for a score that cannot. Ours is what `sg.tl.annotate(...,
unknown=...)` writes as novelty; the others are alternatives that it was chosen among, and the highest probability of a logistic
regression on the same genes of the same training cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from benchmarks.harness import begin, parser, results_folder, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

DATA = {
    "Kang": ("kang18_pbmc_ifnb_muscat.h5ad", "cluster_id"),
    "symphony": ("pbmc_3assays_symphony.h5ad", "cell_type"),
}
SEEDS = (0, 1, 2)
MOST_OF_A_TYPE = 120
ERROR_RATE = 0.1
TRAINING = {"max_epochs": 5, "batch_size": 16, "lr": 2e-3, "max_length": 200, "accelerator": "cpu"}
OURS, RIVALS = "novelty (ours)", ("logistic regression", "logistic regression, scaled genes")
SCORES = (OURS, "highest probability", "energy", "distance in the embedding", *RIVALS)


def cells_of(folder: Path | None) -> dict[str, AnnData]:
    """Log-normalised cells with ``obs["type"]``, by the name of the data; the cells that scanpy ships where there are no files."""
    import scanpy as sc

    found = {}
    for name, (file, key) in DATA.items():
        if folder is not None and (folder / file).exists():
            found[name] = sc.read_h5ad(folder / file)
            found[name].obs["type"] = found[name].obs[key].astype(str)
            if name == "Kang":
                sc.pp.normalize_total(found[name], target_sum=1e4)
                sc.pp.log1p(found[name])
    if not found:
        reduced = sc.datasets.pbmc68k_reduced()
        adata = reduced.raw.to_adata()
        adata.obs["type"] = reduced.obs["bulk_labels"].astype(str)
        found["pbmc68k"] = adata
    return found


def some_of_each(types: NDArray[Any], rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of at most ``MOST_OF_A_TYPE`` cells of each type, sorted."""
    drawn = [rng.permutation(np.flatnonzero(types == name))[:MOST_OF_A_TYPE] for name in np.unique(types)]
    return np.sort(np.concatenate(drawn))


def distance(embedding: NDArray[np.float32], of: NDArray[np.float32], types: NDArray[Any]) -> NDArray[np.float64]:
    """Squared Mahalanobis distance to the nearest class, with the covariance that the classes share."""
    names, codes = np.unique(types, return_inverse=True)
    centres = np.stack([embedding[codes == code].mean(axis=0) for code in range(len(names))])
    within = embedding - centres[codes]
    covariance = within.T @ within / len(within)
    covariance += 1e-3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    apart = of[:, None] - centres[None]
    return np.einsum("ijk,kl,ijl->ij", apart, np.linalg.inv(covariance), apart).min(axis=1)


def one_left_out(
    adata: AnnData, left: str, seed: int, training: dict[str, Any]
) -> tuple[dict[str, float], dict[str, float]]:
    """Area under the ROC curve of each score, and what ``unknown=`` did."""
    from scipy.special import logsumexp
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    import scgalore as sg
    from scgalore.data.reading import AS_IT_IS
    from scgalore.tasks.baselines import expression_of

    rng = np.random.default_rng(seed)
    types = adata.obs["type"].to_numpy(dtype=str)
    known = rng.permutation(np.flatnonzero(types != left))
    held, kept = np.split(known, [len(known) // 4])
    held = held[np.isin(types[held], types[kept])]
    reference = adata[np.sort(kept)].copy()
    query = adata[np.concatenate([held, np.flatnonzero(types == left)])].copy()
    model = sg.tl.finetune(
        reference, "scgpt-mini", labels_key="type", validation_size=0.2, test_size=0, rng=seed, **training
    )
    sg.tl.annotate(query, model, unknown=ERROR_RATE, accelerator="cpu", rng=seed)
    train = model.split.train
    truth, learned = query.obs["type"].to_numpy(dtype=str), reference.obs["type"].to_numpy(dtype=str)[train]
    both = {name: expression_of(cells, AS_IT_IS) for name, cells in (("fit", reference), ("of", query))}
    logits = model.run(model.cells(query, rng=seed), accelerator="cpu").heads["classes"]
    logits += model.memory.prior.predict(query, AS_IT_IS)
    embedding = reference.obsm["X_scGPT"][train]
    classifiers = {
        RIVALS[0]: LogisticRegression(C=1.0, max_iter=2000),
        RIVALS[1]: make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000)),
    }
    scores = {
        OURS: query.obs["scgpt_novelty"].to_numpy(),
        "highest probability": -query.obs["scgpt_label_score"].to_numpy(),
        "energy": -logsumexp(logits, axis=1),
        "distance in the embedding": distance(embedding, query.obsm["X_scGPT"], learned),
        **{
            name: -classifier.fit(both["fit"][train], learned).predict_proba(both["of"]).max(axis=1)
            for name, classifier in classifiers.items()
        },
    }
    novel, label = truth == left, query.obs["scgpt_label"].astype(str).to_numpy()
    unknown = label == "unknown"
    labelled = ~novel & ~unknown
    done = {
        "n_new": int(novel.sum()),
        "n_known": int((~novel).sum()),
        "new_unknown": float(unknown[novel].mean()),
        "known_unknown": float(unknown[~novel].mean()),
        "wrong": float((label != truth)[labelled].mean()) if labelled.any() else float("nan"),
        "ece_uncalibrated": model.memory.calibration.error_before,
        "ece": model.memory.calibration.error_after,
    }
    return {name: float(roc_auc_score(novel, values)) for name, values in scores.items()}, done


def runs(adata: AnnData, *, quick: bool) -> Iterator[tuple[str, int, dict[str, float], dict[str, float]]]:
    """One result for each type and seed."""
    training = {**TRAINING, "max_epochs": 1} if quick else TRAINING
    for seed in SEEDS[:1] if quick else SEEDS:
        rows = some_of_each(adata.obs["type"].to_numpy(dtype=str), np.random.default_rng(seed))
        some = adata[rows].copy()
        names = sorted(some.obs["type"].unique())
        for left in names[:2] if quick else names:
            aucs, done = one_left_out(some, left, seed, training)
            say(f"{left}, seed {seed}: {aucs[OURS]:.3f} ({RIVALS[0]} {aucs[RIVALS[0]]:.3f})")
            yield left, seed, aucs, done


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    report = begin("unknown_types", "Cells of a type that training had none of", arguments)
    for data, adata in cells_of(arguments.data).items():
        found = list(runs(adata, quick=arguments.quick))
        names = sorted({left for left, *_ in found})
        by_type = {
            left: {score: np.mean([aucs[score] for of, _, aucs, _ in found if of == left]) for score in SCORES}
            for left in names
        }
        n_new = {left: next(done["n_new"] for of, _, _, done in found if of == left) for left in names}
        rows = [(left, str(n_new[left]), *(f"{by_type[left][score]:.3f}" for score in SCORES)) for left in names]
        mean = {score: float(np.mean([by_type[left][score] for left in names])) for score in SCORES}
        spread = {score: float(np.std([by_type[left][score] for left in names], ddof=1)) for score in SCORES}
        rows.append((f"mean ± sd of {len(names)} types", "", *(f"{mean[s]:.3f} ± {spread[s]:.3f}" for s in SCORES)))
        n_seeds = len({seed for _, seed, *_ in found})
        report.table(
            f"**{data}**: at most {MOST_OF_A_TYPE} cells of each type, {adata.n_vars:,} genes. Area under the ROC curve, mean over "
            f"{n_seeds} seeds.",
            ("type left out", "new cells", *SCORES),
            rows,
        )
        of_runs = {key: float(np.nanmean([done[key] for *_, done in found])) for key in found[0][-1]}
        report.note(
            f"With `unknown={ERROR_RATE}`, mean over the runs: {100 * of_runs['new_unknown']:.0f} % of the new cells and "
            f"{100 * of_runs['known_unknown']:.0f} % of the {of_runs['n_known']:.0f} held-out cells of known types became unknown, and "
            f"{100 * of_runs['wrong']:.1f} % of the labelled cells of known types had a wrong label. Expected calibration error on the "
            f"validation cells: {of_runs['ece_uncalibrated']:.3f} without and {of_runs['ece']:.3f} with the temperature."
        )
        report.measured[data] = {"mean": mean, "sd": spread, "by_type": by_type, "unknown": of_runs}
        rival = max(RIVALS, key=mean.__getitem__)
        report.claim(
            f"{data}: area under the ROC curve of the novelty",
            f"at least that of the highest probability of a {rival}",
            f"{mean[OURS]:.3f} ({mean[rival]:.3f})",
            holds=mean[OURS] >= mean[rival],
        )
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
