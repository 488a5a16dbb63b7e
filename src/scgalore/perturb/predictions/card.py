"""Model card of a perturbation model, filled in from its training run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

__all__ = ["model_card", "score_table"]


def model_card(
    params: Mapping[str, Any],
    stats: Mapping[str, Any],
    perturbations: Mapping[str, list[str]],
    weights: Mapping[str, str],
    evaluation: Mapping[str, Any] | None = None,
    *,
    choice: pd.DataFrame | None = None,
    vectors: pd.DataFrame | None = None,
) -> str:
    """Write the card in Markdown.

    Parameters
    ----------
    params
        Parameters for reading the screen and making the model.
    stats
        Statistics of the training run; see :attr:`scgalore.tasks.perturbation.fitting.ScreenMemory.stats`.
    perturbations
        Canonical names by split.
    weights
        Provenance of the weights.
    evaluation
        Result of :func:`scgalore.tl.evaluate_perturbation`, for the scores of test perturbations.
    choice
        Scores used to choose the prior, from :func:`scgalore.perturb.choose_prior`.
    vectors
        Vectors of the compounds, one row per compound.
    """
    sizes = ", ".join(f"{len(names)} {part}" for part, names in perturbations.items())
    validation = stats.get("validation_pearson_delta") or {}
    lines = [
        f"# {weights['name']}: perturbation response",
        "",
        f"Fine-tuned with scgalore. Predicts mean log-normalised expression after {_what(params)}.",
        "",
        "| | |",
        "| --- | --- |",
        f"| base model | {weights.get('base') or weights['name']} |",
        f"| prior (corrected by the network) | {params['prior']} |",
        f"| perturbations | {sizes} |",
        f"| control | {_listed(params['control'])} |",
        f"| context | {params['context_key'] or 'one'} |",
        *_known_by(params, vectors),
        f"| genes new to the vocabulary | {len(params['added_genes']):,} |",
        "",
        "## Training",
        "",
        "| | |",
        "| --- | --- |",
        *(
            f"| {name.replace('_', ' ')} | {_text(value)} |"
            for name, value in stats.items()
            if not isinstance(value, dict)
        ),
        "",
        *_chosen(stats),
        *_prior(params, choice),
        "## Scores",
        "",
        *_scores(validation, stats),
        "",
        *_tested(evaluation),
        "## Limits",
        "",
        "On many data sets, simple baselines predict perturbations as well as networks do (doi:10.1038/s41592-025-02772-6). Compare "
        "every score with its baselines. Predictions are means; zeros and variance of cells sampled from them come from a simple "
        "model, not from the network.",
        "",
    ]
    return "\n".join(lines)


def _what(params: Mapping[str, Any]) -> str:
    return "compounds at doses" if params.get("pert_kind") == "compound" else "genetic perturbations"


def _known_by(params: Mapping[str, Any], vectors: pd.DataFrame | None) -> list[str]:
    """How compounds are represented."""
    if params.get("pert_kind") != "compound":
        return []
    known = "name only" if vectors is None else f"vectors of {vectors.shape[1]:,} numbers"
    return [f"| compounds are represented by | {known} |", f"| doses | {params['dose_key'] or 'one'} |"]


def _chosen(stats: Mapping[str, Any]) -> list[str]:
    if stats["best_epoch"] >= 0:
        return [f"The weights are those after epoch {stats['best_epoch']}.", ""]
    return [
        "No epoch was better than the prior alone on the validation perturbations: the network adds nothing, and predictions "
        "are those of the prior.",
        "",
    ]


def _prior(params: Mapping[str, Any], choice: pd.DataFrame | None) -> list[str]:
    own = params.get("own_gene") or {}
    lines = []
    if choice is not None and len(choice):
        columns = [name for name in choice.columns if name not in ("difference", "standard_error", "chosen")]
        columns.insert(columns.index("weights"), "mse - mixed")
        lines += [
            "Chosen on perturbations that the baselines were not fitted to, separately for genes with and without other "
            "perturbations. The difference is given with its standard error.",
            "",
            "| " + " | ".join(name.replace("_", " ") for name in columns) + " |",
            "| --- |" + " --- |" * (len(columns) - 1),
        ]
        for row in choice.to_dict("records"):
            row["mse - mixed"] = f"{row['difference']:+.3g} ± {row['standard_error']:.2g}"
            row["candidate"] = f"**{row['candidate']}**" if row["chosen"] else row["candidate"]
            values = (row[name] for name in columns)
            lines.append("| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values) + " |")
        lines.append("")
    if own.get("n"):
        lines += [
            f"A perturbed gene itself changes by {own['intercept']:.3g} {own['slope']:+.3g} times its control expression, as "
            f"fitted to {own['n']} measured targets.",
            "",
        ]
    return ["## Prior", "", *lines] if lines else []


def _scores(validation: Mapping[str, float], stats: Mapping[str, Any]) -> list[str]:
    if not validation:
        return ["There were no validation perturbations."]
    best = max(validation, key=lambda name: validation[name])
    rows = [
        f"| {'**' if name == best else ''}{name}{'**' if name == best else ''} | {score:.3f} |"
        for name, score in validation.items()
    ]
    return [
        f"Pearson delta, mean over {stats['validation_perturbations']} validation perturbations, which were also used to select the epoch:",
        "",
        "| method | Pearson delta |",
        "| --- | --- |",
        *rows,
    ]


def _tested(evaluation: Mapping[str, Any] | None) -> list[str]:
    if evaluation is None:
        return []
    summary = evaluation["summary"]
    n = int(summary.loc[summary["group"] == "all", "n"].max())
    return [
        f"{n} held-out test perturbations, with all baselines and the noise ceiling:",
        "",
        score_table(summary),
    ]


CARD_METRICS = (
    "pearson_delta",
    "pearson_centroid",
    "mse",
    "pearson_delta_without_target",
    "mse_without_target",
    "discrimination_score_l1",
    "overlap_at_N",
    "de_direction_match",
    "pr_auc",
    "roc_auc",
    "de_nsig_counts_pred",
    "de_nsig_counts_real",
)


def score_table(summary: pd.DataFrame, metrics: tuple[str, ...] = CARD_METRICS) -> str:
    """Scores of a model, its baselines and the ceiling as a Markdown table.

    Parameters
    ----------
    summary
        ``adata.uns["evaluate_perturbation"]["summary"]``.
    metrics
        Metrics to include, if present.
    """
    of_all = summary[(summary["group"] == "all") & summary["metric"].isin(metrics)]
    table = of_all.pivot_table(index="method", columns="metric", values="mean", sort=False, observed=True, dropna=False)
    lines = ["| method | " + " | ".join(map(str, table.columns)) + " |", "| --- |" + " --- |" * len(table.columns)]
    for method, row in zip(table.index, table.to_numpy(float), strict=True):
        lines.append(f"| {method} | " + " | ".join("" if value != value else f"{value:.4g}" for value in row) + " |")
    return "\n".join(lines) + "\n"


def _listed(labels: str | Sequence[str]) -> str:
    return labels if isinstance(labels, str) else ", ".join(labels)


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
