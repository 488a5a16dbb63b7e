"""The model card of a saved model, ``README.md``: what it is, what it was trained on, how good it is, and how to load it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgalore import __version__
from scgalore._json import OBJECT, named
from scgalore.tasks.findings import markdown_table, with_error
from scgalore.tasks.linear import PRIOR_ALONE
from scgalore.tasks.registry import TASKS
from scgalore.weights import list_weights
from scgalore.weights.hub import is_hub_address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgalore.data.vocab import GeneVocab
    from scgalore.model.family import Family
    from scgalore.nn.base import CellNetwork
    from scgalore.train.result import TrainResult

__all__ = ["CARD", "model_card", "public_name", "run_record", "score_sections"]

CARD = "README.md"
RECORDED = ("params", "weights", "split", "genes", "metrics", "prior", "batches")
LICENCES = (
    *("agpl-3.0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0"),
    *("cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-4.0", "cc0-1.0", "gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0"),
    *("mit", "mpl-2.0", "unlicense"),
)
"""Licences by the names that the Hugging Face Hub has for them."""


def run_record(content: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`scgalore.tl.finetune` writes to ``uns``, as far as a model card shows it, in types of JSON and without paths."""
    kept: dict[str, Any] = {name: _plain(content[name]) for name in RECORDED if name in content}
    if "name" in kept.get("weights", {}):
        kept["weights"]["name"] = public_name(kept["weights"]["name"])
    kept.get("genes", {}).pop("dropped", None)
    kept.get("prior", {}).pop("candidates", None)
    return kept


def _plain(value: Any) -> Any:
    if isinstance(value, pd.DataFrame):
        return {str(name): _plain(row) for name, row in value.to_dict("index").items()}
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name  # such as a file of cells without labels
    return None if isinstance(value, float) and not math.isfinite(value) else value


def public_name(name: str) -> str:
    """Name of weights for other people: of a folder only its last part, and not where it lies on this machine."""
    start = "fine-tuned "
    if name.startswith(start):
        return start + public_name(name.removeprefix(start))
    return name if name in list_weights() or is_hub_address(name) else Path(name).name


def score_sections(evaluation: Mapping[str, Any] | Sequence[str] | None) -> list[str]:
    """Markdown of scores that were given with a model.

    Parameters
    ----------
    evaluation
        Content of ``uns`` with a table ``"scores"``, one row per embedding, or sections in Markdown.
    """
    if evaluation is None:
        return []
    if not isinstance(evaluation, Mapping):
        return list(evaluation)
    scores = evaluation.get("scores")
    if not isinstance(scores, pd.DataFrame) or "method" in scores:
        return []  # tables of perturbations, which the task writes into its own card
    rows = [
        (str(name), *(f"{value:.3f}" for value in row))
        for name, row in zip(scores.index, scores.to_numpy(float), strict=True)
    ]
    return ["## Scores", markdown_table(("embedding", *map(str, scores.columns)), rows)]


