"""Tools: functions that read an AnnData or MuData and write documented keys; most use a model."""

from scgalore.tl._annotate import annotate
from scgalore.tl._build_reference import build_reference
from scgalore.tl._embed import embed
from scgalore.tl._evaluate_gene_network import evaluate_gene_network
from scgalore.tl._evaluate_integration import evaluate_integration
from scgalore.tl._evaluate_perturbation import evaluate_perturbation
from scgalore.tl._finetune import finetune
from scgalore.tl._gene_embeddings import gene_embeddings
from scgalore.tl._gene_network import gene_network
from scgalore.tl._gene_programs import gene_programs
from scgalore.tl._map_to_reference import map_to_reference
from scgalore.tl._perturb_in_silico import perturb_in_silico
from scgalore.tl._predict_perturbation import predict_perturbation
from scgalore.tl._predict_protein import predict_protein
from scgalore.tl._pretrain import pretrain
from scgalore.tl._rank_perturbations import rank_perturbations
from scgalore.tl._select_genes import select_genes

__all__ = [
    "annotate",
    "build_reference",
    "embed",
    "evaluate_gene_network",
    "evaluate_integration",
    "evaluate_perturbation",
    "finetune",
    "gene_embeddings",
    "gene_network",
    "gene_programs",
    "map_to_reference",
    "perturb_in_silico",
    "predict_perturbation",
    "predict_protein",
    "pretrain",
    "rank_perturbations",
    "select_genes",
]
