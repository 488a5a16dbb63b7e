from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from scgalore.data.vocab import GeneVocab
from scgalore.nn import Encoded, SCGPTConfig, SCGPTNetwork
from scgalore.nn.network import CellExpressionDecoder, PerBatchNorm
from scgalore.objectives.losses import elastic_similarity

PAD, CLS = 17, 18
ZEROED = "torch's fast path leaves hidden states at padding 0, ours ordinary numbers; compared with ours set to 0"
FIRST_LABEL = (
    "each cell is normalised by its own batch, upstream's by the first label of the mini-batch; "
    "compared with ours normalised by that label"
)


def small(**parts):
    torch.manual_seed(0)
    config = {"d_model": 8, "n_heads": 2, "d_hid": 12, "n_layers": 2, "n_classes": 3, **parts}
    network = SCGPTNetwork(SCGPTConfig(n_tokens=20, pad_id=PAD, **config)).eval()
    for parameter in network.parameters():  # biases and norms start at 0 and 1, where a forgotten one would not show
        torch.nn.init.normal_(parameter, std=0.5)
    return network


def cells(lengths, seed=0):
    """Genes, values and padding of cells with some numbers of tokens, `<cls>` included."""
    generator = torch.Generator().manual_seed(seed)
    genes = torch.stack([torch.randperm(PAD, generator=generator)[: max(lengths)] for _ in lengths])
    values = torch.randint(1, 51, genes.shape, generator=generator).float()
    genes[:, 0], values[:, 0] = CLS, -2
    padding = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    return genes.masked_fill(padding, PAD), values.masked_fill(padding, -2), padding


def everything(network, genes, values, padding, **context):
    """Outputs of every head that the network has; those of single tokens are 0 at padding."""
    encoded = network.encode(genes, values, padding, **context)
    batches = context.get("batches")
    tokens = [encoded.hidden[..., 0], network.expression(encoded, values, batches)[0]]
    tokens += [network.expression_from_cell(encoded, batches)[0]] if network.mvc_decoder else []
    real = torch.ones_like(values) if padding is None else (~padding).float()
    return [encoded.cell, network.classify(encoded), *(x * real for x in tokens)]


def assert_close(ours, expected, atol=1e-6):
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


# The original program: the network of the released weights --------------------------------------------------------


@pytest.fixture(scope="module")
def base(original):
    return original.arrays("base")


def at_padding(network, output, padding):
    """Replace what a decoder made of hidden states at padding by what it makes of zeros."""
    zeros = torch.zeros(1, 1, network.config.d_model)
    of_zeros, _ = network.expression(Encoded(zeros, zeros, zeros[:, 0]), zeros[..., 0])
    return torch.where(padding, of_zeros, output)


@pytest.mark.parametrize("weights", ["full_wqkv", "full_impl_wqkv", "full_in_proj"])
def test_encoder_and_heads(original, base, agree, weights):
    network, batch = original.network(f"model/{weights}.pt"), original.batch()
    encoded = network.encode(batch.genes, batch.values, batch.padding)
    agree("base/encoder_output_autograd", encoded.hidden, base["encoder_output_autograd"])
    zeroed = encoded._replace(hidden=encoded.hidden.masked_fill(batch.padding[..., None], 0))
    agree("base/encoder_output", zeroed.hidden, base["encoder_output"], instead=ZEROED)
    agree("base/mlm_output", network.expression(zeroed, batch.values)[0], base["mlm_output"], instead=ZEROED)
    agree("base/gene_token_embs", encoded.genes, base["gene_token_embs"])
    agree("base/value_embs", network.value_encoder(batch.values), base["value_embs"])
    agree("base/cell_emb", encoded.cell, base["cell_emb"])
    agree("base/mvc_output", network.expression_from_cell(encoded)[0], base["mvc_output"])
    agree("base/cls_output", network.classify(encoded), base["cls_output"])


def test_official_layout_has_the_same_encoder(original, base):
    network, batch = original.network("model/best_model.pt"), original.batch()
    assert network.config.n_classes == 0
    encoded = network.encode(batch.genes, batch.values, batch.padding)
    np.testing.assert_allclose(encoded.cell.detach(), base["cell_emb"], rtol=0, atol=1e-5)


def test_values_saturate(original, base, agree):
    values = torch.from_numpy(base["clamp_values"])
    agree("base/clamp_value_embs", original.network().value_encoder(values), base["clamp_value_embs"])


