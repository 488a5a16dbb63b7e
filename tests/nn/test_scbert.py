import copy

import numpy as np
import pytest
import torch
from tests.scberts import FILE, SIZES, original, stored
from torch.nn import functional as F

from scgalore.nn import SCBERTConfig, SCBERTNetwork
from scgalore.nn import scbert as module
from scgalore.nn.scbert import FeatureAttention
from scgalore.weights.scbert import split_digits

N_GENES, CLS, PAD = 60, 60, 61
GENES = torch.cat([torch.tensor([CLS]), torch.arange(N_GENES)])  # ours has <cls> first
BACK = GENES.argsort()


@pytest.fixture(scope="module")
def z():
    return original()


def with_original_weights():
    config = SCBERTConfig(
        n_tokens=62, pad_id=PAD, d_model=40, d_head=16, n_heads=4, n_layers=3, d_hid=160, n_features=44, gene2vec=True
    )
    network = SCBERTNetwork(config)
    tensors = dict(stored())
    table = tensors["pos_emb.emb.weight"]
    tensors["pos_emb.emb.weight"], tensors["pos_emb.emb.digits"] = split_digits(
        torch.cat([table, torch.zeros_like(table[:1])])
    )
    network.load_state_dict(tensors)
    return network.eval()


@pytest.fixture
def network():
    return with_original_weights()


def encode(network, tokens, rows=slice(None)):
    tokens = torch.from_numpy(np.asarray(tokens))[rows][:, GENES]
    return network.encode(GENES.expand(len(tokens), -1), tokens.float())


# The original program ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_by_one", [True, False])
def test_every_sublayer_is_the_originals(network, z, one_by_one, agree):
    found: dict[str, list[torch.Tensor]] = {}

    def keep(name):
        def hook(part, inputs, output):
            found.setdefault(name, []).append(output[:, BACK])

        return hook

    for number, block in enumerate(network.blocks):
        block[0].register_forward_hook(keep(f"attention_{number}"))
        block[1].register_forward_hook(keep(f"feedforward_{number}"))
    for rows in [slice(row, row + 1) for row in range(5)] if one_by_one else [slice(None)]:
        hidden = encode(network, z["tokens"], rows).hidden
        found.setdefault("encodings", []).append(hidden[:, BACK])
        found.setdefault("logits", []).append(network.class_logits(hidden)[:, BACK])
    assert len(found) == 8
    for name, parts in found.items():
        agree(f"scbert/{name}", torch.cat(parts), z[name])


def test_the_originals_batch_of_five_differs_and_ours_does_not_follow_it(network, z, agree):
    logits = network.class_logits(encode(network, z["tokens"]).hidden)[:, BACK]
    assert np.abs(z["logits_batch_of_5"] - z["logits"]).max() > 0.02
    why = "the largest exponent of the keys is that of the cell and not of the batch; compared with the logits of one cell at a time"
    agree("scbert/logits_batch_of_5", logits, z["logits"], instead=why)


def test_losses_and_gradients_are_the_originals(network, z, agree):
    network.train()
    losses = []
    for row in range(5):
        one = slice(row, row + 1)
        logits = network.class_logits(encode(network, z["masked_input"], one).hidden)[:, BACK]
        loss = F.cross_entropy(logits[0], torch.from_numpy(z["labels"][row]).long(), ignore_index=6)
        loss.backward()
        losses.append(float(loss.detach()))
    agree("scbert/losses", torch.tensor(losses), z["losses"].astype(np.float32))
    names = [name.removeprefix("grad/") for name in z if name.startswith("grad/")]
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert set(names) == trained
    for name in names:
        agree(f"scbert/grad/{name}", network.get_parameter(name).grad, z[f"grad/{name}"])


def test_the_gene_table_is_frozen_as_the_originals(network):
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert frozen == ["pos_emb.emb.weight"]


# Any network ------------------------------------------------------------------------------------------------------


def small(**config):
    torch.manual_seed(0)
    return SCBERTNetwork(SCBERTConfig(n_tokens=20, pad_id=19, **{**SIZES, **config})).eval()


