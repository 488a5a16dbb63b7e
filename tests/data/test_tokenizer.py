from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scgalore.data import ragged
from scgalore.data.binning import bin_values
from scgalore.data.matrix import CellMatrix
from scgalore.data.tokenizer import Tokenizer, keep_smallest
from scgalore.data.tokens import MODALITIES, RaggedTokens, TokenizerConfig
from scgalore.errors import DataError, OptionError

FIXTURES = Path(__file__).parent / "scgpt"
PAD, CLS = 200, 201
SORTED = (
    "ours draws the genes of a long cell by cell and gene, and sorts tokens by id (their order means nothing); compared "
    "using scGPT's draws"
)


def tokenizer(token_ids, **options):
    return Tokenizer(token_ids, cls_id=CLS, pad_id=PAD, config=TokenizerConfig(**options))


def encode(tokens, x, *, draw=0):
    return tokens.encode(sp.csr_matrix(np.asarray(x, dtype=np.float32)), np.arange(len(x)), draw=draw)


def cells_of(ragged):
    """Each cell as (tokens, values, key), to compare without regard to the order of cells."""
    bounds = zip(ragged.indptr[:-1], ragged.indptr[1:], ragged.keys, strict=True)
    return [(ragged.genes[a:b].tolist(), ragged.values[a:b].tolist(), int(key)) for a, b, key in bounds]


# The original program ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def original():
    return np.load(FIXTURES / "tokenizer.npz")


@pytest.mark.parametrize(("case", "include_zeros"), [("nonzero", False), ("zeros", True)])
def test_fine_tuning_tokens_of_the_original(original, agree, case, include_zeros):
    # Binned beforehand in the original; a <cls> with value 0.
    tokens = tokenizer(original["gene_ids"], cls_value=0.0, binned=False, include_zeros=include_zeros)
    batch = tokens.pad(encode(tokens, original["binned"]))
    agree(f"tokenizer/{case}/genes", batch.genes, original[f"{case}/genes"])
    agree(f"tokenizer/{case}/values", batch.values, original[f"{case}/values"])
    np.testing.assert_array_equal(batch.padding, original[f"{case}/genes"] == PAD)


def draws_of_choice(rng, lengths, limit):
    """Numbers whose `limit` smallest of each long cell are the ones ``np.random.choice`` takes."""
    u = [np.ones(n) for n in lengths]
    for row in u:
        if len(row) > limit:
            row[rng.choice(len(row), limit, replace=False)] = 0
    return np.concatenate(u)


@pytest.mark.parametrize(("case", "append_cls"), [("nonzero_sampled", True), ("nocls", False)])
def test_sampled_tokens_of_the_original(original, agree, case, append_cls):
    expected_genes, expected_values = original[f"{case}/genes"], original[f"{case}/values"]
    limit = expected_genes.shape[1] - append_cls
    full = encode(tokenizer(original["gene_ids"], binned=False, append_cls=False), original["binned"])
    kept = keep_smallest(draws_of_choice(np.random.RandomState(7), full.lengths, limit), full.indptr, limit)
    genes, values = full.genes[kept].reshape(-1, limit), full.values[kept].reshape(-1, limit)
    order = np.argsort(expected_genes[:, append_cls:], axis=1)
    for name, ours, expected in [("genes", genes, expected_genes), ("values", values, expected_values)]:
        in_order = np.take_along_axis(expected[:, append_cls:], order, axis=1)
        agree(f"tokenizer/{case}/{name}", ours, in_order, instead=SORTED)
    # Our own draws differ, the shape of the result does not.
    ours = tokenizer(original["gene_ids"], binned=False, append_cls=append_cls, max_length=limit + append_cls)
    assert ours.pad(encode(ours, original["binned"])).genes.shape == expected_genes.shape