def test_average_over_tokens(original, base, agree):
    network, batch = original.network(cell_style="avg-pool"), original.batch()
    encoded = network.encode(batch.genes, batch.values, batch.padding)
    n_real = (~batch.padding).sum(dim=1, keepdim=True)
    agree(
        "base/cell_emb_avg-pool",
        encoded.cell * n_real / batch.padding.shape[1],
        base["cell_emb_avg-pool"],
        instead="ours is the mean over real tokens, upstream's divides by all; compared with ours x real / all tokens",
    )
    agree(
        "base/cell_emb_avg-pool_autograd",
        encoded.hidden.mean(dim=1),
        base["cell_emb_avg-pool_autograd"],
        instead="ours leaves padding out; compared with the mean of our hidden states over all positions",
    )


def test_average_weighted_by_values(original, base, agree):
    network, batch = original.network(cell_style="w-pool"), original.batch()
    encoded = network.encode(batch.genes, batch.values, batch.padding)
    agree("base/cell_emb_w-pool", encoded.cell, base["cell_emb_w-pool"])
    agree(
        "base/cell_emb_w-pool_autograd",
        F.normalize((encoded.hidden * batch.values[..., None]).sum(dim=1), dim=1),
        base["cell_emb_w-pool_autograd"],
        instead="ours leaves padding out; compared with our hidden states weighted at all positions",
    )


def test_generation(original, base, agree):
    network, batch = original.network(), original.batch()
    cell = network.encode(batch.genes, batch.values, batch.padding).cell
    for name, values in [("values", batch.values), ("no_values", None)]:
        generated = network.generate(cell, batch.genes, values, batch.padding)
        whole = at_padding(network, generated, batch.padding)
        agree(f"base/generate_{name}", whole, base[f"generate_{name}"], instead=ZEROED)


# The original program: variants -----------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["category", "scaling", "batchnorm"])
def test_input_styles(original, agree, style):
    theirs = original.arrays("styles")
    network, batch = original.network(f"styles/{style}.pt"), original.batch()
    values = torch.from_numpy(theirs[f"{style}_values"]) if style != "batchnorm" else batch.values
    encoded = network.encode(batch.genes, values, batch.padding)
    agree(f"styles/{style}/cell_emb", encoded.cell, theirs[f"{style}/cell_emb"])
    whole = at_padding(network, network.expression(encoded, values)[0], batch.padding)
    agree(f"styles/{style}/mlm_output", whole, theirs[f"{style}/mlm_output"], instead=ZEROED)
    agree(f"styles/{style}/mvc_output", network.expression_from_cell(encoded)[0], theirs[f"{style}/mvc_output"])


def test_decoder_from_cell_alone(original, base, agree):
    decoder = CellExpressionDecoder(32, 32, zero_probabilities=False)
    decoder.load_state_dict(original.checkpoint("styles/mvc_inner_product.pt").tensors)
    expression, _ = decoder(torch.from_numpy(base["cell_emb"]), torch.from_numpy(base["gene_token_embs"]))
    agree("styles/mvc_decoder/inner product", expression, original.arrays("styles")["mvc_decoder/inner product"])


def heads_of_batches(network, encoded, batch, labels):
    """Outputs of an integration network under upstream's names."""
    hidden = encoded.hidden.masked_fill(batch.padding[..., None], 0)
    expression, nonzero = network.expression(encoded._replace(hidden=hidden), batch.values, labels)
    from_cell, nonzero_from_cell = network.expression_from_cell(encoded, labels)
    return {
        "cell_emb": encoded.cell,
        "mlm_output": expression,
        "mlm_zero_probs": nonzero,
        "mvc_output": from_cell,
        "mvc_zero_probs": nonzero_from_cell,
        "dab_output": network.discriminate(encoded),
    }


def test_batches_one_at_a_time(original, agree):
    theirs = original.arrays("integration")
    network, batch = original.network("integration/best_model.pt"), original.batch()
    for label in (0, 1):
        labels = torch.full((6,), label)
        encoded = network.encode(batch.genes, batch.values, batch.padding, batches=labels)
        for name, output in heads_of_batches(network, encoded, batch, labels).items():
            instead = ZEROED if name.startswith("mlm") else ""
            agree(f"integration/b{label}/{name}", output, theirs[f"b{label}/{name}"], instead=instead)
        agree(f"integration/b{label}/cls_output", network.classify(encoded), theirs[f"b{label}/cls_output"])
        similarity = elastic_similarity(encoded.cell, 0.8)
        agree(f"integration/b{label}/loss_ecs", similarity, theirs[f"b{label}/loss_ecs"])
    agree("integration/encode_batch_cls", encoded.cell, theirs["encode_batch_cls"])


