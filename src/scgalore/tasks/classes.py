"""Predict the class of each cell, such as its cell type."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.special import log_softmax

from scgalore import _logging as logg
from scgalore._options import COUNT, TEXT, Option
from scgalore.data.coded import refuse_unknown
from scgalore.data.columns import read_column
from scgalore.data.labels import class_codes, class_colors, classes_of, doubtful_labels, encode_labels
from scgalore.data.resolve import cells_of
from scgalore.data.results import Results
from scgalore.data.split import PARTS
from scgalore.errors import DataError, OptionError
from scgalore.objectives import Classification
from scgalore.tasks.baselines import BASELINES, LOGISTIC, expression_of
from scgalore.tasks.calibration import Calibration, softmax
from scgalore.tasks.cells import CellReading, CellTargets, CellTask
from scgalore.tasks.class_weights import CLASS_WEIGHT, class_weights, untrained_classes
from scgalore.tasks.correction import fit_correction, softmax_after
from scgalore.tasks.figures import on_axes, plot, umap
from scgalore.tasks.findings import Findings, held_out, markdown_table, with_error
from scgalore.tasks.label_scores import LabelScores
from scgalore.tasks.linear import PRIOR, PRIOR_ALONE, fit_classes, with_held_out_prior, with_prior
from scgalore.tasks.linear_model import PRIOR_FILE, LinearModel, read_part
from scgalore.tasks.novelty import Novelty
from scgalore.tasks.unknown import UnknownRule
from scgalore.tasks.unlabelled import UNLABELLED, check_unlabelled, fit_unlabelled

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from scgalore._keys import CellKeys
    from scgalore.data.reading import Reading
    from scgalore.data.results import Read
    from scgalore.data.split import Split
    from scgalore.data.streaming import TokenStream
    from scgalore.nn.base import CellNetwork, CellOutput
    from scgalore.objectives import Objective
    from scgalore.tasks.base import Prepared, TaskMemory, TaskModel
    from scgalore.tasks.call import TrainingCall
    from scgalore.tasks.correction import Correction
    from scgalore.tasks.linear import LinearFit

__all__ = ["Classes", "ClassesMemory", "label_metrics"]

METRICS = {"accuracy": "accuracy", "macro_f1": "macro F1"}
HEAD = "classes"
NOVELTY_FILE = "novelty.safetensors"


@dataclass(frozen=True)
class ClassesMemory:
    """Classes that a model predicts, and the calibration of its predictions.

    Attributes
    ----------
    classes
        Names in the order of the outputs of the head.
    calibration
        Calibration on validation cells; ``None`` without such cells.
    novelty
        Statistics of training cells; ``None`` for a stream or too few cells.
    prior
        Logistic regression that the network corrects, or ``None``.
    """

    classes: tuple[str, ...]
    task: str = "classes"
    outlives_training: bool = True
    # Not compared: it belongs to the weights, and runs of the same task differ in it.
    calibration: Calibration | None = field(default=None, compare=False, repr=False)
    novelty: Novelty | None = field(default=None, compare=False, repr=False)
    prior: LinearModel | None = field(default=None, repr=False)

    def to_config(self) -> dict[str, Any]:
        """Names of the classes, and the calibration if available."""
        calibrated = {} if self.calibration is None else {"calibration": self.calibration.to_config()}
        return {"classes": list(self.classes), **calibrated}

    def files(self, provenance: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> dict[str, str | bytes]:
        """Statistics of training cells and the logistic regression, if available."""
        parts = {NOVELTY_FILE: self.novelty, PRIOR_FILE: self.prior}
        return {name: part.to_bytes() for name, part in parts.items() if part is not None}

    def probabilities(self, output: CellOutput) -> NDArray[np.float32]:
        """Calibrated probability of each class, float32 ``(n_obs, n_classes)``."""
        return softmax(output.heads[HEAD], 1.0 if self.calibration is None else self.calibration.temperature)

    def table(self, output: CellOutput) -> dict[str, NDArray[np.float32]]:
        """Probability of each class, float32 ``(n_obs,)``, by name."""
        found = self.probabilities(output)
        return {name: found[:, i] for i, name in enumerate(self.classes)}


@dataclass(frozen=True)
class ClassesReading(CellReading):
    """Result of :meth:`Classes.read`, with ``weights`` of the classes in the loss, and ``others``, cells without labels."""

    weights: tuple[float, ...] | None
    others: AnnData | None


class Classes(CellTask):
    """Cross entropy on a column of ``obs`` with one label per cell."""

    name = "classes"
    summary = "to predict the class of each cell"
    key = "labels_key"
    head = HEAD
    arguments = (
        Option("labels_key", TEXT, "Column of obs with the classes to learn, such as cell types.", column="obs"),
        Option(
            "class_weight",
            CLASS_WEIGHT,
            "Weights of the classes in the loss: balanced gives every class the same total weight, however rare; or a dict of "
            "weights, 1 for classes that are not listed. The validation loss uses the same weights.",
        ),
        PRIOR,
        UNLABELLED,
    )
    sizes = (Option("n_classes", COUNT, "Number of classes."),)
    next_steps = "`sg.tl.annotate(other_cells, model)` predicts the classes of other cells; `sg.tl.embed(other_cells, model)` embeds them."

    def targets(self, adata: AnnData, call: TrainingCall) -> CellTargets:
        """Class codes; a random split is stratified by class."""
        codes, classes = encode_labels(adata, call.arguments["labels_key"])
        split = call.split_of(adata, codes)
        if len(found := np.unique(codes[split.train])) < 2:
            msg = f"All training cells are of one class, {classes[found[0]]!r}; expected at least two. Assign cells of other classes to 'train'."
            raise DataError(msg)
        return CellTargets(split, {"labels": codes}, ClassesMemory(classes))

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Complete the arguments; cells without labels require a linear model."""
        complete = super().check(arguments)
        if complete["unlabelled"] is not None and complete["prior"] == "none":
            msg = "unlabelled= requires the linear model, but prior='none'. Omit one of them."
            raise OptionError(msg)
        return complete

    def read(self, data: AnnData | TokenStream, call: TrainingCall) -> ClassesReading:
        """Read labels, split, ranking of the genes, weights, and cells without labels; warn about doubtful labels."""
        others = self._others(data, call)
        reading = super().read(data, call)
        assert isinstance(reading.memory, ClassesMemory)
        classes, labels_key = reading.memory.classes, call.arguments["labels_key"]
        counts, trained, where = _counts(data, reading, labels_key)
        weights = class_weights(call.arguments["class_weight"], classes, trained)
        if counts is not None and trained is not None:
            for message in (untrained_classes(classes, counts, trained), *doubtful_labels(classes, counts, where)):
                if message is not None:
                    logg.warning(message)
        return ClassesReading(**vars(reading), weights=weights, others=others)

    @staticmethod
    def _others(data: AnnData | TokenStream, call: TrainingCall) -> AnnData | None:
        """Cells without labels, checked."""
        given = call.arguments["unlabelled"]
        if given is None:
            return None
        if not isinstance(data, AnnData):
            msg = "unlabelled= requires the linear model, which is not available for a stream of files. Omit it, or pass an AnnData."
            raise OptionError(msg)
        others = cells_of(given, "unlabelled")
        check_unlabelled(others, data, call.reading)
        return others

    def fit_prior(self, reading: CellReading, call: TrainingCall) -> LinearFit | None:
        """A logistic regression."""
        if call.arguments["prior"] == "none":
            return None
        assert isinstance(reading, ClassesReading)
        assert isinstance(reading.memory, ClassesMemory)
        assert reading.targets is not None
        codes, classes = reading.targets.arrays["labels"], reading.memory.classes
        how: dict[str, Any] = {"weights": reading.weights, "seed": call.seed}
        fit = fit_classes(reading.data, call.reading, codes, reading.targets.split, n_classes=len(classes), **how)
        if reading.others is None:
            return fit
        return fit_unlabelled(fit, reading.data, reading.others, call.reading, codes, classes=classes, **how)

    def fit_correction(self, reading: CellReading, fit: LinearFit, features: NDArray[np.float32]) -> Correction:
        """Multinomial logistic regression with the logits of the linear model as offset."""
        assert isinstance(reading, ClassesReading)
        assert reading.targets is not None
        predicted, codes = fit.predicted[fit.cells], reading.targets.arrays["labels"][fit.cells]
        of_class = np.ones(predicted.shape[1]) if reading.weights is None else np.array(reading.weights)

        def loss(outputs: NDArray[np.float64], y: NDArray[np.int64]) -> NDArray[np.float64]:
            return -of_class[y] * log_softmax(outputs, axis=1)[np.arange(len(y)), y]

        return fit_correction(features, predicted, codes, fit.folds, lambda: softmax_after(of_class), loss)

    def objective_of(self, reading: CellReading, network: CellNetwork, call: TrainingCall) -> Classification:
        """Cross entropy with the weights of the classes."""
        assert isinstance(reading, ClassesReading)
        return replace(self.objective(network, reading.memory), class_weights=reading.weights)

    def reads(self, call: TrainingCall) -> list[Read]:
        """Labels, and their colours."""
        return [*super().reads(call), ("uns", "colours of the labels", f"{call.arguments['labels_key']}_colors")]

    def objective(self, network: CellNetwork, memory: Any) -> Classification:
        """Cross entropy."""
        return Classification(len(memory.classes))

    def objective_for(self, network: CellNetwork, sizes: Mapping[str, Any]) -> Objective:
        """Cross entropy with the given number of classes, or that of the network."""
        return Classification(sizes.get("n_classes") or network.config.heads.get(HEAD, 1))

    def stream_memory(self, stream: TokenStream, call: TrainingCall) -> ClassesMemory:
        """Classes of the stream."""
        labels_key = call.arguments["labels_key"]
        if not stream.classes:
            msg = (
                f"labels_key={labels_key!r}, but the stream reads no labels. Create it with labels_key={labels_key!r}."
            )
            raise OptionError(msg)
        of_validation = getattr(call.validation, "classes", stream.classes)  # if it is a stream
        if of_validation != stream.classes:
            msg = (
                f"The validation stream has the classes {list(of_validation)[:5]}, but the training stream has "
                f"{list(stream.classes)[:5]}. Create it with labels_key= and the classes= of the training stream."
            )
            raise OptionError(msg)
        return ClassesMemory(stream.classes)

    def validation_arrays(self, adata: AnnData, memory: ClassesMemory, call: TrainingCall) -> dict[str, NDArray[Any]]:
        """Class codes of the stream."""
        labels_key = call.arguments["labels_key"]
        labels, where = read_column(adata.obs, labels_key, slot="validation.obs"), f"validation.obs[{labels_key!r}]"
        refuse_unknown(classes_of(labels, where), memory.classes, where)
        return {"labels": class_codes(labels, memory.classes)}

    def measured(self, memory: ClassesMemory, model: TaskModel, prepared: Prepared) -> ClassesMemory:
        """Calibrate on the validation cells, and store statistics of training cells.

        After training for another task, the outputs of the network change and the calibration is no longer valid.
        """
        source: Any = prepared.source
        split = prepared.split
        held, rows = (source, None) if split is None else (source, split.validation)
        if prepared.validation is not None:
            held = prepared.validation
        plain = replace(memory, calibration=None, novelty=None)
        if prepared.task is not self or "labels" not in getattr(held, "targets", {}):  # not available for a stream
            return plain
        novelty = None
        if split is not None:
            novelty = Novelty.fit(source, split.train, source.targets["labels"])
        rows = np.arange(held.n_obs) if rows is None else rows
        if len(rows) == 0:
            return replace(plain, novelty=novelty)
        output = model.run(held, rows=rows, accelerator=prepared.config.accelerator)
        targets = {name: values[rows] for name, values in held.targets.items()}
        logits = with_held_out_prior(output, HEAD, targets).heads[HEAD]
        values = None if novelty is None else novelty.of(held, rows)
        return replace(plain, calibration=Calibration.fit(logits, targets["labels"], values), novelty=novelty)

    def load(self, folder: Path, config: Mapping[str, Any]) -> TaskMemory | None:
        """Names of the classes; files of version 0.5.0 have them at the top level."""
        stored = config.get("memory", config)
        if not stored.get("classes"):
            return None
        memory = ClassesMemory(tuple(stored["classes"]))
        if "calibration" in stored:  # version 0.7.0 and later
            memory = replace(memory, calibration=Calibration.from_config(stored["calibration"]))
        novelty = read_part(folder / NOVELTY_FILE, Novelty.from_bytes)
        prior = read_part(folder / PRIOR_FILE, partial(LinearModel.from_bytes, n_outputs=len(memory.classes)))
        return replace(memory, novelty=novelty, prior=prior)

    def complete(self, output: CellOutput, memory: ClassesMemory, adata: AnnData, reading: Reading) -> CellOutput:
        """Sum of the logits of the network and of the logistic regression that it corrects."""
        return with_prior(output, HEAD, memory.prior, adata, reading)

    def predictions(self, output: CellOutput, memory: ClassesMemory, keys: CellKeys) -> Results:
        """The most probable class, its probability, and the probabilities of all classes."""
        found = memory.probabilities(output)
        codes = output.heads[HEAD].argmax(axis=1)  # of logits, since rounded probabilities may be tied
        labels = pd.Categorical.from_codes(codes, categories=pd.Index(memory.classes))
        calibration = {} if memory.calibration is None else {"calibration": memory.calibration.summary()}
        return Results(
            obs={
                keys.label: (labels, "predicted labels"),
                keys.score: (found.max(axis=1), "probabilities of these labels"),
            },
            obsm={keys.probabilities: (found, "probabilities of all classes")},
            uns={keys.uns: (calibration, "")},
        )

    def unknown_rule(self, memory: ClassesMemory, unknown: float) -> UnknownRule:
        """Thresholds from the validation cells of training."""
        return UnknownRule.of(unknown, memory.classes, memory.calibration, memory.novelty)

    def scores(
        self, adata: AnnData, output: CellOutput, prepared: Prepared, call: TrainingCall, keys: CellKeys
    ) -> Results:
        """Accuracy and macro F1 of each split."""
        memory = prepared.memory
        assert isinstance(memory, ClassesMemory)
        assert prepared.split is not None
        codes, _ = encode_labels(adata, call.arguments["labels_key"])
        calibration = memory.calibration
        source: Any = prepared.source
        logits = with_held_out_prior(output, HEAD, source.targets).heads[HEAD]
        parts = {part: getattr(prepared.split, part) for part in PARTS}
        metrics = label_metrics(logits.argmax(axis=1), codes, prepared.split)
        assert isinstance(prepared.objective, Classification)
        weights = prepared.objective.class_weights
        content: dict[str, Any] = {"classes": list(memory.classes), "metrics": metrics}
        content |= {} if weights is None else {"class_weights": np.array(weights)}
        if calibration is not None:
            content["calibration"] = {**calibration.summary(), "parts": calibration.table(logits, codes, parts)}
        if memory.prior is not None:
            of_prior = prepared.state["prior"][0].predicted.argmax(axis=1)
            table = label_metrics(of_prior, codes, prepared.split)
            for part in table.index:  # paired, on the same cells
                cells = parts[part]
                gain = (logits[cells].argmax(axis=1) == codes[cells]).astype(float) - (of_prior[cells] == codes[cells])
                table.loc[part, ["gain", "gain_se"]] = gain.mean(), gain.std() / np.sqrt(len(cells))
            content["prior"] = self.prior_report(prepared, table)
        results = Results(uns={keys.uns: (content, "")})
        colors = class_colors(adata, call.arguments["labels_key"], memory.classes)
        if colors is not None:  # scanpy's colours, so that a class has one colour in both plots
            results.uns[keys.colors] = (colors, "colours of the labels")
        return results

    def headline(self, content: Mapping[str, Any]) -> str:
        """Accuracy of the model, the linear model and the most frequent class."""
        part, row = held_out(content["metrics"])
        baselines = [f"most frequent class: {row['majority_accuracy']:.3f}"]
        if "prior" in content:
            baselines.insert(0, f"linear model: {content['prior']['metrics'].loc[part, 'accuracy']:.3f}")
        score = with_error(row["accuracy"], row["accuracy_se"])
        return f"accuracy on {int(row['n']):,} {part} cells: {score}; {', '.join(baselines)}"

    # Pipeline ---------------------------------------------------------------------------------------------------------

    def goal(self, arguments: Mapping[str, Any]) -> str:
        """Which column is predicted."""
        return f"to predict the classes of `obs['{arguments['labels_key']}']`"

    def draw_keys(self, arguments: Mapping[str, Any]) -> list[str]:
        """Sampling is stratified by class; cells without a label are excluded."""
        return [arguments["labels_key"]]

    def split(self, adata: AnnData, call: TrainingCall, key: str) -> None:
        """Split the cells, stratified by class."""
        labels_key = call.arguments["labels_key"]
        codes, classes = encode_labels(adata, labels_key)
        # Plots treat numbers as measurements, and would assign colours to classes without cells.
        adata.obs[labels_key] = pd.Categorical.from_codes(codes, categories=pd.Index(classes))
        super().split(adata, call, key)

    def check_cells(self, adata: AnnData, model: TaskModel, call: TrainingCall) -> None:
        """Read the cells with and without labels once, as in training."""
        super().check_cells(adata, model, call)
        self._others(adata, call)

    def predict(self, adata: AnnData, model: TaskModel, call: TrainingCall) -> str:
        """Fine-tuning has written labels and embeddings."""
        return f"labels and embeddings of {adata.n_obs:,} cells, written by fine-tuning"

    def evaluate(self, adata: AnnData, model: TaskModel, call: TrainingCall, *, name: str) -> Findings:
        """Compare the labels of test cells with those of simple classifiers."""
        keys, labels_key = model.keys("finetune"), call.arguments["labels_key"]
        codes, classes = encode_labels(adata, labels_key)
        split = self.split_in(adata, keys.split)
        x = expression_of(adata, call.reading)
        predicted = {name: class_codes(adata.obs[keys.label], classes)}
        prior = getattr(model.memory, "prior", None)
        if prior is not None:
            predicted[PRIOR_ALONE] = prior.predict(adata, call.reading).argmax(axis=1)
        predicted |= {method: classify(x, codes, split) for method, classify in BASELINES.items()}
        on_test = {method: found[split.test] for method, found in predicted.items()}
        scores = LabelScores.of(on_test, codes[split.test], seed=call.seed)
        rival = max(LOGISTIC, key=lambda method: scores.row(method)["macro_f1"])
        difference = scores.difference(name, rival)
        mine, theirs = scores.row(name), scores.row(rival)
        metrics = {
            "n_classes": len(classes),
            "test": {"n": scores.n, **mine},
            "baselines": {method: scores.row(method) for method in BASELINES},
            "difference": {"to": rival, **difference},
        }
        differences = {rival: difference}
        if prior is not None:
            differences[PRIOR_ALONE] = scores.difference(name, PRIOR_ALONE)
            metrics["prior"] = {**scores.row(PRIOR_ALONE), "difference": differences[PRIOR_ALONE]}
        found = adata.uns[keys.uns]
        calibration, learned = found.get("calibration"), found.get("prior", {}).get("unlabelled")
        if learned is not None:
            metrics["unlabelled"] = {**learned, "classes": learned["classes"].to_dict("index")}
        if calibration is not None:
            metrics["calibration"] = {**calibration, "parts": calibration["parts"].to_dict("index")}
        numbers = [f"{title} {mine[key]:.3f} ({rival} {theirs[key]:.3f})" for key, title in METRICS.items()]
        return Findings(
            metrics,
            f"{', '.join(numbers)} on {scores.n:,} test cells",
            [_section(scores, name, differences), *_unlabelled_section(learned), *_calibration_section(calibration)],
            {
                "confusion_matrix.png": (
                    "Held-out cells by true and predicted class.",
                    on_axes(lambda adata, ax: plot("confusion_matrix")(adata, ax=ax, show=False), size=(7.5, 6.5)),
                ),
                **umap(
                    [labels_key, keys.label], ["true label", "predicted label"], adata.n_obs, use_rep=keys.embedding
                ),
            },
        )