def test_collator_of_the_original(agree):
    original = np.load(FIXTURES / "collator.npz")
    ties, generator = np.random.RandomState(31), torch.Generator().manual_seed(31)
    sampled = {"gene": [], "expr": []}
    for row in range(5):
        genes, x = original[f"in{row}/genes"], original[f"in{row}/expressions"]
        bins = bin_values(x[1:], ties="random", u=ties.rand(len(x) - 1))
        kept = np.append(0, 1 + torch.randperm(len(x) - 1, generator=generator)[:47].numpy())
        sampled["gene"].append(genes[kept])
        sampled["expr"].append(np.append(-2, bins)[kept])
    for name, rows in sampled.items():
        agree(f"collator/out_seed31/{name}", np.stack(rows), original[f"out_seed31/{name}"], instead=SORTED)


def test_collator_values_of_genes_without_ties():
    # Through the Tokenizer: bins come from all genes of the cell, not from those that sampling leaves.
    original = np.load(FIXTURES / "collator.npz")
    for row in range(5):
        genes, x = original[f"in{row}/genes"][1:], original[f"in{row}/expressions"][1:]
        ours = encode(tokenizer(genes, max_length=48), x[None])
        assert ours.lengths.tolist() == [48]
        assert (ours.genes[0], ours.values[0]) == (CLS, -2)
        expected = dict(zip(genes.tolist(), bin_values(x).tolist(), strict=True))
        assert [expected[gene] for gene in ours.genes[1:]] == ours.values[1:].tolist()


# What must not matter ---------------------------------------------------------------------------------------------

configs = st.builds(
    TokenizerConfig,
    n_bins=st.sampled_from([3, 7, 51]),
    max_length=st.integers(2, 14),
    ties=st.sampled_from(["upper", "random"]),
    include_zeros=st.booleans(),
    append_cls=st.booleans(),
    binned=st.booleans(),
    seed=st.integers(0, 5),
)


@st.composite
def tables(draw):
    n_cells, n_vars = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    x = rng.poisson(draw(st.sampled_from([0.1, 1.0, 20.0])), (n_cells, n_vars)).astype(np.float32)
    token_ids = rng.permutation(PAD)[:n_vars]
    token_ids[rng.random(n_vars) < draw(st.sampled_from([0, 0.3]))] = -1
    return x, token_ids


@given(tables(), configs, st.randoms(use_true_random=False), st.integers(0, 3))
@settings(max_examples=200)
def test_order_of_cells_and_columns_does_not_matter(table, config, random, draw):
    x, token_ids = table
    rows, columns = random.sample(range(len(x)), len(x)), random.sample(range(x.shape[1]), x.shape[1])
    straight = encode(Tokenizer(token_ids, cls_id=CLS, pad_id=PAD, config=config), x, draw=draw)
    moved = Tokenizer(token_ids[columns], cls_id=CLS, pad_id=PAD, config=config)
    shuffled = encode(moved, x[np.ix_(rows, columns)], draw=draw)
    assert cells_of(shuffled) == [cells_of(straight)[row] for row in rows]


@given(tables(), configs, st.integers(1, 6))
def test_batches_do_not_matter(table, config, size):
    x, token_ids = table
    tokens = Tokenizer(token_ids, cls_id=CLS, pad_id=PAD, config=config)
    whole = encode(tokens, x)
    parts = [
        tokens.encode(sp.csr_matrix(x[start : start + size]), np.arange(len(x))[start : start + size])
        for start in range(0, len(x), size)
    ]
    joined = RaggedTokens.concatenate(parts)
    arrays = {name: value for name, value in vars(whole).items() if name != "conditions"}
    for name, value in arrays.items():
        np.testing.assert_array_equal(getattr(joined, name), value)
        assert getattr(joined, name).dtype == value.dtype


def test_conditions_go_with_their_cells():
    tokens = Tokenizer([3, 5], cls_id=CLS, pad_id=PAD)
    ragged = replace(encode(tokens, [[1, 0], [2, 3], [0, 4]]), conditions={"batches": np.array([7, 8, 9])})
    assert ragged.take(np.array([2, 0])).conditions["batches"].tolist() == [9, 7]
    both = RaggedTokens.concatenate([ragged.take(np.array([1])), ragged])
    assert both.conditions["batches"].tolist() == [8, 7, 8, 9]
    assert tokens.pad(ragged, [1, 2]).conditions["batches"].tolist() == [8, 9]


