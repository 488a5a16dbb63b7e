from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny_plugin import tiny_model
from tests.trained_screens import GENES, PARTS, counts, log_normalised, screen_of, untrained

from scgalore.data.match import tokens_of_each
from scgalore.data.vocab import GeneVocab
from scgalore.errors import DataError
from scgalore.model import SCGPT
from scgalore.nn import CellNetwork, SCGPTNetwork
from scgalore.perturb.baselines.effects import RECIPES, prior_of
from scgalore.tasks.perturbation.agents import refuse_unknown, targets_of
from scgalore.tasks.perturbation.networks import (
    RowsOfCells,
    extend_vocabulary,
    flag_tokenizer,
    gene_vectors,
    predict_outputs,
    training_cells,
)

CPU = torch.device("cpu")
HUMAN = ("TP53", "KMT2A", "CEBPA", "KLF1", "BAK1")  # KMT2A was MLL
TP53_ID = "ENSG00000141510"
EMBEDDING = "encoder.embedding.weight"


@pytest.fixture
def vocab() -> GeneVocab:
    return GeneVocab.from_genes(HUMAN)


class TestKnowGenes:
    def test_known_genes_add_nothing(self, vocab: GeneVocab) -> None:
        assert extend_vocabulary(vocab, HUMAN, ["KLF1"]) == (vocab, [])

    def test_unknown_genes_come_last_and_once_each(self, vocab: GeneVocab) -> None:
        larger, added = extend_vocabulary(vocab, ["KLF1", "NEW-B", "NEW-A"], ["NEW-A", "NEW-C", "TP53"])
        assert added == ["NEW-B", "NEW-A", "NEW-C"]
        assert larger.tokens == (*vocab.tokens, *added)

    def test_aliases_and_ensembl_ids_are_the_gene_they_name(self, vocab: GeneVocab) -> None:
        larger, added = extend_vocabulary(vocab, ["KLF1", "MLL"], [TP53_ID, "MLL", "BAK1"])
        assert added == []
        assert tokens_of_each([f"{TP53_ID}.18", "MLL"], larger) == [vocab["TP53"], vocab["KMT2A"]]

    def test_perturbed_gene_is_the_measured_one_whatever_it_is_called(self, vocab: GeneVocab) -> None:
        smaller = GeneVocab.from_genes(["KLF1", "BAK1"])
        larger, added = extend_vocabulary(smaller, ["KLF1", "KMT2A"], ["MLL"])
        assert added == ["KMT2A"]
        assert tokens_of_each(["MLL"], larger) == [larger["KMT2A"]]

    def test_data_without_any_known_gene_are_refused(self, vocab: GeneVocab) -> None:
        with pytest.raises(DataError, match="None of the 2 gene names is in the vocabulary"):
            extend_vocabulary(vocab, ["one", "two"], ["KLF1"])


class TestTargetTokens:
    @given(genes=st.lists(st.sampled_from([*HUMAN, "MLL", TP53_ID, "no such gene"]), max_size=6))
    def test_token_of_a_gene_does_not_depend_on_the_others(self, genes: list[str]) -> None:
        vocab = GeneVocab.from_genes(HUMAN)
        token = {gene: vocab[gene] for gene in HUMAN} | {
            "MLL": vocab["KMT2A"],
            TP53_ID: vocab["TP53"],
            "no such gene": -1,
        }
        assert tokens_of_each(genes, vocab) == [token[gene] for gene in genes]

    def test_special_tokens_are_no_genes(self, vocab: GeneVocab) -> None:
        assert tokens_of_each(["<cls>", "KLF1", "<pad>"], vocab) == [-1, vocab["KLF1"], -1]

    def test_only_unknown_genes_are_refused(self, vocab: GeneVocab) -> None:
        refuse_unknown(["KMT2A", "MLL", TP53_ID, "TP53"], vocab)
        with pytest.raises(DataError, match="no token for the gene 'NEW-A', 'NEW-B' and"):
            refuse_unknown(["NEW-B", "KLF1", "NEW-A", "NEW-B"], vocab)


def copy_of(model: SCGPT, n_new: int = 0, *, seed: int = 0) -> CellNetwork:
    vocab = extend_vocabulary(model.vocab, GENES, [f"new{i}" for i in range(n_new)])[0]
    return model.network.perturbation_variant(len(vocab), len(model.vocab), seed=seed)


