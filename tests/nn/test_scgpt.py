from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from scgalore.adapters.base import split_packed
from scgalore.errors import OptionError, WeightsError
from scgalore.nn import SCGPTConfig, SCGPTNetwork
from scgalore.nn.scgpt import PackedLinear, PerBatchNorm

PAD, CLS = 17, 18


def small(**parts):
    torch.manual_seed(0)
    config = {"d_model": 8, "n_heads": 2, "d_hid": 12, "n_layers": 2, "heads": {"classes": 3}, **parts}
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
    tokens = [encoded.hidden[..., 0], network.expression(encoded, values, batches=batches)[0]]
    tokens += [network.expression_from_cell(encoded, batches=batches)[0]] if network.mvc_decoder else []
    real = torch.ones_like(values) if padding is None else (~padding).float()
    return [encoded.cell, network.read_head("classes", encoded.cell), *(x * real for x in tokens)]


def assert_close(ours, expected, atol=1e-6):
    for a, b in zip(ours, expected, strict=True):
        # Relative to the largest value: processors add up in different orders.
        torch.testing.assert_close(a, b, rtol=0, atol=atol * max(1.0, float(b.abs().max())))


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


@pytest.fixture(params=list(PARTS.values()), ids=list(PARTS))
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


def test_the_cell_alone_has_the_same_gradients():
    network = small()
    genes, values, padding = cells([16, 1, 9])
    found = []
    for cell_only in (True, False):
        network.zero_grad()
        network.encode(genes, values, padding, cell_only=cell_only).cell.pow(3).sum().backward()
        found.append({name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None})
    alone, among_all = found
    assert alone.keys() == among_all.keys()
    assert_close(alone.values(), among_all.values(), atol=1e-5)


def test_values_that_tokens_share_are_encoded_once_with_the_same_gradients():
    network = small(dropout=0.0).train()
    genes, values, padding = cells([9, 1, 16, 9])
    values = values.where(values < 0, values % 5)
    found = []
    for each in (False, True):  # values that have a gradient are encoded one by one
        network.zero_grad()
        encoded = network.encode(genes, values.clone().requires_grad_(each), padding)
        encoded.cell.pow(3).sum().backward()
        found.append([encoded.cell, *(p.grad.clone() for p in network.parameters() if p.grad is not None)])
    assert_close(*found, atol=1e-5)


def test_query_key_and_value_may_be_three_layers(network):
    genes, values, padding, context = inputs(network, [16, 1, 9])
    expected = everything(network, genes, values, padding, **context)
    for layer in range(network.config.n_layers):
        split_packed(network, f"transformer_encoder.layers.{layer}.self_attn.Wqkv")
    assert_close(everything(network, genes, values, padding, **context), expected, atol=5e-6)
    alone = network.encode(genes, values, padding, **context, cell_only=True)
    assert_close([alone.cell], expected[:1], atol=5e-6)


def test_what_stands_at_padding_does_not_matter(network):
    genes, values, padding, context = inputs(network, [16, 3, 8])
    expected = everything(network, genes, values, padding, **context)
    other = everything(network, genes.masked_fill(padding, 4), values.masked_fill(padding, 7), padding, **context)
    assert_close(other, expected)


@given(st.randoms(use_true_random=False), st.integers(0, 1000), st.sampled_from(list(PARTS)))
@settings(max_examples=40, deadline=None)
def test_order_of_tokens_and_cells_does_not_matter(random, seed, parts):
    network = small(**PARTS[parts])
    genes, values, padding, context = inputs(network, [12, 4, 7, 12], seed)
    expected = everything(network, genes, values, padding, **context)
    order = [0, *random.sample(range(1, 12), 11)]  # `<cls>` is read at the first place
    rows = random.sample(range(4), 4)
    moved = {name: x[rows] for name, x in context.items()}
    outputs = everything(network, genes[rows][:, order], values[rows][:, order], padding[rows][:, order], **moved)
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


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_queries", [None, 1, 3, 5])
def test_queries_of_the_first_tokens_are_those_of_all(bias, n_queries):
    torch.manual_seed(0)
    packed = PackedLinear(8, 24, bias=bias)
    x = torch.randn(2, 5, 8)
    q, k, v = packed(x).chunk(3, dim=-1)
    split = split_packed(torch.nn.ModuleDict({"Wqkv": packed}), "Wqkv")
    for layer in (packed, split):
        assert_close(layer.parts(x, None if n_queries is None else x[:, :n_queries]), (q[:, :n_queries], k, v))
    assert_close([split(x)], [packed(x)])


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
        network.put_heads(network.fresh_heads({"classes": n_classes}))
        logits = network.read_head("classes", network.encode(genes, values.double(), padding).cell)
        assert (logits.shape, logits.dtype) == ((2, n_classes), torch.float64)
        assert network.config.heads == {"classes": n_classes}
    network.put_heads({})
    assert network.config.heads == {}
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
        ({"heads": {}}, lambda n, e, v: n.read_head("classes", e.cell), "no head 'classes'"),
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
    with pytest.raises(OptionError, match=says):
        call(network, network.encode(genes, values, padding), values) if call else network.encode(
            genes, values, padding
        )


