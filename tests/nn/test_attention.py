import pytest
import torch

from scgalore.nn import SCGPTConfig, SCGPTNetwork, attention_scores, rank_scores
from scgalore.nn.layout import split_heads

PAD = 17


def cells(n_cells=3, n_tokens=7):
    generator = torch.Generator().manual_seed(0)
    genes = torch.stack([torch.randperm(PAD, generator=generator)[:n_tokens] for _ in range(n_cells)])
    return genes, torch.randint(0, 51, genes.shape, generator=generator).float()


def small(**parts):
    torch.manual_seed(0)
    return SCGPTNetwork(SCGPTConfig(n_tokens=20, pad_id=PAD, d_model=8, n_heads=2, d_hid=8, n_layers=3, **parts)).eval()


def test_scores_of_the_original(original, agree):
    theirs, batch = original.arrays("base"), original.batch()
    genes, values, padding = batch.genes[:2], batch.values[:2], batch.padding[:2]
    scores = attention_scores(original.network(), genes, values, padding)
    exact = attention_scores(original.network().double(), genes, values.double(), padding)
    agree("base/attn_qk_last_layer", scores, theirs["attn_qk_last_layer"], exact=exact)
    agree("base/attn_rank_mean", rank_scores(scores), theirs["attn_rank_mean"])


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_scores_are_the_attention_that_the_network_pays(layer):
    network, (genes, values) = small(), cells()
    padding = torch.zeros_like(genes, dtype=torch.bool)
    padding[1, 5:] = True
    block, seen = network.transformer_encoder.layers[layer], []
    block.self_attn.register_forward_hook(lambda _, args, output: seen.extend((args[0], output)))
    scores = attention_scores(network, genes, values, padding, layer=layer)
    x, attended = seen
    v = split_heads(block.self_attn.Wqkv.parts(x)[2], 2)
    weights = (scores / 2).masked_fill(padding[:, None, None, :], -torch.inf).softmax(dim=-1)  # heads of width 4
    ours = block.self_attn.out_proj((weights @ v).transpose(1, 2).flatten(-2))
    torch.testing.assert_close(ours, attended, rtol=0, atol=1e-6)
    assert not scores.requires_grad


def test_layers_differ_and_count_from_either_end():
    network, tokens = small(), cells()
    by_layer = [attention_scores(network, *tokens, layer=layer) for layer in range(3)]
    assert by_layer[0].shape == (3, 2, 7, 7)
    assert not torch.equal(by_layer[0], by_layer[2])
    torch.testing.assert_close(attention_scores(network, *tokens, layer=-3), by_layer[0])
    torch.testing.assert_close(attention_scores(network, *tokens), by_layer[2])
    with pytest.raises(IndexError):
        attention_scores(network, *tokens, layer=3)


def test_flags_and_batches_reach_the_scores():
    genes, values = cells()
    network = small(perturbation=True)
    flags = torch.zeros_like(genes)
    unperturbed = attention_scores(network, genes, values, flags=flags)
    flags[:, 2] = 1
    assert not torch.equal(attention_scores(network, genes, values, flags=flags), unperturbed)
    network = small(n_batches=2, batch_norm="per-batch")
    network.dsbn.bns[1].running_mean += 1
    first, second = (attention_scores(network, genes, values, batches=torch.full((3,), label)) for label in (0, 1))
    assert not torch.equal(first, second)


def test_listening_leaves_no_trace():
    network, (genes, values) = small(perturbation=True), cells()
    with pytest.raises(ValueError, match="`flags`"):
        attention_scores(network, genes, values)
    assert not any(block._forward_pre_hooks for block in network.transformer_encoder.layers)


def test_ranks():
    scores = torch.tensor([[[[3.0, 1.0], [2.0, 9.0]], [[0.0, 5.0], [1.0, 6.0]]]])
    # Row ranks by head are [[1, 0], [0, 1]] and [[0, 1], [0, 1]]; ties within a column go by position.
    assert rank_scores(scores).tolist() == [[[0.25, 0.0], [0.25, 0.5]]]
    assert rank_scores(scores).shape == (1, 2, 2)


def test_ranks_do_not_see_the_scale():
    scores = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    ranks = rank_scores(scores)
    torch.testing.assert_close(rank_scores(scores.exp() * 4), ranks)
    assert ((ranks >= 0) & (ranks < 1)).all()