@given(tables(), configs, st.sampled_from([np.float64, np.int32, np.uint16]))
def test_dtype_explicit_zeros_and_dropped_genes_do_not_matter(table, config, dtype):
    x, token_ids = table
    tokens = Tokenizer(token_ids, cls_id=CLS, pad_id=PAD, config=config)
    coded = sp.csr_matrix(x.astype(dtype) + 1)
    coded.data -= 1  # every zero is now stored
    stored = tokens.encode(coded, np.arange(len(x)))
    other = x.copy()
    other[:, token_ids < 0] += 3
    assert cells_of(stored) == cells_of(encode(tokens, x)) == cells_of(encode(tokens, other))


@pytest.mark.parametrize("ties", ["upper", "random"])
def test_what_holds_the_matrix_does_not_matter(tmp_path, ties):
    x = np.log1p(np.random.default_rng(0).poisson(2, (30, 40))).astype(np.float32)
    held = [ad.AnnData(make(x)) for make in (np.asarray, sp.csr_matrix, sp.csc_matrix, np.float64)]
    held.append(ad.AnnData(np.hstack([x, x]))[:, :40])
    for i, adata in enumerate(held[:3]):
        adata.write_h5ad(tmp_path / f"{i}.h5ad")
        held.append(ad.read_h5ad(tmp_path / f"{i}.h5ad", backed="r"))
    tokens = tokenizer(np.arange(40)[::-1], max_length=12, ties=ties)
    rows = [8, 3, 3, 29]
    found = [cells_of(tokens.encode(CellMatrix.from_adata(adata).rows(rows), rows)) for adata in held]
    assert all(cells == found[0] for cells in found)


@given(tables(), configs)
def test_lengths_are_known_without_encoding(table, config):
    x, token_ids = table
    tokens = Tokenizer(token_ids, cls_id=CLS, pad_id=PAD, config=config)
    assert tokens.lengths(sp.csr_matrix(x)).tolist() == encode(tokens, x).lengths.tolist()


# What tokens are --------------------------------------------------------------------------------------------------


@given(tables(), configs)
def test_tokens_are_the_expressed_genes_and_their_bins(table, config):
    x, token_ids = table
    config = replace(config, max_length=1200, ties="upper")
    ragged = encode(Tokenizer(token_ids, cls_id=CLS, pad_id=PAD, config=config), x)
    for row, (genes, values, _) in zip(x, cells_of(ragged), strict=True):
        expected = {CLS: config.cls_value} if config.append_cls else {}
        kept = np.flatnonzero((token_ids >= 0) & ((row > 0) | config.include_zeros))
        filled = row[(token_ids >= 0) & (row > 0)]
        bins = bin_values(filled, config.n_bins) if len(filled) else []
        bin_of = dict(zip(filled.tolist(), bins, strict=True)) if config.binned else {v: v for v in filled.tolist()}
        for column in kept[np.argsort(token_ids[kept])]:
            expected[int(token_ids[column])] = bin_of[row[column]] if row[column] > 0 else 0
        assert list(expected.items()) == list(zip(genes, values, strict=True))


@given(tables(), configs)
def test_sampled_tokens_are_a_subset_with_the_same_values(table, config):
    x, token_ids = table
    short = encode(Tokenizer(token_ids, cls_id=CLS, pad_id=PAD, config=config), x)
    full = Tokenizer(token_ids, cls_id=CLS, pad_id=PAD, config=replace(config, max_length=1200))
    for few, many in zip(cells_of(short), cells_of(encode(full, x)), strict=True):
        assert len(few[0]) == min(len(many[0]), config.max_length)
        assert dict(zip(*few[:2], strict=True)).items() <= dict(zip(*many[:2], strict=True)).items()
        assert few[0][: config.append_cls] == [CLS][: config.append_cls]
        assert few[0][config.append_cls :] == sorted(few[0][config.append_cls :])


