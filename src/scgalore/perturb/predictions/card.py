"""The model card of a perturbation model, filled from its run."""

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
        How the screen was read and the model was made.
    stats
        What the training run took; see :attr:`scgalore.tasks.perturbation.fitting.ScreenMemory.stats`.
    perturbations
        Canonical names by part.
    weights
        Provenance of the weights.
    evaluation
        What :func:`scgalore.tl.evaluate_perturbation` wrote, for the scores of test perturbations.
    choice
        Scores by which the prior was chosen, from :func:`scgalore.perturb.choose_prior`.
    vectors
        Vectors of the compounds, one row a compound.
    """
    sizes = ", ".join(f"{len(names)} {part}" for part, names in perturbations.items())
    validation = stats.get("validation_pearson_delta") or {}
    lines = [
        f"# {weights['name']}: perturbation response",
        "",
        f"Fine-tuned with scgalore. Predicts the mean of log-normalised expression after {_what(params)}.",
        "",
        "| | |",
        "| --- | --- |",
        f"| started from | {weights.get('base') or weights['name']} |",
        f"| prior that the network corrects | {params['prior']} |",
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
        "Simple rules predict perturbations as well as networks on many data sets (doi:10.1038/s41592-025-02772-6). A score "
        "without its baselines says little. Predictions are means; cells drawn from them have zeros and spread of a stated "
        "model, not of the network.",
        "",
    ]
    return "\n".join(lines)


def _what(params: Mapping[str, Any]) -> str:
    return "compounds at doses" if params.get("pert_kind") == "compound" else "genetic perturbations"


def _known_by(params: Mapping[str, Any], vectors: pd.DataFrame | None) -> list[str]:
    """How compounds are known."""
    if params.get("pert_kind") != "compound":
        return []
    known = "name only" if vectors is None else f"vectors of {vectors.shape[1]:,} numbers"
    return [f"| compounds are known by | {known} |", f"| doses | {params['dose_key'] or 'one'} |"]


def _chosen(stats: Mapping[str, Any]) -> list[str]:
    if stats["best_epoch"] >= 0:
        return [f"The weights are those after epoch {stats['best_epoch']}.", ""]
    return [
        "No epoch did better than the prior alone on the validation perturbations: the network adds nothing, and predictions "
        "are the prior's.",
        "",
    ]


def _prior(params: Mapping[str, Any], choice: pd.DataFrame | None) -> list[str]:
    own = params.get("own_gene") or {}
    lines = []
    if choice is not None and len(choice):
        columns = [name for name in choice.columns if name not in ("difference", "standard_error", "chosen")]
        columns.insert(columns.index("weights"), "mse - mixed")
        lines += [
            "Perturbations that the rules were not fitted to chose it; those of genes that were perturbed otherwise, and those "
            "of genes that were not, apart. The difference has its standard error.",
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
            f"learnt from {own['n']} measured targets.",
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
        f"Pearson delta, mean over {stats['validation_perturbations']} validation perturbations, which also chose the epoch:",
        "",
        "| method | Pearson delta |",
        "| --- | --- |",
        *rows,
    ]


def _tested(evaluation: Mapping[str, Any] | None) -> list[str]:
    if evaluation is None:
        how = "Save the model with evaluation=adata.uns['evaluate_perturbation'] to have the scores of test perturbations here."
        return [how, ""]
    summary = evaluation["summary"]
    n = int(summary.loc[summary["group"] == "all", "n"].max())
    return [
        f"{n} test perturbations, which nothing has seen, with all baselines and the ceiling of the data:",
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
    """Scores of a model, its baselines and the ceiling as a table in Markdown.

    Parameters
    ----------
    summary
        ``adata.uns["evaluate_perturbation"]["summary"]``.
    metrics
        Which of them, as far as they are there.
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