class TestPerturbationNetwork:
    def test_keeps_encoders_transformer_and_heads_to_the_bit(self) -> None:
        model = untrained(mvc=True)
        model.network.put_heads(model.network.fresh_heads({"classes": 3}))
        old, new = model.network.state_dict(), copy_of(model).state_dict()
        assert {name for name in old if name not in new} == {name for name in old if name.startswith("decoder.")}
        assert [name for name in old if name in new and not torch.equal(old[name], new[name])] == []
        assert {name.split(".")[0] for name in new if name not in old} == {"decoder", "pert_encoder"}

    def test_flag_of_unperturbed_genes_has_no_vector(self) -> None:
        network = copy_of(untrained())
        flags = network.get_parameter("pert_encoder.weight")
        assert not flags[0].any()
        assert flags[1].abs().min() > 0
        # So that a cell in which nothing is perturbed is read as before.
        genes, values = torch.arange(5)[None], torch.ones(1, 5)
        plain = untrained().network
        ours = network.encode(genes, values, flags=torch.zeros(1, 5, dtype=torch.int64))
        assert torch.equal(ours.hidden, plain.encode(genes, values).hidden)

    def test_new_genes_are_drawn_like_the_old_ones(self) -> None:
        model, n_new = untrained(), 4000
        with torch.no_grad():  # columns of unlike means and spreads
            d = model.network.config.d_model
            model.network.encoder.embedding.weight.mul_(torch.linspace(0.5, 3, d)).add_(torch.linspace(-1, 1, d))
        old = model.network.encoder.embedding.weight.detach()
        table = copy_of(model, n_new).encoder.embedding.weight.detach()
        assert torch.equal(table[: len(old)], old)
        new, spread = table[len(old) :], old.std(dim=0)
        assert new.shape == (n_new, d)
        assert ((new.mean(dim=0) - old.mean(dim=0)).abs() < 5 * spread / n_new**0.5).all()
        assert ((new.std(dim=0) / spread - 1).abs() < 0.1).all()
        assert len(torch.unique(new, dim=0)) == n_new

    def test_rows_that_no_gene_had_are_used_first(self) -> None:
        model = tiny_model(GENES)
        wide = SCGPTNetwork(model.network.config.replace(n_tokens=len(model.vocab) + 3))
        vocab = extend_vocabulary(model.vocab, GENES, ["new"])[0]
        assert wide.perturbation_variant(len(vocab), len(model.vocab), seed=0).config.n_tokens == len(model.vocab) + 3

    def test_perturbation_network_goes_on_with_its_own_decoder_and_flags(self) -> None:
        first = copy_of(untrained())
        again = first.perturbation_variant(len(untrained().vocab), len(untrained().vocab), seed=7)
        assert again.config == first.config
        assert all(
            torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True)
        )

    def test_padding_flag_of_upstream_becomes_that_of_genes_the_prior_knows(self) -> None:
        upstream = SCGPTNetwork(untrained().network.config.replace(perturbation=True, pert_pad_id=2))
        copy = upstream.perturbation_variant(len(untrained().vocab), len(untrained().vocab), seed=0)
        assert upstream.pert_encoder is not None
        assert copy.pert_encoder is not None
        theirs, ours = upstream.pert_encoder.weight, copy.pert_encoder.weight
        assert not theirs[2].any()
        assert torch.equal(ours, theirs[[0, 1, 1]])

    def test_input_and_random_state_are_left_alone(self) -> None:
        model = untrained()
        before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
        config, state = model.network.config, torch.random.get_rng_state()
        copy = copy_of(model, 3)
        with torch.no_grad():
            for parameter in copy.parameters():
                parameter.add_(1)
        assert model.network.config == config
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())
        assert torch.equal(torch.random.get_rng_state(), state)
        assert not copy.training

    def test_seed_decides_what_is_new(self) -> None:
        one, same, other = (copy_of(untrained(), 2, seed=seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(one[name], same[name]) for name in one)
        differing = {name for name in one if not torch.equal(one[name], other[name])}
        assert {"pert_encoder.weight", EMBEDDING} < differing
        assert {name.split(".")[0] for name in differing} == {"pert_encoder", "decoder", "encoder"}


def test_gene_vectors_are_those_of_the_encoder() -> None:
    model = tiny_model(HUMAN)
    table = gene_vectors(model.network, model.vocab, ["KLF1", "no such gene", "MLL", "KLF1"])
    assert table.index.tolist() == ["KLF1", "MLL"]
    with torch.no_grad():
        expected = model.network.encoder(torch.tensor([model.vocab["KLF1"], model.vocab["KMT2A"]])).numpy()
    np.testing.assert_array_equal(table.to_numpy(), expected)
    assert set(table.dtypes) == {np.dtype("float32")}


class TestPredictOutputs:
    @pytest.fixture
    def call(self) -> dict[str, Any]:
        network = copy_of(untrained(), 2)
        vocab = extend_vocabulary(untrained().vocab, GENES, ["new0", "new1"])[0]
        x = np.random.default_rng(0).gamma(1, 1, (11, len(GENES))).astype(np.float32)
        # None, one, two, measured and not: rows of a batch get unlike numbers of tokens.
        targets = [targets_of(genes, vocab, {"G05"}) for genes in ([], ["G03"], ["new0", "G05"], ["new0", "new1"]) * 3]
        return {
            "network": network,
            "tokenizer": flag_tokenizer(network, vocab, GENES),
            "expression": x,
            "targets": targets[:11],
        }

    @pytest.mark.parametrize("batch_cells", [1, 2, 5, 100])
    def test_batches_change_nothing(self, call: dict[str, Any], batch_cells: int) -> None:
        outputs, cells = predict_outputs(**call, batch_cells=batch_cells, device=CPU)
        expected, embeddings = predict_outputs(**call, batch_cells=4, device=CPU)
        np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(cells, embeddings, rtol=0, atol=1e-6)

    def test_order_of_cells_changes_nothing(self, call: dict[str, Any]) -> None:
        order = np.random.default_rng(1).permutation(11)
        expected = predict_outputs(**call, batch_cells=4, device=CPU)
        call |= {"expression": call["expression"][order], "targets": [call["targets"][i] for i in order]}
        for ours, theirs in zip(predict_outputs(**call, batch_cells=4, device=CPU), expected, strict=True):
            np.testing.assert_allclose(ours, theirs[order], rtol=0, atol=1e-6)

    def test_every_flag_is_seen(self, call: dict[str, Any]) -> None:
        call |= {"expression": np.repeat(call["expression"][:1], 11, axis=0)}
        outputs, cells = predict_outputs(**call, batch_cells=11, device=CPU)
        for result in (outputs, cells):
            distance = np.abs(result[:4, None] - result[None, :4]).max(axis=2)
            assert (distance[~np.eye(4, dtype=bool)] > 1e-4).all()
            np.testing.assert_allclose(result[4:8], result[:4], rtol=0, atol=1e-6)

    def test_embeddings_have_unit_norm_and_the_network_comes_back(self, call: dict[str, Any]) -> None:
        call["network"].train()
        outputs, cells = predict_outputs(**call, batch_cells=4, device=CPU)
        np.testing.assert_allclose(np.linalg.norm(cells, axis=1), 1, atol=1e-6)
        assert outputs.shape == (11, len(GENES))
        assert not call["network"].training
        assert next(call["network"].parameters()).device == CPU


class TestRowsOfCells:
    def test_rows_are_means_of_their_cells(self) -> None:
        adata = log_normalised(counts())
        rows = RowsOfCells.of(screen_of(adata))
        x, labels = adata.X.toarray().astype(np.float64), adata.obs["perturbation"].to_numpy(str)
        for part, profiles in (("train", rows.train), ("validation", rows.validation)):
            assert set(profiles.perturbations) == set(PARTS[part])
            expected = [x[labels == name].mean(axis=0) for name in profiles.perturbations]
            np.testing.assert_allclose(profiles.means, expected, rtol=0, atol=1e-12)
            np.testing.assert_allclose(profiles.control_means[0], x[labels == "control"].mean(axis=0), atol=1e-12)

    def test_each_cell_knows_its_row(self) -> None:
        adata = counts(contexts=("A", "B"))
        adata.obs["perturbation"] = adata.obs["perturbation"].astype(object).where(adata.obs_names != "cell40", None)
        rows = RowsOfCells.of(screen_of(adata, context_key="cell_line"))
        names = [
            (profiles.context_names[context], name)
            for profiles in (rows.train, rows.validation)
            for name, context in zip(profiles.perturbations, profiles.contexts, strict=True)
        ]
        assert rows.of_cell[40] == -1
        in_row = adata.obs["split"].isin(["train", "validation"]) & ~adata.obs["perturbation"].isin(["control", None])
        np.testing.assert_array_equal(rows.of_cell >= 0, in_row)
        for row, line, name in zip(rows.of_cell, adata.obs["cell_line"], adata.obs["perturbation"], strict=True):
            assert row == -1 or names[row] == (line, name)
        assert set(rows.of_cell[rows.of_cell >= 0]) == set(range(len(names)))

    def test_cells_of_one_perturbation_may_be_in_several_parts(self) -> None:
        adata = log_normalised(counts())
        adata.obs["split"] = np.where(np.arange(adata.n_obs) % 3 == 0, "validation", "train")
        rows = RowsOfCells.of(screen_of(adata))
        assert rows.train.perturbations == rows.validation.perturbations
        assert (rows.train.n_cells + rows.validation.n_cells == 12).all()
        own = rows.of_cell == rows.train.perturbations.index("G03")
        assert own.sum() == 8
        np.testing.assert_allclose(
            rows.train.means[rows.train.perturbations.index("G03")], adata.X[own].toarray().mean(axis=0), atol=1e-6
        )

    def test_split_without_training_perturbation_is_refused(self) -> None:
        adata = counts()
        adata.obs["split"] = np.where(adata.obs["perturbation"] == "control", "train", "validation")
        with pytest.raises(DataError, match="No perturbed cell is in 'train'"):
            RowsOfCells.of(screen_of(adata))

    def test_prior_is_fitted_to_training_rows_alone(self) -> None:
        rows = RowsOfCells.of(screen_of(counts()))
        effect = dict(zip(rows.train.perturbations, rows.train.effects, strict=True))
        prior = dict(
            zip(
                (*rows.train.perturbations, *rows.validation.perturbations),
                rows.prior(RECIPES["additive"], None),
                strict=True,
            )
        )
        for name in PARTS["train"]:
            np.testing.assert_allclose(prior[name], effect[name], atol=1e-12)
        np.testing.assert_allclose(prior["G02+G03"], effect["G02"] + effect["G03"], atol=1e-12)
        assert not prior["G04"].any()  # never seen alone

    def test_held_out_prior_of_a_training_row_has_not_seen_it(self) -> None:
        adata = log_normalised(counts())
        own = (adata.obs["perturbation"] == "G02").to_numpy()
        first = RowsOfCells.of(screen_of(adata))
        shuffled = adata.X.toarray()
        shuffled[own] = shuffled[own][:, ::-1]
        adata.X = sp.csr_matrix(shuffled)
        second = RowsOfCells.of(screen_of(adata))
        row = first.train.perturbations.index("G02")
        one, other = (rows.held_out_prior(prior_of("ridge"), None) for rows in (first, second))
        np.testing.assert_array_equal(one[row], other[row])
        assert (np.abs(one - other).max(axis=1) > 1e-3).sum() == len(one) - 1

    def test_genes_are_known_to_a_prior_that_has_seen_them_elsewhere(self) -> None:
        rows, vocab = RowsOfCells.of(screen_of(counts())), GeneVocab.from_genes([*GENES, "X1", "X2"])
        names = (*rows.train.perturbations, *rows.validation.perturbations)

        def known(**how: bool) -> dict[str, list[bool]]:
            return {name: target.known.tolist() for name, target in zip(names, rows.targets(vocab, **how), strict=True)}

        whole = {name: [True] * (1 + ("+" in name)) for name in names} | {"G04": [False]}
        assert known(known=True) == whole
        # Without its own row, G00 and G01 are still in G00+G01, and the others in no other one.
        alone = {name: [False] for name in ("G02", "G03", "X1")}
        assert known(known=True, held_out=True) == whole | alone
        assert not any(sum(known(known=False).values(), []))

    def test_genes_are_known_within_their_context(self) -> None:
        adata = counts(contexts=("A", "B", "C"))
        line, name = adata.obs["cell_line"], adata.obs["perturbation"]
        adata = adata[~((line == "B") & (name == "G02")) & ~((line == "C") & ~name.isin(["control", "G02+G03"]))].copy()
        rows = RowsOfCells.of(screen_of(adata, context_key="cell_line"))
        targets = rows.targets(GeneVocab.from_genes([*GENES, "X1", "X2"]), known=True)[len(rows.train) :]
        known = dict(zip(rows.validation.labels, (target.known.tolist() for target in targets), strict=True))
        assert known["A | G02+G03"] == [True, True]
        assert known["B | G02+G03"] == [False, True]
        assert known["C | G02+G03"] == [True, True]  # nothing trains there, so the prior is that of all contexts


def test_training_cells_know_targets_that_are_not_measured() -> None:
    screen, model = screen_of(counts(), batch_key="batch"), untrained()
    rows = RowsOfCells.of(screen)
    vocab, _ = extend_vocabulary(model.vocab, GENES, ["X1", "X2"])
    network = model.network.perturbation_variant(len(vocab), len(model.vocab), seed=0)
    tokenizer = flag_tokenizer(network, vocab, GENES)
    cells = training_cells(screen, rows, vocab, tokenizer, prior=None, n_genes=None, seed=0)
    names = (*rows.train.perturbations, *rows.validation.perturbations)
    assert cells.targets[names.index("X1")].tokens.tolist() == [vocab["X1"]]
    assert cells.targets[names.index("G00+G01")].tokens.tolist() == [vocab["G00"], vocab["G01"]]
    assert vocab["X1"] in cells.tokens()
    # Partners of a cell are the control cells of its batch.
    control = (screen.conditions.codes == 0) & (np.asarray(screen.batches) == "batch1")
    np.testing.assert_array_equal(cells.pool_cells[cells.pools[31]], np.flatnonzero(control))