def test_a_draw_is_repeatable_and_draws_differ():
    x = np.ones((40, 30))
    x[np.arange(40), np.arange(40) % 30] += np.arange(1, 41)
    tokens = tokenizer(np.arange(30), max_length=11)
    draws = [encode(tokens, x, draw=draw).genes.reshape(40, 11)[:, 1:] for draw in range(50)]
    np.testing.assert_array_equal(draws[3], encode(tokens, x, draw=3).genes.reshape(40, 11)[:, 1:])
    assert (draws[0] != draws[1]).any()
    assert (draws[0] != encode(tokenizer(np.arange(30), max_length=11, seed=1), x).genes.reshape(40, 11)[:, 1:]).any()
    # 40 cells x 50 draws, each gene with probability 10 / 30: mean 667, standard deviation 21.
    counts = np.bincount(np.concatenate(draws).ravel(), minlength=30)
    assert abs(counts - 2000 / 3).max() < 100


def test_random_ties_change_with_the_draw():
    x = np.ones((3, 40))
    x[:, 0] = 2
    tokens = tokenizer(np.arange(40), ties="random")
    assert (encode(tokens, x).values == encode(tokens, x).values).all()
    assert (encode(tokens, x).values != encode(tokens, x, draw=1).values).any()


def test_a_cell_without_vocabulary_genes_is_cls_alone():
    x = np.array([[0, 0, 0], [1, 2, 0], [0, 0, 5], [0, 0, 0]])
    tokens = tokenizer([7, 3, -1])
    ragged = encode(tokens, x)
    assert ragged.genes.tolist() == [CLS, CLS, 3, 7, CLS, CLS]
    assert ragged.values.tolist() == [-2, -2, 50, 1, -2, -2]
    assert ragged.lengths.tolist() == [1, 3, 1, 1]
    assert len(set(ragged.keys[[0, 2, 3]].tolist())) == 1


def test_padding_reaches_the_longest_of_the_batch():
    x = np.array([[1, 2, 3], [0, 1, 0], [0, 0, 0], [4, 0, 1]])
    tokens = tokenizer([5, 6, 7], pad_value=-9.0, cls_value=0.0)
    ragged = tokens.encode(sp.csr_matrix(x), [10, 11, 12, 13])
    batch = tokens.pad(ragged, [3, 1])
    assert batch.genes.tolist() == [[CLS, 5, 7], [CLS, 6, PAD]]
    assert batch.values.tolist() == [[0, 50, 1], [0, 50, -9]]
    assert batch.padding.tolist() == [[False] * 3, [False, False, True]]
    assert batch.cells.tolist() == [13, 11]
    assert batch.keys.numpy().view(np.uint64).tolist() == ragged.keys[[3, 1]].tolist()
    assert (len(batch), batch.n_tokens) == (2, 5)
    assert not tokens.pad(ragged, [0]).padding.any()
    assert tokens.pad(ragged).genes.shape == (4, 4)
    assert tokens.pad(ragged, []).genes.shape == (0, 0)
    assert [t.dtype for t in (batch.genes, batch.values, batch.padding, batch.cells, batch.keys)] == [
        torch.int64,
        torch.float32,
        torch.bool,
        torch.int64,
        torch.int64,
    ]


def test_batches_move_between_devices_with_what_they_have():
    batch = tokenizer([5]).pad(encode(tokenizer([5]), [[1]]))
    moved = batch.with_targets(labels=torch.tensor([2])).with_conditions(batches=torch.tensor([0])).to("meta")
    tensors = (moved.genes, moved.padding, moved.targets["labels"], moved.conditions["batches"])
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (moved.targets.keys(), moved.conditions.keys()) == ({"labels"}, {"batches"})
    assert not batch.targets


