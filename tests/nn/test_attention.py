import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from tests.toy_family import BagOfGenes

from scgalore.errors import OptionError
from scgalore.nn import (
    AttentionMeans,
    NetworkConfig,
    SCBERTConfig,
    SCBERTNetwork,
    SCGPTConfig,
    SCGPTNetwork,
    attention,
    attention_scores,
    rank_scores,
)
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


# Means over cells ----------------------------------------------------------------------------------------------------


def ragged(network, lengths, seed=0):
    """Cells of some lengths, ``<cls>`` first."""
    generator = torch.Generator().manual_seed(seed)
    for length in lengths:
        genes = torch.cat([torch.tensor([18]), torch.randperm(PAD, generator=generator)[: length - 1]])
        yield genes, torch.randint(0, 51, genes.shape, generator=generator).float()


def naive_means(network, cells, groups, keys, queries, layers, scale, n_groups):
    """Whole maps of all cells, ranked by SciPy."""
    sums, counts = np.zeros((2, n_groups, len(keys), len(queries)))
    for (genes, values), group in zip(cells, groups, strict=True):
        maps = []
        for layer in layers:
            scores = attention_scores(network, genes[None], values[None], layer=layer)[0].double().numpy()
            if scale == "softmax":
                maps.append(torch.softmax(torch.from_numpy(scores) / 2, dim=-1).numpy())  # heads of width 4
            else:
                by_query = rankdata(scores, axis=2) - 1
                maps.append((rankdata(by_query, axis=1) - 1) / len(genes))
        whole = np.mean(maps, axis=(0, 1))
        place = {int(gene): at for at, gene in enumerate(genes)}
        for i, key in enumerate(keys):
            for j, query in enumerate(queries):
                if key in place and query in place:
                    sums[group, i, j] += whole[place[query], place[key]]
                    counts[group, i, j] += 1
    with np.errstate(invalid="ignore"):
        return sums / counts, counts


@given(
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=5),
    scale=st.sampled_from(["rank", "softmax"]),
    layers=st.sampled_from([None, (0,), (-1, 0)]),
    chunk=st.sampled_from([1, 30, 1 << 24]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_means_are_those_of_whole_maps(lengths, scale, layers, chunk, seed):
    network = small()
    cells = list(ragged(network, lengths, seed))
    groups = [number % 2 for number in range(len(cells))]
    keys, queries = np.array([3, 0, 16]), np.arange(1, 17)
    means = AttentionMeans(network, keys, queries, layers=layers, scale=scale, n_groups=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "CHUNK", chunk)
        for cell, group in zip(cells, groups, strict=True):
            means.add(*cell, group)
    wanted, counts = naive_means(network, cells, groups, keys, queries, layers or (0, 1, 2), scale, 2)
    np.testing.assert_array_equal(means.n_cells, counts)
    np.testing.assert_allclose(means.means(), wanted, rtol=0, atol=1e-5)


def test_the_first_cell_counts():
    network, keys = small(), np.arange(PAD)
    cells = list(ragged(network, [9, 9]))
    apart, together = [AttentionMeans(network, keys, keys) for _ in cells], AttentionMeans(network, keys, keys)
    for alone, cell in zip(apart, cells, strict=True):
        alone.add(*cell)
        together.add(*cell)
    assert [alone.n_cells.sum() for alone in apart] == [64, 64]
    np.testing.assert_allclose(together.sums, apart[0].sums + apart[1].sums, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(together.n_cells, apart[0].n_cells + apart[1].n_cells)


def test_equal_scores_have_their_mean_rank():
    scores = torch.tensor([[0.0, 1.0, 0.0, 0.0, 5.0], [2.0, 2.0, 2.0, 2.0, 2.0], [4.0, 3.0, 2.0, 1.0, 0.0]])
    columns = torch.tensor([0, 3, 4])
    wanted = 2 * (rankdata(scores.numpy(), axis=1) - 1)[:, columns.numpy()]
    np.testing.assert_array_equal(attention._doubled_ranks(scores, columns).numpy(), wanted)


def test_the_order_of_tokens_changes_nothing():
    network, keys = small(), np.arange(PAD)
    genes, values = next(ragged(network, [15]))
    order = torch.cat(
        [torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(14, generator=torch.Generator().manual_seed(1))]
    )
    found = []
    for at in (torch.arange(15), order):
        means = AttentionMeans(network, keys, keys)
        means.add(genes[at], values[at])
        found.append(means.means())
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-6)


def test_a_cell_without_wanted_genes_is_passed_over():
    network = small()
    means = AttentionMeans(network, np.array([0]), np.array([1]))
    means.add(torch.tensor([18, 2, 3]), torch.ones(3))
    assert means.n_cells.sum() == 0
    assert np.isnan(means.means()).all()


@pytest.mark.parametrize("kind", ["exact", "favor"])
def test_scbert_shows_what_its_attention_approximates(kind):
    torch.manual_seed(0)
    config = SCBERTConfig(
        n_tokens=20, pad_id=PAD, d_model=8, n_heads=2, d_head=4, d_hid=8, n_layers=2, attention=kind, gene2vec=False
    )
    network = SCBERTNetwork(config).eval()
    genes, values = torch.arange(10)[None], torch.randint(0, 5, (1, 10)).float()
    seen = []
    network.blocks[1][0].fn.fast_attention.register_forward_hook(
        lambda _, args, output: seen.extend((*args[:3], output))
    )
    scores = attention_scores(network, genes, values, layer=1)
    q, k, _, mixed = seen
    torch.testing.assert_close(scores, split_heads(q, 2) @ split_heads(k, 2).transpose(-1, -2))
    assert mixed.shape == (1, 10, 8)


def test_what_cannot_be_shown_is_refused():
    network = small()
    with pytest.raises(OptionError, match="layers="):
        AttentionMeans(network, np.array([0]), np.array([1]), layers=[3])
    with pytest.raises(OptionError, match="each layer once"):
        AttentionMeans(network, np.array([0]), np.array([1]), layers=[0, -3])
    with pytest.raises(OptionError, match="scale="):
        AttentionMeans(network, np.array([0]), np.array([1]), scale="raw")
    with pytest.raises(OptionError, match="no attention"):
        AttentionMeans(BagOfGenes(NetworkConfig(n_tokens=20, pad_id=PAD, d_model=8)), np.array([0]), np.array([1]))