def test_mixed_batches(original, agree):
    theirs = original.arrays("integration")
    network, batch = original.network("integration/best_model.pt"), original.batch()
    first = batch.batches[:1].expand(6)
    as_upstream = network.encode(batch.genes, batch.values, batch.padding, batches=first)
    for name, output in heads_of_batches(network, as_upstream, batch, batch.batches).items():
        agree(f"integration/mixed/{name}", output, theirs[f"mixed/{name}"], instead=FIRST_LABEL)
    ours = network.encode(batch.genes, batch.values, batch.padding, batches=batch.batches).cell.detach()
    own = np.stack([theirs[f"b{label}/cell_emb"][row] for row, label in enumerate(batch.batches.tolist())])
    np.testing.assert_allclose(ours, own, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def perturb(original):
    theirs = original.arrays("perturb")
    n_cells = len(theirs["expr"])
    genes = torch.from_numpy(theirs["gene_ids"]).expand(n_cells, -1)
    return theirs, genes, torch.from_numpy(theirs["expr"]), torch.from_numpy(theirs["pert_flags"]).long()


@pytest.mark.parametrize(
    ("weights", "parts"),
    [("default", {}), ("relu_adaptive", {"decoder_activation": "ReLU", "adaptive_bias": True}), ("mvc_cls_ecs", {})],
)
def test_perturbation(original, perturb, agree, weights, parts):
    theirs, genes, values, flags = perturb
    network = original.network(f"perturb/{weights}.pt", pert_pad_id=0, **parts)
    encoded = network.encode(genes, values, flags=flags)
    agree(f"perturb/{weights}/mlm_output", network.expression(encoded, values)[0], theirs[f"{weights}/mlm_output"])
    if weights == "default":
        agree("perturb/encoder_output", encoded.hidden, theirs["encoder_output"])
        agree("perturb/pred_perturb/all", network.expression(encoded, values)[0], theirs["pred_perturb/all"])
    if weights == "mvc_cls_ecs":
        agree("perturb/mvc_cls_ecs/cls_output", network.classify(encoded), theirs["mvc_cls_ecs/cls_output"])
        from_cell, _ = network.expression_from_cell(encoded)
        agree("perturb/mvc_cls_ecs/mvc_output", from_cell, theirs["mvc_cls_ecs/mvc_output"])
        loss = elastic_similarity(encoded.cell, 0.3)
        agree("perturb/mvc_cls_ecs/loss_ecs", loss, theirs["mvc_cls_ecs/loss_ecs"])


def test_perturbation_of_expressed_genes(original, perturb, agree):
    theirs, genes, values, flags = perturb
    network = original.network("perturb/default.pt", pert_pad_id=0)
    kept = (values != 0).any(dim=0)
    assert not kept.all()
    predicted = torch.zeros_like(values)
    encoded = network.encode(genes[:, kept], values[:, kept], flags=flags[:, kept])
    predicted[:, kept] = network.expression(encoded, values[:, kept])[0]
    agree(
        "perturb/pred_perturb/batch-wise",
        predicted,
        theirs["pred_perturb/batch-wise"],
        instead="which genes run is the caller's choice; compared with ours on the genes expressed in the batch, others 0",
    )


def test_genes_that_the_vocabulary_lacks(original, perturb):
    theirs = perturb[0]
    vocab = GeneVocab.from_file(original.folder() / "vocab.json")
    ids = vocab.ids(theirs["gene_names"].tolist())
    np.testing.assert_array_equal(np.where(ids < 0, vocab.pad_id, ids), theirs["gene_ids"])
    assert (ids < 0).sum() == 5


# What must not matter ---------------------------------------------------------------------------------------------

PARTS = {
    "cls": {},
    "avg-pool": {"cell_style": "avg-pool"},
    "w-pool": {"cell_style": "w-pool"},
    "category": {"value_style": "category", "n_value_bins": 53, "mvc": False},
    "scaling": {"value_style": "scaling"},
    "shared-norm": {"batch_norm": "shared"},
    "batches": {"n_batches": 2, "batch_labels": True, "batch_norm": "per-batch", "zero_probabilities": True},
}


@pytest.fixture(params=PARTS.values(), ids=PARTS)
def network(request):
    return small(**request.param)


def inputs(network, lengths, seed=0):
    genes, values, padding = cells(lengths, seed)
    if network.config.value_style == "category":
        values = values.where(values > 0, 51)
    context = {"batches": torch.arange(len(genes)) % 2} if network.config.n_batches else {}
    return genes, values, padding, context


def test_a_padded_cell_is_the_unpadded_one(network):
    genes, values, padding, context = inputs(network, [16, 1, 2, 9, 5])
    padded = everything(network, genes, values, padding, **context)
    for row, n in enumerate([16, 1, 2, 9, 5]):
        one = {name: x[row : row + 1] for name, x in context.items()}
        alone = everything(network, genes[row : row + 1, :n], values[row : row + 1, :n], None, **one)
        cut = [x[row : row + 1] if x.shape[1] != 16 else x[row : row + 1, :n] for x in padded]
        assert_close(cut, alone)


def test_the_cell_alone_is_the_same_cell(network):
    genes, values, padding, context = inputs(network, [16, 1, 9])
    encoded = network.encode(genes, values, padding, **context)
    alone = network.encode(genes, values, padding, **context, cell_only=True)
    assert_close([alone.cell], [encoded.cell])
    n_hidden = 1 if network.config.cell_style == "cls" else 16
    assert_close([alone.hidden], [encoded.hidden[:, :n_hidden]])


def test_what_stands_at_padding_does_not_matter(network):
    genes, values, padding, context = inputs(network, [16, 3, 8])
    expected = everything(network, genes, values, padding, **context)
    other = everything(network, genes.masked_fill(padding, 4), values.masked_fill(padding, 7), padding, **context)
    assert_close(other, expected)


@given(st.randoms(use_true_random=False), st.integers(0, 1000))
@settings(max_examples=20)
def test_order_of_tokens_and_cells_does_not_matter(random, seed):
    for parts in PARTS.values():
        network = small(**parts)
        genes, values, padding, context = inputs(network, [12, 4, 7, 12], seed)
        expected = everything(network, genes, values, padding, **context)
        order = [0, *random.sample(range(1, 12), 11)]  # `<cls>` is read at the first place
        rows = random.sample(range(4), 4)
        moved = {name: x[rows] for name, x in context.items()}
        outputs = everything(
            network, genes[rows][:, order], values[rows][:, order], padding[rows][:, order], **moved
        )
        shuffled = [x[rows] if x.shape[1] != 12 else x[rows][:, order] for x in expected]
        assert_close(outputs, shuffled, atol=2e-6)


def test_values_and_genes_do_matter(network):
    genes, values, padding, context = inputs(network, [6])
    expected = network.encode(genes, values, padding, **context).cell
    other_gene, other_value = genes.clone(), values.clone()
    other_gene[0, 3] = next(gene for gene in range(PAD) if gene not in genes)
    other_value[0, 3] += 1
    assert not torch.equal(network.encode(other_gene, values, padding, **context).cell, expected)
    assert not torch.equal(network.encode(genes, other_value, padding, **context).cell, expected)


def test_dropout_is_for_training_only():
    network = small(dropout=0.5)
    genes, values, padding = cells([9, 5])
    first, second = (network.encode(genes, values, padding).cell for _ in range(2))
    assert torch.equal(first, second)
    network.train()
    first, second = (network.encode(genes, values, padding).cell for _ in range(2))
    assert not torch.equal(first, second)


def test_double_precision():
    network = small(n_batches=2, batch_labels=True, batch_norm="per-batch").double()
    genes, values, padding = cells([9, 5])
    outputs = everything(network, genes, values.double(), padding, batches=torch.tensor([0, 1]))
    assert {x.dtype for x in outputs} == {torch.float64}


# Parts ------------------------------------------------------------------------------------------------------------


def test_norm_of_a_batch_learns_from_its_own_cells():
    norm = PerBatchNorm(4, 3)
    x = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0)) * 3 + 7
    batches = torch.tensor([0, 2, 0, 0, 2, 2])
    out = norm(x, batches)
    for batch in (0, 2):
        mine = out[batches == batch].reshape(-1, 4)
        torch.testing.assert_close(mine.mean(dim=0), torch.zeros(4), rtol=0, atol=1e-5)
        torch.testing.assert_close(mine.var(dim=0, unbiased=False), torch.ones(4), rtol=0, atol=1e-4)
        expected = 0.1 * x[batches == batch].reshape(-1, 4).mean(dim=0)
        torch.testing.assert_close(norm.bns[batch].running_mean, expected)
    assert torch.equal(norm.bns[1].running_mean, torch.zeros(4))
    assert [int(bn.num_batches_tracked) for bn in norm.bns] == [1, 0, 1]


