"""Training objectives, one loss per file."""

from scgalore.objectives.base import Loss, Objective
from scgalore.objectives.classification import Classification
from scgalore.objectives.generative import GenerativeExpression
from scgalore.objectives.integration import Integration
from scgalore.objectives.masked_classes import MaskedClasses
from scgalore.objectives.masked_expression import MaskedExpression
from scgalore.objectives.multiomic import Multiomic
from scgalore.objectives.perturbation import Perturbation
from scgalore.objectives.pretraining import PRETRAINING, pretraining_objective
from scgalore.objectives.regression import Regression

__all__ = [
    "PRETRAINING",
    "Classification",
    "GenerativeExpression",
    "Integration",
    "Loss",
    "MaskedClasses",
    "MaskedExpression",
    "Multiomic",
    "Objective",
    "Perturbation",
    "Regression",
    "pretraining_objective",
]