def test_config_is_left_alone():
    config = SCGPTConfig(n_tokens=20, pad_id=PAD, d_model=8, n_heads=2, d_hid=8, n_layers=1)
    copy = replace(config)
    network = SCGPTNetwork(config)
    network.put_heads(network.fresh_heads({"classes": 4}))
    assert config == copy


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_recomputed_blocks_have_the_same_gradients_and_keep_less(dropout):
    genes, values, padding = cells([16, 5, 9])
    results, kept = [], []
    for recompute in (False, True):
        network = small(dropout=dropout, n_layers=4).train()
        network.recompute = recompute
        torch.manual_seed(2)
        seen: dict[int, int] = {}

        def keep(x, seen=seen):
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = network.read_head("classes", network.encode(genes, values, padding).cell).square().sum()
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in network.parameters() if p.grad is not None)])
        kept.append(sum(seen.values()))
    assert len(results[0]) == len(results[1])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert kept[1] < kept[0] / 2


# Several modalities ---------------------------------------------------------------------------------------------


def test_a_multiomic_variant_predicts_what_the_network_does_and_can_learn_more():
    network = SCGPTNetwork(SCGPTConfig(n_tokens=12, pad_id=11, d_model=8, n_heads=2, d_hid=8, n_layers=1)).eval()
    rows = torch.cat([network.gene_table.weight.detach(), torch.ones(2, 8)])
    variant = network.multiomic_variant(rows, 5, seed=0)
    assert variant.config.n_tokens == 14
    assert variant.reads_modalities
    assert not network.reads_modalities
    genes, values = torch.tensor([[10, 1, 2, 3]]), torch.tensor([[-2.0, 3, 4, 5]])
    modalities = torch.tensor([[3, 1, 1, 0]])
    encoded = variant.encode(genes, values, modalities=modalities)
    torch.testing.assert_close(encoded.cell, network.encode(genes, values).cell)
    ours = variant.expressions(encoded, values, modalities=modalities)
    theirs = network.expressions(network.encode(genes, values), values)
    for way, (expression, _) in theirs.items():
        torch.testing.assert_close(ours[way][0], expression)
    sum(expression.square().sum() for expression, _ in ours.values()).backward()
    d = network.config.d_model
    assert variant.decoder.fc[0].weight.grad[:, d:].abs().sum() > 0
    assert variant.mvc_decoder.W.weight.grad[:, d:].abs().sum() > 0
    again = variant.multiomic_variant(rows, 5, seed=1)
    for name, tensor in variant.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_modalities_that_are_not_given_are_asked_for():
    network = SCGPTNetwork(
        SCGPTConfig(n_tokens=12, pad_id=11, d_model=8, n_heads=2, d_hid=8, n_layers=1, n_modalities=5)
    )
    genes, values = torch.tensor([[10, 1]]), torch.tensor([[-2.0, 3]])
    encoded = network.encode(genes, values)
    with pytest.raises(OptionError, match="`modalities`"):
        network.expression(encoded, values)
    with pytest.raises(OptionError, match="`modalities`"):
        network.expression_from_cell(encoded)
    with pytest.raises(WeightsError, match="cell_style='avg-pool' cannot be used with n_modalities=5"):
        network.config.replace(cell_style="avg-pool")


@pytest.mark.parametrize("parts", [{"mvc": True}, {"mvc": True, "batch_labels": True, "n_batches": 3}])
def test_change_of_expression_is_that_of_the_decoder(parts):
    network = small(**parts)
    genes, values, padding = cells([6, 6])
    context = {"batches": torch.tensor([1, 1])} if "n_batches" in parts else {}
    with torch.inference_mode():
        encoded = network.encode(genes[:1].expand(2, -1), values, padding)
        first, second = network.expression_from_cell(encoded, **context)[0]
        found = network.expression_change((encoded.cell[1] - encoded.cell[0])[None], genes[0])
    assert_close(found[0], second - first, atol=1e-5)


def test_without_a_decoder_from_the_cell_alone_no_change_is_known():
    genes = torch.tensor([1, 2])
    assert small(mvc=False).expression_change(torch.ones(1, 8), genes) is None