def cells(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    genes = torch.stack([torch.randperm(18, generator=generator)[: max(lengths)] for _ in lengths])
    values = torch.randint(0, 6, genes.shape, generator=generator).float()
    genes[:, 0], values[:, 0] = 18, 0
    padding = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    return genes.masked_fill(padding, 19), values.masked_fill(padding, 0), padding


@pytest.fixture(params=["favor", "exact"])
def attention(request):
    return request.param


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_padded_cell_is_the_unpadded_one_and_the_cell_alone_the_same(attention, pooling):
    network = small(attention=attention, pooling=pooling)
    genes, values, padding = cells([16, 1, 2, 9])
    whole = network.encode(genes, values, padding)
    for row, n in enumerate([16, 1, 2, 9]):
        alone = network.encode(genes[row : row + 1, :n], values[row : row + 1, :n])
        torch.testing.assert_close(alone.cell, whole.cell[row : row + 1], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.hidden, whole.hidden[row : row + 1, :n], rtol=0, atol=1e-5)
    short = network.encode(genes, values, padding, cell_only=True)
    torch.testing.assert_close(short.cell, whole.cell, rtol=0, atol=1e-5)
    assert short.hidden.shape[1] == (1 if pooling == "cls" else 16)


def test_a_head_of_tokens_is_the_originals(attention):
    network = small(attention=attention, head="tokens")
    network.put_heads(network.fresh_heads({"classes": 3}, seed=0))
    genes, values, padding = cells([16, 9])
    encoded = network.encode(genes, values, padding, cell_only=True)
    hidden, head = network.encode(genes, values, padding).hidden, network.cell_heads["classes"]
    for row, n in enumerate([16, 9]):
        scalars = torch.zeros(20)  # a convolution over the width of each token is one number of it
        weight, bias = network.to_scalars.weight[0], network.to_scalars.bias
        scalars[genes[row, :n]] = torch.relu((hidden[row, :n] * weight).sum(1) + bias)
        out = scalars
        for layer in (head.fc1, head.fc2, head.fc3):
            out = layer.weight @ (out if layer is head.fc1 else torch.relu(out)) + layer.bias
        torch.testing.assert_close(network.read_head("classes", encoded.cell)[row], out, rtol=0, atol=1e-5)
    assert network.embedding(encoded.cell).shape == (2, 32)


def test_the_order_of_tokens_does_not_matter(attention):
    network = small(attention=attention)
    genes, values, _ = cells([12, 12])
    order = torch.cat([torch.tensor([0]), 1 + torch.randperm(11, generator=torch.Generator().manual_seed(1))])
    ours, other = network.encode(genes, values), network.encode(genes[:, order], values[:, order])
    torch.testing.assert_close(other.cell, ours.cell, rtol=0, atol=1e-5)
    torch.testing.assert_close(other.hidden, ours.hidden[:, order], rtol=0, atol=1e-5)


def test_computing_blocks_again_changes_no_gradient(attention):
    genes, values, padding = cells([16, 5])
    grads = []
    for recompute in (False, True):
        network = small(attention=attention).train()
        network.recompute = recompute
        network.encode(genes, values, padding).cell.square().sum().backward()
        grads.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=0, atol=1e-6)


def test_bfloat16_is_near_float32(attention):
    network = small(attention=attention)
    genes, values, padding = cells([16, 5])
    expected = network.encode(genes, values, padding).cell
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network.encode(genes, values, padding).cell
    assert (found - expected).norm() < 0.05 * expected.norm()


# Features ---------------------------------------------------------------------------------------------------------


def features(network):
    return [part.projection_matrix.clone() for part in network.modules() if isinstance(part, FeatureAttention)]


def passes(network, n):
    genes, values, _ = cells([4])
    with torch.no_grad():
        for _ in range(n):
            network.encode(genes, values)


def test_features_are_redrawn_every_1001_training_passes_and_only_then():
    network = small(n_layers=1).train()
    first = features(network)
    passes(network, 1000)
    assert all(map(torch.equal, features(network), first))
    assert int(network.performer.calls_since_last_redraw) == 1000
    network.eval()
    passes(network, 3)  # embedding counts nothing
    network.train()
    passes(network, 1)
    second = features(network)
    assert not any(map(torch.equal, second, first))
    assert int(network.performer.calls_since_last_redraw) == 0
    passes(network, 5)
    assert all(map(torch.equal, features(network), second))


def test_redrawn_features_follow_from_the_seed_and_the_weights(monkeypatch):
    monkeypatch.setattr(module, "REDRAW_AFTER", 3)

    def run(network, n, seed):
        network.seed = seed
        passes(network.train(), n)
        return features(network)

    start = small()
    whole, again, other = (copy.deepcopy(start) for _ in range(3))
    drawn = run(whole, 11, seed=5)
    torch.manual_seed(17)  # nothing else that draws matters
    assert all(map(torch.equal, run(again, 11, seed=5), drawn))
    assert not any(map(torch.equal, run(other, 11, seed=6), drawn))
    stopped = copy.deepcopy(start)
    run(stopped, 6, seed=5)
    resumed = small()
    resumed.load_state_dict(stopped.state_dict())
    assert all(map(torch.equal, run(resumed, 5, seed=5), drawn))


def test_drawing_features_leaves_the_users_generator_alone(monkeypatch):
    monkeypatch.setattr(module, "REDRAW_AFTER", 1)
    network = small().train()
    state = torch.random.get_rng_state()
    passes(network, 4)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_exact_attention_has_no_features():
    assert not [name for name in small(attention="exact").state_dict() if "projection" in name or "calls" in name]


def test_sizes_are_seen_in_the_tensors(attention):
    network = small(attention=attention, gene2vec=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    seen = SCBERTConfig.seen_in(shapes)
    assert {name: getattr(network.config, name) for name in seen} == seen
    assert seen["n_layers"] == 2
    assert FILE.exists()