def test_discriminator_reverses_the_gradient_of_the_encoder():
    network = small(n_batches=2, batch_labels=True, adversary=True)
    genes, values, padding = cells([9, 5])
    labels = torch.tensor([0, 1])

    def gradients(logits):
        network.zero_grad()
        F.cross_entropy(logits, labels).backward()
        return network.encoder.embedding.weight.grad, network.grad_reverse_discriminator.out_layer.weight.grad

    encoded = network.encode(genes, values, padding, batches=labels)
    reversed_encoder, same_head = gradients(network.discriminate(encoded))
    encoded = network.encode(genes, values, padding, batches=labels)
    encoder, head = gradients(network.grad_reverse_discriminator(encoded.cell))
    torch.testing.assert_close(reversed_encoder, -encoder)
    torch.testing.assert_close(same_head, head)
    assert encoder.abs().max() > 0


def test_padding_gets_no_gradient():
    network = small()
    genes, values, padding = cells([9, 5])
    network.encode(genes, values, padding).cell.square().sum().backward()
    gradient = network.encoder.embedding.weight.grad
    assert set(gradient.abs().sum(dim=1).nonzero().flatten().tolist()) == set(genes.unique().tolist()) - {PAD}


def test_probabilities_of_a_value():
    network = small(zero_probabilities=True)
    genes, values, padding = cells([9, 5])
    encoded = network.encode(genes, values, padding)
    for _, nonzero in (network.expression(encoded, values), network.expression_from_cell(encoded)):
        assert nonzero.shape == values.shape
        assert ((nonzero > 0) & (nonzero < 1)).all()
    assert small().expression(encoded, values)[1] is None