def test_a_batch_knows_whether_it_is_padded():
    tokens = tokenizer([5, 6])
    ragged = encode(tokens, [[1, 2], [0, 1], [3, 0]])
    for rows, padded in [([0, 1], True), ([1, 2], False), ([0], False), ([], False)]:
        batch = tokens.pad(ragged, rows)
        assert batch.padded is padded
        assert batch.to("meta", non_blocking=True).padded is padded


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only CUDA pins memory")
def test_every_tensor_is_pinned():
    pinned = tokenizer([5]).pad(encode(tokenizer([5]), [[1]])).pin_memory()
    assert all(value.is_pinned() for value in vars(pinned).values() if isinstance(value, torch.Tensor))


# In one pass ------------------------------------------------------------------------------------------------------


@given(tables(), configs, st.randoms(use_true_random=False))
def test_order_of_entries_within_a_row_does_not_matter(table, config, random):
    x, token_ids = table
    tokens = Tokenizer(token_ids, cls_id=CLS, pad_id=PAD, config=config)
    csr = sp.csr_matrix(x)
    order = np.concatenate([random.sample(range(a, b), b - a) for a, b in pairwise(csr.indptr.tolist())]).astype(int)
    moved = sp.csr_matrix((csr.data[order], csr.indices[order], csr.indptr), shape=csr.shape)
    assert cells_of(tokens.encode(moved, np.arange(len(x)))) == cells_of(encode(tokens, x))


@given(tables(), configs, st.integers(1, 30))
def test_parts_do_not_matter(table, config, size):
    x, token_ids = table
    tokens = Tokenizer(token_ids, cls_id=CLS, pad_id=PAD, config=config)
    whole, defaults = encode(tokens, x, draw=2), ragged.blocks.__defaults__
    try:
        ragged.blocks.__defaults__ = (size, 2)
        parts = list(tokens.parts(sp.csr_matrix(x), np.arange(len(x)), draw=2))
    finally:
        ragged.blocks.__defaults__ = defaults
    assert [cell for part in parts for cell in cells_of(part)] == cells_of(whole)


def test_no_rows():
    tokens = tokenizer([5, 6])
    empty = tokens.encode(sp.csr_matrix((0, 2), dtype=np.float32), [])
    assert (len(empty), empty.indptr.tolist(), empty.genes.dtype) == (0, [0], np.int64)
    assert tokens.pad(empty).genes.shape == (0, 0)


def test_exactly_as_many_are_kept_as_asked_for_when_draws_are_equal():
    u = np.array([0.5, 0.1, 0.5, 0.5, 0.9, 0.2, 0.2, 0.2])
    for limit in (1, 2, 3, 4):
        kept = keep_smallest(u, np.array([0, 5, 5, 8]), limit)
        assert [kept[:5].sum(), kept[5:].sum()] == [min(limit, 5), min(limit, 3)]
        assert kept[1]


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: TokenizerConfig(n_bins=1), OptionError, "n_bins=1"),
        (lambda: TokenizerConfig(ties="lower"), OptionError, "'lower'"),  # type: ignore[arg-type]
        (lambda: TokenizerConfig(max_length=1), OptionError, "max_length=1"),
        (lambda: tokenizer([3, 4, 3]), DataError, "Token id 3"),
        (lambda: tokenizer([3, CLS]), DataError, "<cls>"),
        (lambda: encode(tokenizer([1, 2]), [[1]]), DataError, r"\(1, 1\); expected \(1, 2\)"),
        (lambda: tokenizer([1]).encode(sp.csr_matrix([[1.0]]), [0, 1]), DataError, "one row per element"),
        (lambda: encode(tokenizer([1, 2]), [[1, np.nan]]), DataError, "NaN or infinite"),
        (lambda: encode(tokenizer([1, 2], binned=False), [[1, np.inf]]), DataError, "NaN or infinite"),
    ],
    ids=[
        "too-few-bins",
        "unknown-ties",
        "no-room",
        "token-twice",
        "special-token",
        "other-columns",
        "other-rows",
        "nan",
        "inf",
    ],
)
def test_bad_input(call, error, says):
    with pytest.raises(error, match=says):
        call()


