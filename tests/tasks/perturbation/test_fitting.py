"""What a model learns of a screen, and what its predictions do and do not depend on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from numpy.typing import NDArray
from tests.steps import is_step
from tests.tiny_plugin import tiny_model
from tests.trained_screens import (
    GENES,
    PARTS,
    TRAINING,
    counts,
    fit_screen,
    log_normalised,
    screen_of,
    trained,
    untrained,
    without_validation,
)
from torch._subclasses.fake_tensor import FakeTensor

from scgalore.data.match import tokens_of_each
from scgalore.errors import DataError, OptionError
from scgalore.genes.identifiers import other_names
from scgalore.model import SCGPT
from scgalore.objectives import Perturbation
from scgalore.perturb.baselines.effects import PRIORS, prior_of
from scgalore.tasks import TASKS
from scgalore.tasks.perturbation.agents import targets_of
from scgalore.tasks.perturbation.effects import perturbed_embeddings, predict_effects
from scgalore.tasks.perturbation.networks import flag_tokenizer, predict_outputs
from scgalore.train.config import TrainConfig

CPU = torch.device("cpu")
NAMES = ("G05", "G01+G04", "X2", "G00+G01", "X1+X2")
# Human genes for the first of the screen, so that they have other names.
SYMBOLS = ("KMT2A", "TP53", "CEBPA", "KLF1", "BAK1", "MAP2K6")


def predict(
    model: SCGPT, adata: AnnData, names: tuple[str, ...] = NAMES, *, read: dict[str, Any] | None = None, **options: Any
) -> NDArray[np.float64]:
    """Effects, one row a name; with contexts ``"A | G00"``."""
    screen = screen_of(adata, **(read or {}))
    controls = screen.profiles()
    wanted = []
    for name in names:
        context, _, genes = name.rpartition(" | ")
        wanted.append((controls.context_names.index(context), tuple(genes.split("+"))))
    return predict_effects(model, screen, wanted, controls, device=CPU, **options)


def state(model: SCGPT) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def adata() -> AnnData:
    return log_normalised(counts())


@pytest.fixture(scope="module")
def learnt(adata: AnnData) -> SCGPT:
    """Trained without validation, so that its network says something; tests must leave it alone."""
    model = trained(without_validation(adata), fit={"hold_out": False})
    assert not model.network.starts_at_zero
    return model


@pytest.fixture
def silent(adata: AnnData) -> SCGPT:
    """Trained, with a decoder that was put back to zero."""
    model = trained(without_validation(adata), fit={"prior": "mixed", "hold_out": False})
    model.network.start_at_zero()
    return model


class TestWithASilentNetwork:
    def test_network_says_exactly_nothing(self, adata: AnnData, silent: SCGPT) -> None:
        tokenizer = flag_tokenizer(silent.network, silent.vocab, GENES)
        x = adata.X[:7].toarray()
        targets = [targets_of(["G03", "X2"], silent.vocab, {"G03"})] * 7
        assert not predict_outputs(silent.network, tokenizer, x, targets, batch_cells=3, device=CPU)[0].any()

    def test_predictions_are_the_priors(self, adata: AnnData, silent: SCGPT) -> None:
        known = screen_of(without_validation(adata)).profiles("train")
        rule = prior_of("mixed").fit(known)
        control = known.control_means[0]
        expected = [np.maximum(control + rule.predict(tuple(name.split("+"))), 0) - control for name in NAMES]
        np.testing.assert_array_equal(predict(silent, adata), expected)

    def test_other_columns_change_nothing_for_shared_genes(self, adata: AnnData, silent: SCGPT) -> None:
        whole = dict(zip(GENES, predict(silent, adata).T, strict=True))
        fewer = adata[:, GENES[4:20]].copy()
        other = AnnData(adata.X[:, ::-1].copy(), adata.obs, adata.var.iloc[::-1])
        extra = AnnData(
            sp.hstack([adata.X[:, ::-1], adata.X[:, :2]]).tocsr(),
            adata.obs,
            other.var.reindex([*GENES[::-1], "E1", "E2"]),
        )
        for smaller_or_larger in (fewer, other, extra):
            effects = predict(silent, smaller_or_larger)
            for gene, effect in zip(smaller_or_larger.var_names, effects.T, strict=True):
                np.testing.assert_array_equal(effect, whole.get(gene, np.zeros(len(NAMES))), err_msg=gene)

    def test_no_mean_is_predicted_below_zero(self, adata: AnnData, silent: SCGPT) -> None:
        assert silent.memory is not None
        assert silent.memory.prior is not None
        silent.memory.prior.by_context[""].rules[0].rows[:] -= 100
        control = screen_of(adata).profiles().control_means[0]
        means = control + predict(silent, adata, ("G00", "G00+G01"))
        assert np.abs(means).max() < 1e-12


class TestNames:
    """Genes are the same ones under other names: of columns, and of what is perturbed."""

    @staticmethod
    def renamed(adata: AnnData, names: tuple[str, ...]) -> AnnData:
        new = dict(zip(GENES, names, strict=False))
        out = adata.copy()
        out.var_names = [new.get(gene, gene) for gene in GENES]
        return out

    @pytest.fixture
    def human(self, adata: AnnData) -> AnnData:
        out = self.renamed(without_validation(adata), SYMBOLS)
        new = dict(zip(GENES, SYMBOLS, strict=False))
        labels = ["+".join(new.get(gene, gene) for gene in name.split("+")) for name in out.obs["perturbation"]]
        out.obs["perturbation"] = labels
        return out

    @pytest.mark.parametrize("silence", [True, False])
    def test_predictions_do_not_depend_on_them(self, human: AnnData, silence: bool) -> None:
        model = tiny_model(human.var_names)
        fit_screen(model, screen_of(human), TrainConfig(**TRAINING), hold_out=False)
        if silence:
            model.network.start_at_zero()
        by_id = self.renamed(human, tuple(other_names(symbol).steps[0][0] for symbol in SYMBOLS))
        assert by_id.var_names[1] == "ENSG00000141510"
        expected = predict(model, human, ("KMT2A", "KMT2A+TP53", "KMT2A"))
        assert np.abs(expected[0]).max() > 0.05
        given = predict(model, by_id, ("MLL", "ENSG00000141510.18+MLL", "KMT2A"))
        np.testing.assert_allclose(given, expected, rtol=0, atol=1e-6)

    def test_measured_gene_may_be_perturbed_under_another_name(self, human: AnnData) -> None:
        human.obs["perturbation"] = human.obs["perturbation"].str.replace("KMT2A", "MLL")
        model = tiny_model(human.var_names)
        fit_screen(model, screen_of(human), TrainConfig(**TRAINING), hold_out=False)
        assert model.memory is not None
        assert model.memory.params["added_genes"] == ["X1", "X2"]
        one, other = (predict(model, human, (name,)) for name in ("MLL", "KMT2A"))
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


class TestPredictions:
    def test_batches_change_nothing(self, adata: AnnData, learnt: SCGPT) -> None:
        expected = predict(learnt, adata)
        for batch_tokens in (1, 100, 301, 10**6):
            np.testing.assert_allclose(predict(learnt, adata, batch_tokens=batch_tokens), expected, rtol=0, atol=1e-6)

    def test_other_perturbations_asked_for_change_nothing(self, adata: AnnData, learnt: SCGPT) -> None:
        together = predict(learnt, adata)
        for name, effect in zip(NAMES, together, strict=True):
            np.testing.assert_array_equal(predict(learnt, adata, (name,))[0], effect)
        np.testing.assert_array_equal(predict(learnt, adata, NAMES[::-1]), together[::-1])

    def test_order_of_cells_changes_nothing_where_all_control_cells_count(self, adata: AnnData, learnt: SCGPT) -> None:
        # With fewer, the seed chooses them by their position.
        shuffled = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
        np.testing.assert_allclose(predict(learnt, shuffled), predict(learnt, adata), rtol=0, atol=1e-6)

    def test_perturbed_cells_of_the_data_change_nothing(self, adata: AnnData, learnt: SCGPT) -> None:
        controls = adata[adata.obs["perturbation"] == "control"].copy()
        np.testing.assert_allclose(predict(learnt, controls), predict(learnt, adata), rtol=0, atol=1e-6)

    def test_seed_chooses_the_control_cells(self, adata: AnnData, learnt: SCGPT) -> None:
        one, same, other = (predict(learnt, adata, n_controls=5, seed=seed) for seed in (0, 0, 1))
        np.testing.assert_array_equal(one, same)
        assert np.abs(one - other).max() > 1e-6
        np.testing.assert_array_equal(predict(learnt, adata, seed=0), predict(learnt, adata, seed=1))

    def test_order_of_genes_in_a_perturbation_changes_nothing(self, adata: AnnData, learnt: SCGPT) -> None:
        given = predict(learnt, adata, ("X2+X1", "G04+G01"))
        np.testing.assert_allclose(given, predict(learnt, adata, ("X1+X2", "G01+G04")), rtol=0, atol=1e-6)

    def test_network_tells_perturbed_genes_apart(self, adata: AnnData, learnt: SCGPT) -> None:
        # The prior says the same of genes that it does not know.
        effects = predict(learnt, adata, ("G05", "X2", "G20"))
        assert np.abs(effects[:, None] - effects[None]).max(axis=2)[~np.eye(3, dtype=bool)].min() > 1e-6

    def test_gene_without_token_is_refused(self, adata: AnnData, learnt: SCGPT) -> None:
        with pytest.raises(DataError, match="no token for the gene 'NOSUCH' and"):
            predict(learnt, adata, ("G01", "G01+NOSUCH"))

    def test_embeddings_are_of_each_cell_with_its_own_genes(self, adata: AnnData, learnt: SCGPT) -> None:
        screen = screen_of(adata)
        genes: list[tuple[str, ...]] = [(), ("G05",), ("X1", "X2")]
        wanted = [genes[i % 3] for i in range(adata.n_obs)]
        cells = perturbed_embeddings(learnt, screen, wanted, device=CPU)
        batched = perturbed_embeddings(learnt, screen, wanted, device=CPU, batch_tokens=200)
        np.testing.assert_allclose(cells, batched, rtol=0, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(cells, axis=1), 1, atol=1e-6)
        plain = perturbed_embeddings(learnt, screen, [()] * adata.n_obs, device=CPU)
        distance = np.abs(cells - plain).max(axis=1)
        np.testing.assert_array_equal(distance < 1e-5, [of_cell == () for of_cell in wanted])


class TestFit:
    def test_seed_decides_every_number(self, adata: AnnData) -> None:
        one, same, other = (trained(adata, rng=rng) for rng in (0, 0, 1))
        assert equal(state(one), state(same))
        np.testing.assert_array_equal(predict(one, adata), predict(same, adata))
        assert not equal(state(one), state(other))

    def test_counts_and_their_logarithms_are_the_same_screen(self, adata: AnnData) -> None:
        models = [trained(x) for x in (counts(), adata)]
        assert equal(*map(state, models))
        np.testing.assert_array_equal(predict(models[0], counts()), predict(models[1], adata))

    def test_memory_is_of_all_parts_but_the_test(self, adata: AnnData) -> None:
        model = trained(adata, fit={"prior": "mixed"})
        memory = model.memory
        assert memory is not None
        assert memory.prior is not None
        assert {part: set(names) for part, names in memory.perturbations.items()} == {
            part: set(names) for part, names in PARTS.items()
        }
        expected = prior_of("mixed").fit(screen_of(adata).profiles("train", "validation"))
        np.testing.assert_array_equal(memory.prior.pooled.rules[0].rows, expected.pooled.rules[0].rows)
        assert memory.genes == GENES
        assert memory.params["added_genes"] == ["X1", "X2"]
        assert set(tokens_of_each([*GENES, "X1", "X2"], model.vocab)) == set(range(30)) | {33, 34}

    def test_without_prior_the_network_predicts_expression(self, adata: AnnData) -> None:
        model = trained(adata, fit={"prior": "none"})
        assert model.memory is not None
        assert model.memory.prior is None
        screen = screen_of(adata)
        control = np.flatnonzero(screen.conditions.codes == 0)
        tokenizer = flag_tokenizer(model.network, model.vocab, GENES)
        x = adata.X[control].toarray()
        targets = [targets_of(["G01", "G04"], model.vocab, ())] * len(x)
        output, _ = predict_outputs(model.network, tokenizer, x, targets, batch_cells=8, device=CPU)
        mean = x.mean(axis=0, dtype=np.float64)
        expected = np.maximum(output.mean(axis=0, dtype=np.float64), 0) - mean
        np.testing.assert_allclose(predict(model, adata, ("G01+G04",))[0], expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("prior", ["additive", "ridge", "linear"])
    def test_every_prior_trains_and_predicts(self, adata: AnnData, prior: str) -> None:
        model = trained(adata, fit={"prior": prior})
        assert model.memory is not None
        assert model.memory.prior is not None
        assert model.memory.prior.name == prior
        scores = model.memory.stats["validation_pearson_delta"]
        assert scores["model"] >= scores[f"prior ({prior})"] - 1e-6
        assert np.isfinite(predict(model, adata)).all()

    def test_steps_may_see_some_of_the_genes(self, adata: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
        lengths = set()
        loss = Perturbation.__call__

        def watched(self: Perturbation, network: Any, batch: Any) -> Any:
            if is_step(network, batch):
                lengths.add(int(batch.targets["masked"][0].sum()))
            return loss(self, network, batch)

        monkeypatch.setattr(Perturbation, "__call__", watched)
        model = trained(adata, fit={"genes_per_step": 12})
        assert lengths == {12}
        assert predict(model, adata).shape == (len(NAMES), len(GENES))

    def test_epochs_that_do_worse_than_the_prior_leave_the_prior(self, adata: AnnData) -> None:
        model = trained(adata, lr=1.0, warmup=0.0, optimizer="adamw")
        assert model.memory is not None
        stats = model.memory.stats
        assert model.result.best_epoch == stats["best_epoch"] == -1
        assert model.network.starts_at_zero
        scores = stats["validation_pearson_delta"]
        assert scores["model"] == pytest.approx(scores["prior (chosen)"])

    def test_without_validation_some_training_perturbations_choose_the_epoch(self, adata: AnnData) -> None:
        everything = without_validation(adata)
        model = trained(everything, lr=1.0, warmup=0.0, optimizer="adamw")
        assert model.memory is not None
        stats = model.memory.stats
        assert (stats["training_perturbations"], stats["validation_perturbations"]) == (6, 2)
        assert stats["best_epoch"] == -1
        # The prior and what is written know nothing of it.
        assert model.memory.prior is not None
        known = {*PARTS["train"], *PARTS["validation"]}
        assert set(model.memory.perturbations["train"]) == model.memory.prior.pooled.measured == known
        assert model.memory.perturbations["validation"] == []

    def test_score_of_the_model_is_that_of_its_predictions(self, adata: AnnData) -> None:
        """The best epoch's score is Pearson's correlation on the validation perturbations, measured anew."""
        model = trained(adata, max_epochs=3, fit={"prior": "none"})
        assert model.memory is not None
        screen = screen_of(adata)
        validation = screen.profiles("validation")
        tokenizer = flag_tokenizer(model.network, model.vocab, GENES)
        x = adata.X[np.flatnonzero(screen.conditions.codes == 0)].toarray()
        scores = []
        for genes, truth in zip(validation.perturbed, validation.effects, strict=True):
            targets = [targets_of(genes, model.vocab, ())] * len(x)
            output, _ = predict_outputs(model.network, tokenizer, x, targets, batch_cells=8, device=CPU)
            scores.append(np.corrcoef(output.mean(axis=0) - x.mean(axis=0), truth)[0, 1])
        # Validation draws its control cells, so that a few of them count more than once.
        assert model.memory.stats["validation_pearson_delta"]["model"] == pytest.approx(np.mean(scores), abs=0.01)


class TestSplits:
    def test_cells_of_one_perturbation_in_several_parts(self, adata: AnnData) -> None:
        adata = adata.copy()
        parts = np.array(["train", "train", "validation", "test"])[np.arange(adata.n_obs) % 4]
        adata.obs["split"] = np.where(adata.obs["perturbation"] == "control", "train", parts)
        model = trained(adata)
        assert model.memory is not None
        stats = model.memory.stats
        names = {name for members in PARTS.values() for name in members}
        assert {part: set(found) for part, found in model.memory.perturbations.items()} == dict.fromkeys(PARTS, names)
        assert stats["training_cells"] == ((parts == "train") & (adata.obs["perturbation"] != "control")).sum()
        assert stats["training_perturbations"] == stats["validation_perturbations"] == len(names)
        assert predict(model, adata, tuple(names)).shape == (len(names), len(GENES))

    def test_held_out_context_gets_the_pooled_prior_and_its_own_controls(self) -> None:
        adata = log_normalised(counts(contexts=("A", "B", "C")))
        line, perturbed = adata.obs["cell_line"], adata.obs["perturbation"] != "control"
        part = line.astype(str).map({"A": "train", "B": "validation", "C": "test"})
        adata.obs["split"] = part.where(perturbed, "train")
        read = {"context_key": "cell_line"}
        model = trained(adata, read=read)
        assert model.memory is not None
        assert model.memory.prior is not None
        model.network.start_at_zero()
        assert set(model.memory.prior.by_context) == {"A", "B"}
        control = adata.X[((line == "C") & ~perturbed).to_numpy()].toarray().mean(axis=0, dtype=np.float64)
        prior = model.memory.prior.predict(("G03",), "C", control=control)
        np.testing.assert_array_equal(
            model.memory.prior.of("C").predict(("X1",)), model.memory.prior.pooled.predict(("X1",))
        )
        expected = np.maximum(control + prior, 0) - control
        np.testing.assert_allclose(predict(model, adata, ("C | G03",), read=read)[0], expected, rtol=0, atol=1e-12)

    def test_contexts_have_effects_of_their_own(self) -> None:
        adata = log_normalised(counts(contexts=("A", "B")))
        # What a gene does in B is what its mirror image does in A.
        of_b = (adata.obs["cell_line"] == "B").to_numpy()
        x = adata.X.toarray()
        x[of_b] = x[~of_b][:, ::-1]
        adata.X = sp.csr_matrix(x)
        read = {"context_key": "cell_line"}
        fit = {"prior": "mixed"}
        model = trained(adata, read=read, fit=fit)
        model.network.start_at_zero()
        names = ("G00", "G05", "G00+G01")
        for line, cells in (("A", ~of_b), ("B", of_b)):
            alone = trained(adata[cells].copy(), fit=fit)
            alone.network.start_at_zero()
            np.testing.assert_allclose(
                predict(model, adata, tuple(f"{line} | {name}" for name in names), read=read),
                predict(alone, adata[cells].copy(), names),
                rtol=0,
                atol=1e-12,
            )


class TestStatistics:
    @pytest.mark.parametrize(
        "how", [{"batch_size": 20}, {"batch_size": 20, "accumulate": 3}, {"batch_size": 64, "batch_tokens": 300}]
    )
    def test_counts_are_those_of_the_run(
        self, adata: AnnData, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen, steps = [0], [0]
        loss, step = Perturbation.__call__, torch.optim.AdamW.step

        def watched(self: Perturbation, network: Any, batch: Any) -> Any:
            # The estimate of the memory traces a step on a batch without cells.
            is_real = not isinstance(batch.values, FakeTensor)
            seen[0] += len(batch) * (network.training and is_real)
            return loss(self, network, batch)

        def counted(self: torch.optim.AdamW, *args: Any, **options: Any) -> Any:
            steps[0] += 1
            return step(self, *args, **options)

        monkeypatch.setattr(Perturbation, "__call__", watched)
        monkeypatch.setattr(torch.optim.AdamW, "step", counted)
        model = trained(adata, optimizer="adamw", max_epochs=3, **how)
        assert model.memory is not None
        stats = model.memory.stats
        assert (stats["cells_seen"], stats["gradient_steps"]) == (seen[0], steps[0])
        assert stats["epochs"] == len(model.history) == 3
        assert stats["stopped_because"] == "max_epochs reached"
        assert stats["best_epoch"] == model.result.best_epoch

    def test_reason_of_an_early_stop(self, adata: AnnData) -> None:
        model = trained(adata, lr=1.0, warmup=0.0, optimizer="adamw", max_epochs=9, patience=2)
        assert model.memory is not None
        assert model.memory.stats["epochs"] == 2
        assert model.memory.stats["stopped_because"] == "no better epoch in 2"


class TestGoingOn:
    def test_decoder_that_predicts_expression_does_not_correct_a_prior(self, adata: AnnData) -> None:
        """Otherwise its output would be added to the prior's, and the start would score as if it were not."""
        model = trained(adata, fit={"prior": "none"})
        flags = state(model)["pert_encoder.weight"]
        fit_screen(model, screen_of(adata), TrainConfig(**{**TRAINING, "lr": 1.0, "warmup": 0.0, "optimizer": "adamw"}))
        assert model.result.best_epoch == -1
        assert model.network.starts_at_zero
        assert torch.equal(state(model)["pert_encoder.weight"], flags)

    def test_decoder_that_corrects_a_prior_goes_on(self, adata: AnnData, learnt: SCGPT) -> None:
        model = SCGPT(learnt.network, learnt.vocab)
        model.result = learnt.result
        before = state(learnt)
        fit_screen(model, screen_of(adata), TrainConfig(**{**TRAINING, "lr": 1e-12, "max_epochs": 1}))
        # The weights that training started from have not been scored, so the epoch counts.
        assert model.result.best_epoch == 0
        after = state(model)
        assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in before)
        assert equal(state(learnt), before)

    def test_other_training_forgets_the_screen(self, adata: AnnData) -> None:
        model = untrained()
        model.result = trained(adata).result
        model.train(adata, max_epochs=1, accelerator="cpu")
        assert model.memory is None

    def test_network_that_reads_flags_is_not_trained_for_another_task(self, adata: AnnData, learnt: SCGPT) -> None:
        before, memory = state(learnt), learnt.memory
        for labels_key in (None, "batch"):
            with pytest.raises(OptionError, match="needs `flags`"):
                learnt.train(adata, labels_key=labels_key, max_epochs=1, accelerator="cpu")
            assert learnt.memory is memory
            assert equal(state(learnt), before)


