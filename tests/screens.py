"""Small perturbation screens, and predictions of them in the form that ``sg.tl.predict_perturbation`` writes."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scgalore.perturb.baselines.effects import fit_rule
from scgalore.perturb.labels.profiles import Profiles
from scgalore.perturb.labels.screen import Screen
from scgalore.perturb.predictions.prediction import Prediction

SINGLES = ("G00", "G01", "G02", "G03", "G04", "G05")
DOUBLES = ("G00+G01", "G02+G03", "G01+G04")
TEST = ("G04", "G05", "G00+G01", "G02+G03")


def screen(
    *, n_cells: int = 20, n_control: int = 40, n_genes: int = 40, contexts: Sequence[str] = ("",), seed: int = 0
) -> AnnData:
    """Log-normalised counts of singles and doubles with additive effects; four perturbations are held out."""
    rng = np.random.default_rng(seed)
    names = ["control", *SINGLES, *DOUBLES]
    base = rng.gamma(1.0, 2.0, n_genes)
    effects = {name: rng.normal(0, 0.7, n_genes) * (rng.random(n_genes) < 0.3) for name in SINGLES}
    labels, of_context, rows = [], [], []
    for k, context in enumerate(contexts):
        shift = rng.normal(0, 0.2 * k, n_genes)
        for name in names:
            effect = sum((effects[gene] for gene in name.split("+") if gene in effects), np.zeros(n_genes)) + shift
            n = n_control if name == "control" else n_cells
            rows.append(rng.poisson(base * np.exp(effect), (n, n_genes)))
            labels += [name] * n
            of_context += [context] * n
    counts = np.concatenate(rows).astype(np.float64)
    x = sp.csr_matrix(np.log1p(counts * (100 / np.maximum(counts.sum(axis=1, keepdims=True), 1))))
    obs = pd.DataFrame({"perturbation": pd.Categorical(labels), "cell_line": pd.Categorical(of_context)})
    obs["split"] = pd.Categorical(np.where(np.isin(labels, TEST), "test", "train"))
    obs.index = [f"cell{i}" for i in range(len(obs))]
    return AnnData(x, obs=obs, var=pd.DataFrame(index=[f"G{i:02d}" for i in range(n_genes)]))


def screen_of(adata: AnnData, *, contexts: bool = False, split: bool = True) -> Screen:
    return Screen.from_adata(
        adata,
        pert_key="perturbation",
        context_key="cell_line" if contexts else None,
        split_key="split" if split else None,
    )


def profiles_of(adata: AnnData, part: str, *, contexts: bool = False) -> Profiles:
    return screen_of(adata, contexts=contexts).profiles(part)


def prediction_of(adata: AnnData, rule: str = "ridge", *, contexts: bool = False) -> Prediction:
    """What a rule that saw the training cells says of the held-out perturbations."""
    real = profiles_of(adata, "test", contexts=contexts)
    fitted = fit_rule(rule, profiles_of(adata, "train", contexts=contexts))
    pairs = zip(real.perturbed, real.contexts, strict=True)
    effects = np.array([fitted.predict(genes, real.context_names[c]) for genes, c in pairs])
    rows = pd.DataFrame(
        {
            "perturbation": real.perturbations,
            "context": [real.context_names[c] for c in real.contexts],
            "group": ["combo_seen2" if "+" in name else "unseen_single" for name in real.perturbations],
        },
        index=real.labels,
    )
    return Prediction(tuple(adata.var_names), rows, real.controls + effects, effects)


def write_prediction(
    adata: AnnData, rule: str = "ridge", *, key: str = "predict_perturbation", contexts: bool = False
) -> None:
    made = prediction_of(adata, rule, contexts=contexts)
    adata.uns[key] = {
        "params": {
            "pert_key": "perturbation",
            "control": "control",
            "context_key": "cell_line" if contexts else None,
            "batch_key": None,
            "separator": None,
            "layer": None,
            "gene_symbols": None,
            "split_key": "split",
            "rng": 0,
        },
        "means": pd.DataFrame(made.means.T.astype(np.float32), adata.var_names, made.rows.index),
        "effects": pd.DataFrame(made.effects.T.astype(np.float32), adata.var_names, made.rows.index),
        "rows": made.rows,
        "weights": {"name": rule, "sha256": ""},
        "version": "0",
    }