def test_classes_can_be_replaced_and_removed():
    network = small(n_layers_cls=2).double()
    genes, values, padding = cells([9, 5])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items() if "cls_decoder" not in name}
    for n_classes in (7, 2):
        network.set_classes(n_classes)
        logits = network.classify(network.encode(genes, values.double(), padding))
        assert (logits.shape, logits.dtype) == ((2, n_classes), torch.float64)
        assert network.config.n_classes == n_classes
    network.set_classes(0)
    assert network.config.n_classes == 0
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_hang_on_the_seed():
    config = SCGPTConfig(n_tokens=20, pad_id=PAD, d_model=8, n_heads=2, d_hid=8, n_layers=2)
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(SCGPTNetwork(config).state_dict())
    name = "transformer_encoder.layers.0.self_attn.Wqkv.weight"
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])
    assert not torch.equal(states[0][name], states[0][name.replace("0", "1")])
    assert states[0]["encoder.embedding.weight"].abs().max() <= 0.1


@pytest.mark.parametrize(
    ("parts", "call", "says"),
    [
        ({"mvc": False}, lambda n, e, v: n.expression_from_cell(e), "SCGPTConfig.mvc"),
        ({"n_classes": 0}, lambda n, e, v: n.classify(e), "SCGPTConfig.n_classes"),
        ({}, lambda n, e, v: n.discriminate(e), "SCGPTConfig.adversary"),
        ({"n_batches": 2, "batch_labels": True}, lambda n, e, v: n.expression(e, v), "`batches`"),
        ({"n_batches": 2, "batch_labels": True}, lambda n, e, v: n.expression_from_cell(e), "`batches`"),
        ({"n_batches": 2, "batch_norm": "per-batch"}, None, "`batches`"),
        ({"perturbation": True}, None, "`flags`"),
    ],
    ids=["mvc", "classes", "adversary", "decoder-batches", "cell-decoder-batches", "norm-batches", "flags"],
)
def test_a_part_that_is_not_there(parts, call, says):
    network = small(**parts)
    genes, values, padding = cells([4])
    with pytest.raises(ValueError, match=says):
        call(network, network.encode(genes, values, padding), values) if call else network.encode(genes, values, padding)


def test_config_is_left_alone():
    config = SCGPTConfig(n_tokens=20, pad_id=PAD, d_model=8, n_heads=2, d_hid=8, n_layers=1)
    copy = replace(config)
    SCGPTNetwork(config).set_classes(4)
    assert config == copy