FAILURES: dict[str, tuple[type[BaseException], str | None]] = {
    "prior": (OptionError, "no baseline 'mix'"),
    "nothing to train on": (DataError, "No perturbed cell is in 'train'"),
    "loss": (DataError, "became nan"),
    "interrupt": (KeyboardInterrupt, None),
}


@pytest.mark.parametrize("before", [untrained, lambda: trained(counts())], ids=["untrained", "trained"])
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.filterwarnings("ignore:.*NaN or infinity in a gradient.*")
def test_failing_training_leaves_the_model_as_it_was(
    before: Callable[[], SCGPT], failure: str, adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, adata = before(), adata.copy()
    network, vocab, screen = model.network, model.vocab, model.memory
    weights, history, provenance = state(model), model.history.copy(), dict(model.provenance)
    if failure == "nothing to train on":
        adata.obs["split"] = "test"
    if failure == "loss":
        loss = Perturbation.__call__
        monkeypatch.setattr(
            Perturbation, "__call__", lambda *args: (got := loss(*args))._replace(total=got.total * float("nan"))
        )
    if failure == "interrupt":
        monkeypatch.setattr("scgalore.train.callbacks.BestWeights.on_train_epoch_end", _interrupt)
    error, message = FAILURES[failure]
    with pytest.raises(error, match=message):
        fit_screen(model, screen_of(adata), TrainConfig(**TRAINING), prior="mix" if failure == "prior" else "mixed")
    assert model.network is network
    assert model.vocab is vocab
    assert model.memory is screen
    assert equal(state(model), weights)
    assert model.history.equals(history)
    assert model.provenance == provenance
    assert not model.network.training


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_prior_that_does_not_exist_is_refused() -> None:
    (option,) = (option for option in TASKS["perturbation"].arguments if option.name == "prior")
    for prior in ("chosen", *PRIORS, "none"):
        assert option.check(prior) == prior
    with pytest.raises(OptionError, match="prior='training mean': choose one of 'chosen', 'mixed'.*'none'"):
        option.check("training mean")