# Genes that are admitted -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("include_zeros", [False, True])
@given(seed=st.integers(0, 99), n=st.integers(0, 12))
def test_admitted_genes_have_the_values_they_have_among_all(include_zeros, seed, n):
    rng = np.random.default_rng(seed)
    ids = rng.permutation(40)[:12]
    x = rng.poisson(0.8, (5, 12)) * rng.integers(1, 30, (5, 12))
    x[:, 0] += 1
    options = {"include_zeros": include_zeros, "n_bins": 6}
    admitted = rng.choice(ids, n, replace=False)
    every = tokenizer(ids, **options)
    some = Tokenizer(ids, cls_id=CLS, pad_id=PAD, config=TokenizerConfig(**options), admitted=admitted)
    expected, found = cells_of(encode(every, x)), cells_of(encode(some, x))
    for (genes, values, key), (own_genes, own_values, own_key) in zip(expected, found, strict=True):
        kept = [i for i, gene in enumerate(genes) if gene == CLS or gene in set(admitted.tolist())]
        assert own_genes == [genes[i] for i in kept]
        assert own_values == [values[i] for i in kept]
        assert own_key == key  # draws of a cell are the same whatever is admitted
    lengths = some.lengths(sp.csr_matrix(x.astype(np.float32)))
    assert lengths.tolist() == [len(genes) for genes, *_ in found]


def test_long_cells_are_sampled_among_admitted_genes():
    ids, admitted = np.arange(30), np.arange(10, 25)
    tokens = Tokenizer(ids, cls_id=CLS, pad_id=PAD, config=TokenizerConfig(max_length=9), admitted=admitted)
    cells = cells_of(encode(tokens, np.ones((4, 30)) + np.arange(4)[:, None]))
    drawn = [set(genes) - {CLS} for genes, *_ in cells]
    assert all(len(genes) == 8 and genes <= set(admitted.tolist()) for genes in drawn)
    assert len({frozenset(genes) for genes in drawn}) > 1


# Proteins -----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=9, max_size=9), min_size=1, max_size=5),
    st.lists(st.lists(st.integers(0, 99), min_size=3, max_size=3), min_size=5, max_size=5),
)
def test_proteins_are_binned_by_themselves(genes, proteins):
    """Joined cells have the tokens that each modality has alone."""
    proteins = proteins[: len(genes)]
    ids = np.concatenate([np.arange(9), [300, 301, 302]])
    both = Tokenizer(ids, cls_id=CLS, pad_id=PAD, first_protein=300)
    joined = cells_of(encode(both, np.hstack([genes, proteins])))
    of_genes, of_proteins = (
        cells_of(encode(tokenizer(part, append_cls=cls), x))
        for part, x, cls in ((ids[:9], genes, True), (ids[9:], proteins, False))
    )
    for cell, one, other in zip(joined, of_genes, of_proteins, strict=True):
        assert cell[0] == one[0] + other[0]
        assert cell[1] == one[1] + other[1]


def test_a_long_cell_keeps_its_proteins_and_batches_say_what_each_token_is():
    config = TokenizerConfig(max_length=5)
    both = Tokenizer([0, 1, 2, 3, 4, 300, 301], cls_id=CLS, pad_id=PAD, config=config, first_protein=300)
    x = np.array([[1, 2, 3, 4, 5, 6, 7], [0, 0, 1, 0, 0, 0, 5]])
    for draw in range(5):
        batch = both.pad(encode(both, x, draw=draw))
        assert batch.genes[0, -2:].tolist() == [300, 301]
        assert batch.genes[1].tolist() == [CLS, 2, 301, PAD, PAD]
        assert [[MODALITIES[i] for i in row] for row in batch.conditions["modalities"].tolist()] == [
            ["<cls>", "RNA", "RNA", "Protein", "Protein"],
            ["<cls>", "RNA", "Protein", "<pad>", "<pad>"],
        ]
    assert "modalities" not in tokenizer([0, 1]).pad(encode(tokenizer([0, 1]), [[1, 1]])).conditions
