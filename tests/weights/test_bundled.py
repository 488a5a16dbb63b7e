"""The model that ships with the package: its size, its genes, and what its embeddings are worth."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

import scgalore as sg
from scgalore.weights import get_entry

NAME = "scgpt-mini"
WHEEL_BYTES = 6_000_000


@pytest.fixture(scope="module")
def model() -> sg.model.SCGPT:
    return sg.model.SCGPT.from_pretrained(NAME)


def test_it_is_small_enough_for_a_wheel() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sg.weights.fetch_weights(NAME).iterdir():
            archive.write(path, path.name)
    assert packed.getbuffer().nbytes <= WHEEL_BYTES


def test_its_genes_are_current_and_cover_gene_sets(model: sg.model.SCGPT) -> None:
    genes = set(model.vocab.tokens[: len(model.vocab) - 3])
    for name in sg.genes.list_gene_sets():
        wanted = sg.genes.standardise(sg.genes.get_gene_set(name).genes)
        assert np.mean([gene in genes for gene in wanted]) > 0.9, name
    # Genes that no blood cell expresses: pancreas, neurons, embryos.
    assert {"INS", "GCG", "SST", "GRIA2", "SOX2", "POU5F1", "ALB", "IGKC", "TRAC"} <= genes


def accuracy(embedding: np.ndarray, labels: np.ndarray) -> float:
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return float(cross_val_score(KNeighborsClassifier(15), embedding, labels, cv=folds).mean())


def test_blood_cells_that_it_has_not_seen_are_embedded_as_well_as_by_pca(pbmc: AnnData, model: sg.model.SCGPT) -> None:
    labels = pbmc.obs["bulk_labels"].astype(str).to_numpy()
    ours = accuracy(model.get_latent_representation(pbmc), labels)
    values = pbmc.X.toarray() if hasattr(pbmc.X, "toarray") else pbmc.X
    assert ours >= accuracy(PCA(50, random_state=0).fit_transform(values), labels) - 0.02


def test_embedding_reports_once_what_it_is_worth(
    pbmc: AnnData, model: sg.model.SCGPT, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    said = get_entry(NAME).zero_shot
    assert said
    cells = pbmc[:5].copy()
    with sg.settings.override(verbosity=2):
        sg.tl.embed(cells, model)
        sg.tl.embed(cells, model)
        assert caplog.text.count(said) == 1
        caplog.clear()
        model.save(tmp_path / "own")  # weights of the user are not ours to judge
        sg.tl.embed(pbmc[:5].copy(), tmp_path / "own")
        assert said not in caplog.text