def _counts(
    data: AnnData | TokenStream, reading: CellReading, labels_key: str
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None, str]:
    """Numbers of cells and training cells of each class, if known, and a description of the labels."""
    if not isinstance(data, AnnData):
        return data.class_counts, data.class_counts, f"obs[{labels_key!r}] of the stream"
    assert reading.targets is not None
    assert isinstance(reading.memory, ClassesMemory)
    codes, n = reading.targets.arrays["labels"], len(reading.memory.classes)
    counts, trained = (np.bincount(some, minlength=n) for some in (codes, codes[reading.targets.split.train]))
    return counts.astype(np.int64), trained.astype(np.int64), f"adata.obs[{labels_key!r}]"


def label_metrics(predicted: NDArray[np.int64], truth: NDArray[np.int64], split: Split) -> pd.DataFrame:
    """Score predictions in each split.

    Parameters
    ----------
    predicted, truth
        Class codes, shape ``(n_obs,)``.
    split
        Training, validation and test cells.

    Returns
    -------
    One row per non-empty split: number of cells ``n``, ``accuracy`` with its binomial standard error ``accuracy_se``,
    ``macro_f1`` over the classes that occur, and ``majority_accuracy``, that of always predicting the most frequent
    class of the training cells.
    """
    from sklearn.metrics import accuracy_score, f1_score

    majority = np.bincount(truth[split.train]).argmax()
    rows = {}
    for part, n in split.sizes().items():
        if n == 0:
            continue
        cells = getattr(split, part)
        accuracy = float(accuracy_score(truth[cells], predicted[cells]))
        f1 = f1_score(truth[cells], predicted[cells], labels=np.unique(truth[cells]), average="macro", zero_division=0)
        rows[part] = {
            "n": n,
            "accuracy": accuracy,
            "accuracy_se": float(np.sqrt(accuracy * (1 - accuracy) / n)),
            "macro_f1": float(f1),
            "majority_accuracy": float((truth[cells] == majority).mean()),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _section(scores: LabelScores, name: str, differences: Mapping[str, dict[str, float]]) -> str:
    rows = [
        (
            method,
            *(with_error(scores.row(method)[key], scores.row(method)[f"{key}_se"]) for key in METRICS),
            str(scores.n),
        )
        for method in scores.samples
    ]
    verdicts = [
        f"- compared with {rival}, {_verdict(title, found[key], found[f'{key}_se'])}"
        for rival, found in differences.items()
        for key, title in METRICS.items()
    ]
    return "\n\n".join(
        [
            "## Held-out cells",
            markdown_table(("method", *METRICS.values(), "test cells"), rows),
            "Value ± standard error, from bootstrap samples of the test cells. The error reflects the choice of test cells, but "
            "not the seed of training: to measure that, run the same configuration with another `rng`. In macro "
            "F1 all classes have equal weight, however rare. All methods were fitted to the same cells; the logistic regressions and "
            "nearest neighbours use all genes. The network was trained on training cells only: validation cells decided its epoch and whether it is used.",
            f"{name} minus baselines (the better of the two logistic regressions on these cells):",
            "\n".join(verdicts),
        ]
    )


def _unlabelled_section(learned: Mapping[str, Any] | None) -> list[str]:
    if learned is None:
        return []
    rows = [
        (str(name), str(int(row["labelled"])), str(int(row["guessed"]))) for name, row in learned["classes"].iterrows()
    ]
    verdict = "The linear model was also fitted to these" if learned["used"] else "These were not used"
    return [
        "\n\n".join(
            [
                "## Cells without labels",
                markdown_table(("class", "labelled cells", "pseudo-labelled cells"), rows),
                f"Of {int(learned['n_read']):,} cells without a label, the linear model labelled those with a probability above "
                f"{learned['threshold']:g}. {verdict}: they change its accuracy on left-out labelled cells "
                f"by {with_error(learned['gain'], learned['gain_se'], sign='+')}. The baselines above were not fitted to them.",
            ]
        )
    ]


def _calibration_section(calibration: Mapping[str, Any] | None) -> list[str]:
    if calibration is None:
        return []
    columns = {
        "n": "cells",
        "accuracy": "accuracy",
        "confidence": "mean probability",
        "ece_uncalibrated": "error before",
    }
    columns["ece"] = "error after"
    rows = [
        (part, str(int(row["n"])), *(f"{row[name]:.3f}" for name in list(columns)[1:]))
        for part, row in calibration["parts"].iterrows()
        if part != "train"  # the network overfits these
    ]
    n = calibration["n_validation"]
    how = f"Logits were divided by {calibration['temperature']:.2f}, fitted on {n:,} validation cells."
    if calibration["temperature"] == 1:
        how = f"{n:,} validation cells are too few for calibration, so the probabilities are those of the network."
    return [
        "\n\n".join(
            [
                "## Calibration",
                markdown_table(("cells of the split", *columns.values()), rows),
                f"The expected calibration error is the mean distance between probability and accuracy, before and after "
                f"calibration. {how} `sg.tl.annotate(other_cells, model, unknown=0.05)` labels cells as unknown if they are too "
                "uncertain for an error rate of 5 %.",
            ]
        )
    ]


def _verdict(metric: str, difference: float, error: float) -> str:
    text = f"{metric}: {with_error(difference, error, sign='+')}"
    if abs(difference) <= 2 * error:
        return f"{text}, within twice the standard error: no significant difference on these cells."
    return f"{text}: {'better' if difference > 0 else 'worse'} by more than twice the standard error."