def model_card(
    *,
    family: Family,
    network: CellNetwork,
    vocab: GeneVocab,
    provenance: Mapping[str, Any],
    result: TrainResult | None,
    licence: str,
    own: str | None = None,
    address: str | None = None,
) -> str:
    """Write the card in Markdown, with the metadata that model hubs read.

    Parameters
    ----------
    family, network, vocab, provenance, result
        Of the model.
    licence
        Of the weights; empty if it is not known.
    own
        Card that the task has made, with data, settings and scores.
    address
        Address on a hub; ``None`` for a folder.
    """
    record = {} if result is None or result.record is None else result.record
    memory = None if result is None else result.memory
    task = TASKS.get(str(_object(record, "params").get("task")) if memory is None else memory.task)
    start = provenance["base"] if provenance["layout"] == "memory" else provenance["name"]
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    what = "" if task is None else f", trained {task.summary}"
    kind = f"A {family.title} network{what}, by [scgalore](https://scgalore.readthedocs.io) {__version__}: {len(vocab):,} tokens, {n_parameters / 1e6:.1f} million parameters."
    title, body = f"# {public_name(provenance['name']) if address is None else address.removeprefix('hf://')}", []
    if own is not None:
        first, _, rest = own.partition("\n")
        title, body = (first if address is None else title), [rest.strip()]
    elif result is not None:
        body = [*_data(record, start), *_settings(record, result), *_scores(record, result)]
    extra = [] if result is None else list(record.get("evaluation", ()))
    place = "path/to/this/folder" if address is None else address
    loading = ["## How to load it", f'```python\nimport scgalore as sg\n\nmodel = sg.model.load("{place}")\n```']
    if address is not None:
        loading.insert(1, "Needs [scgalore](https://scgalore.readthedocs.io) with its extra `hub`.")
    loading += [task.next_steps] if task is not None and task.next_steps else []
    terms = (
        f"Of the weights: {licence}."
        if licence
        else "No licence of the weights was stated; ask the person who trained them."
    )
    stated = ["## Licence", f"{terms} The code of scgalore is under BSD-3-Clause."]
    sections = [
        _metadata(family, None if task is None else task.name, licence, start),
        title,
        kind,
        *body,
        *extra,
        *loading,
        *stated,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _metadata(family: Family, task: str | None, licence: str, start: str) -> str:
    lines = ["---", "library_name: scgalore"]
    if known := re.match(r"[\w.+-]+", licence):
        name = known[0].lower().rstrip(".")
        lines += [f"license: {name}"] if name in LICENCES else ["license: other", f"license_name: {name}"]
    if is_hub_address(start):
        lines.append(f"base_model: {start.removeprefix('hf://').partition('@')[0]}")
    tags = ["single-cell", "biology", "gene-expression", family.name, *([] if task is None else [task])]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _data(record: Mapping[str, Any], start: str) -> list[str]:
    split, genes, weights = (_object(record, name) for name in ("split", "genes", "weights"))
    rows = [("started from", public_name(str(weights.get("name") or start)) or "random weights")]
    if weights.get("sha256"):
        rows.append(("sha256 of these weights", f"`{str(weights['sha256'])[:16]}`"))
    if split:
        rows.append(("cells", ", ".join(f"{n:,} {part}" for part, n in split.items() if isinstance(n, int))))
    if genes:
        rows.append(
            ("genes", f"{genes.get('matched')} of {genes.get('n_vars')} in the vocabulary, {genes.get('species')}")
        )
    if batches := _object(record, "batches"):
        rows.append(("batches", str(len(batches))))
    return ["## Training data", markdown_table(("", ""), rows)]


def _settings(record: Mapping[str, Any], result: TrainResult) -> list[str]:
    given = {
        name: value for name, value in _object(record, "params").items() if value is not None and not OBJECT.fits(value)
    }
    rows = [(name, f"`{_short(value)}`") for name, value in given.items()]
    known = {name: value for name, value in result.summary().items() if value is not None and name not in given}
    rows += [
        (name, f"{value:,}" if type(value) is int else f"`{_short(value)}`")
        for name, value in known.items()
        if name != "best_epoch"
    ]
    lines = ["## Settings", markdown_table(("", ""), rows)] if rows else []
    if result.best_epoch is not None:
        kept = f"The weights are those after epoch {result.best_epoch}."
        none = "No epoch did better on validation data than the model that training started from, which was kept."
        lines.append(kept if result.best_epoch >= 0 else none)
    return lines


def _scores(record: Mapping[str, Any], result: TrainResult) -> list[str]:
    """Scores of held-out cells next to those of simple models; else those of the kept epoch."""
    of_model = _object(_object(record, "metrics"), "test")
    if of_model:
        methods = {"this model": of_model, PRIOR_ALONE: _object(_object(_object(record, "prior"), "metrics"), "test")}
        if "majority_accuracy" in of_model:
            methods["most frequent class"] = {"accuracy": of_model["majority_accuracy"]}
        names = [
            name for name in of_model if name != "n" and not name.endswith("_se") and not name.startswith("majority")
        ]
        rows = [(method, *(_number(found, name) for name in names)) for method, found in methods.items() if found]
        cells = f"{of_model.get('n')} test cells, which nothing was fitted to:"
        return ["## Scores", cells, markdown_table(("method", *names), rows)]
    history, best = result.history, result.best_epoch
    columns = [name for name in history.columns if name.startswith("validation_")]
    if best is not None and best in history.index and columns:
        kept = history.loc[best, columns].astype(float)
        rows = [(str(name).removeprefix("validation_"), f"{value:.4g}") for name, value in kept.items()]
        return [
            "## Scores",
            f"Validation data, epoch {best}; no baseline was computed:",
            markdown_table(("score", "value"), rows),
        ]
    if record.get("evaluation"):
        return []
    return ["## Scores", "No cells were held out and scored."]


def _number(scores: Mapping[str, Any], name: str) -> str:
    value, error = scores.get(name), scores.get(f"{name}_se")
    if not isinstance(value, int | float):
        return ""
    return f"{value:.3f}" if not isinstance(error, int | float) else with_error(value, error)


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 5:
        return f"{len(value)} values"
    return named(value)[1:-1] if isinstance(value, str) else json.dumps(value)


def _object(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a file of unknown origin, empty unless it is an object."""
    found = content.get(name)
    return found if isinstance(found, Mapping) else {}
