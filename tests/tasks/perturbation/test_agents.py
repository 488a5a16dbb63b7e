"""A compound is a token with its dose as value, whose embedding starts from its vector."""

import numpy as np
import pandas as pd
import pytest
from tests.dosed_screens import GENES, untrained

from scgalore.data.perturbations import FlagTokenizer
from scgalore.errors import DataError
from scgalore.perturb.baselines.dose import log_dose
from scgalore.tasks.perturbation.agents import agent_tokens, place_compounds, refuse_unknown, targets_of, token_name
from scgalore.tasks.perturbation.networks import extend_vocabulary, flag_tokenizer

VECTORS = pd.DataFrame(np.random.default_rng(0).normal(size=(4, 5)), index=["a", "b", "c", "G01"])


def test_compounds_that_are_called_like_genes_are_no_genes() -> None:
    vocab, added = extend_vocabulary(untrained().vocab, GENES, [token_name("G01@3"), token_name("a@1")])
    assert added == ["compound:G01", "compound:a"]
    gene, compound, again = agent_tokens(["G01", "G01@3", "G01@0.1"], vocab)
    assert gene != compound == again
    refuse_unknown(["G01", "a@5"], vocab)
    with pytest.raises(DataError, match="not trained on the compound 'b' .*vectors_key="):
        refuse_unknown(["a@1", "b@1"], vocab)


def test_the_dose_is_the_value_of_the_token() -> None:
    model = untrained()
    vocab, _ = extend_vocabulary(model.vocab, GENES, ["compound:a"])
    tokenizer = flag_tokenizer(model.network, vocab, GENES)
    assert isinstance(tokenizer, FlagTokenizer)
    targets = [targets_of([f"a@{dose}"], vocab, known, doses=(0.1, 10)) for dose, known in ((0.1, {"a"}), (10, ()))]
    batch = tokenizer.batch(
        np.ones((2, len(GENES)), dtype=np.float32), targets, columns=tokenizer.columns, cells=np.arange(2)
    )
    place = 1 + len(GENES)
    np.testing.assert_allclose(batch.values[:, place], [log_dose(0.1, 0.1), log_dose(10, 0.1)], rtol=1e-6)
    assert (batch.genes[:, place] == vocab["compound:a"]).all()
    assert batch.conditions["flags"][:, place].tolist() == [2, 1]
    assert (batch.conditions["flags"][:, :place] == 0).all()


def test_tokens_begin_where_vectors_are() -> None:
    model = untrained()
    vocab, _ = extend_vocabulary(model.vocab, GENES, [f"compound:{name}" for name in VECTORS.index])
    network = model.network.perturbation_variant(len(vocab), len(model.vocab), seed=0)
    genes = network.gene_table.weight.detach()[: len(model.vocab)].clone()
    near = VECTORS.copy()
    near.loc["b"] = near.loc["a"] + 1e-3
    place_compounds(network, vocab, near.index, near, near)
    rows = network.gene_table.weight.detach()
    np.testing.assert_array_equal(rows[: len(model.vocab)], genes)
    a, b, c = (rows[vocab[f"compound:{name}"]] for name in "abc")
    assert (a - b).norm() < 0.01 * (a - c).norm()
    # As large as embeddings of genes are.
    spread = (rows[len(model.vocab) :] - genes.mean(dim=0)).norm(dim=1).mean() / (genes - genes.mean(dim=0)).norm(
        dim=1
    ).mean()
    assert 0.5 < spread < 2
    # A compound that comes later gets the place it would have had.
    later = model.network.perturbation_variant(len(vocab), len(model.vocab), seed=1)
    place_compounds(later, vocab, ["c"], near, near)
    np.testing.assert_allclose(later.gene_table.weight.detach()[vocab["compound:c"]], c, rtol=1e-5, atol=1e-6)
