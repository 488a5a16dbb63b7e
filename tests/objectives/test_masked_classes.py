import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.scberts import SIZES

from scgalore.data.tokenizer import Tokenizer
from scgalore.data.tokens import TokenizerConfig
from scgalore.errors import OptionError
from scgalore.nn import SCBERTConfig, SCBERTNetwork
from scgalore.objectives import MaskedClasses
from scgalore.optim.sophia import sample_classes

GENES, CLS, PAD = 40, 40, 41
OBJECTIVE = MaskedClasses(mask_value=6.0)


def batch_of(seed=0, n=12, *, every_gene=True):
    rng = np.random.default_rng(seed)
    x = rng.poisson(rng.choice([0.1, 1, 3], (n, 1)), (n, GENES)).astype(np.float32)
    x[:, 0] += 1
    config = TokenizerConfig(n_bins=6, cls_value=0, pad_value=0, classes=True, every_gene=every_gene)
    made = Tokenizer(np.arange(GENES), cls_id=CLS, pad_id=PAD, config=config, vocabulary=np.arange(GENES))
    return made.pad(made.encode(sp.csr_matrix(x), np.arange(n)))


def network_of(**config):
    torch.manual_seed(0)
    return SCBERTNetwork(SCBERTConfig(n_tokens=42, pad_id=PAD, **SIZES, **config))


@given(st.integers(0, 200), st.sampled_from([0.15, 0.5]), st.booleans())
def test_the_rounded_up_share_of_the_expressed_genes_is_to_be_predicted(seed, ratio, every_gene):
    batch = batch_of(seed, every_gene=every_gene)
    done = MaskedClasses(6.0, mask_ratio=ratio).corrupt(batch, seed=seed, draw=0)
    masked, expressed = done.targets["masked"], batch.values > 0
    assert masked.sum(1).tolist() == [math.ceil(n * ratio) for n in expressed.sum(1).tolist()]
    assert not (masked & ~expressed).any()
    assert torch.equal(done.targets["expression"], batch.values)
    changed = done.values != batch.values
    assert not (changed & ~masked).any()
    assert (done.values[changed] == 6).all()


def test_of_several_ratios_each_cell_draws_one():
    batch = batch_of(n=200)
    done = MaskedClasses(6.0, mask_ratio=(0.2, 0.6)).corrupt(batch, seed=0, draw=0)
    expressed, masked = ((x > 0).sum(1).double() for x in (batch.values, done.targets["masked"]))
    few, many = (torch.ceil(expressed * ratio) == masked for ratio in (0.2, 0.6))
    assert (few | many).all()
    assert (few & ~many).any()
    assert (many & ~few).any()


def test_nine_in_ten_are_hidden_and_the_others_keep_their_class():
    done = OBJECTIVE.corrupt(batch_of(n=800), seed=1, draw=0)
    masked = done.targets["masked"]
    share = float((done.values[masked] == 6).float().mean())
    n = int(masked.sum())
    assert abs(share - 0.9) < 4 * math.sqrt(0.09 / n)


@given(st.integers(0, 100))
def test_draws_belong_to_the_cell_the_seed_and_the_draw(seed):
    batch = batch_of(seed)
    whole = OBJECTIVE.corrupt(batch, seed=seed, draw=2)
    rows = torch.tensor([7, 2])
    picked = {name: value[rows] for name, value in vars(batch).items() if torch.is_tensor(value)}
    part = OBJECTIVE.corrupt(replace(batch, **picked), seed=seed, draw=2)
    assert torch.equal(part.values, whole.values[rows])
    assert torch.equal(part.targets["masked"], whole.targets["masked"][rows])
    for other in (OBJECTIVE.corrupt(batch, seed=seed, draw=3), OBJECTIVE.corrupt(batch, seed=seed + 1, draw=2)):
        assert not torch.equal(other.targets["masked"], whole.targets["masked"])


@pytest.mark.parametrize("attention", ["favor", "exact"])
def test_the_loss_is_the_mean_over_the_masked_genes(attention):
    network = network_of(attention=attention)
    done = OBJECTIVE.corrupt(batch_of(every_gene=attention == "favor"), seed=0, draw=0)
    hidden = network.encode(done.genes, done.values, done.padding_if_any).hidden
    log_p = network.class_logits(hidden).log_softmax(-1)
    terms, right = [], []
    for row, column in done.targets["masked"].nonzero().tolist():
        truth = int(done.targets["expression"][row, column])
        terms.append(-log_p[row, column, truth])
        right.append(int(log_p[row, column, 1:6].argmax()) + 1 == truth)
    loss = OBJECTIVE(network, done)
    torch.testing.assert_close(loss.total, torch.stack(terms).mean())
    assert float(loss.parts["accuracy"]) == pytest.approx(np.mean(right))
    assert loss.n == 12


def test_it_can_be_learnt():
    network, batch = network_of().train(), batch_of(n=4)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(30):
        loss = OBJECTIVE(network, OBJECTIVE.corrupt(batch, seed=0, draw=0)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


def test_curvature_is_measured_at_drawn_classes():
    network = network_of()
    done = OBJECTIVE.corrupt(batch_of(), seed=0, draw=0)
    loss, n = OBJECTIVE.self_sampled(network, done, torch.Generator().manual_seed(3))
    logits, masked = network.class_logits(network.encode(done.genes, done.values).hidden), done.targets["masked"]
    drawn = sample_classes(logits.flatten(0, 1), torch.Generator().manual_seed(3)).view_as(masked)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits[masked], drawn[masked]))
    assert n == int(masked.sum())


def test_a_cell_without_expression_gives_no_nan():
    batch = batch_of(n=2)
    empty = replace(batch, values=torch.zeros_like(batch.values))
    loss = OBJECTIVE(network_of(), OBJECTIVE.corrupt(empty, seed=0, draw=0)).total
    assert loss.item() == 0
    loss.backward()


@pytest.mark.parametrize(
    ("option", "value"), [("mask_ratio", 0), ("mask_ratio", 1.0), ("hidden_ratio", 0), ("hidden_ratio", 1.1)]
)
def test_ratios_out_of_range_are_refused(option, value):
    with pytest.raises(OptionError, match=option):
        MaskedClasses(6.0, **{option: value})


def test_a_network_without_classes_says_so(few, make_model):
    network = make_model(few.var_names).network
    with pytest.raises(OptionError, match="does not predict classes of expression"):
        network.class_logits(torch.zeros(1, 16))


def test_a_batch_that_was_not_prepared_is_refused():
    with pytest.raises(ValueError, match="corrupt"):
        OBJECTIVE(network_of(), batch_of())
