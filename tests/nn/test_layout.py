import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scgalore.nn.layout import Packed, Padded

HEADS, WIDTH = 2, 8


def states(lengths, seed=0, dtype=torch.float32):
    """Queries, keys and values of cells, padded `(b, s, d)` and packed `(n, d)`."""
    generator = torch.Generator().manual_seed(seed)
    padding = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    padded = [torch.randn(len(lengths), max(lengths), WIDTH, generator=generator).to(dtype) for _ in range(3)]
    return padding, padded, [x[~padding] for x in padded]


def by_hand(q, k, v, n_heads=HEADS):
    """Attention of one cell from its definition, in float64."""
    out = []
    for parts in zip(*(x.double().chunk(n_heads, dim=-1) for x in (q, k, v)), strict=True):
        qh, kh, vh = parts
        out.append((qh @ kh.T / qh.shape[-1] ** 0.5).softmax(dim=-1) @ vh)
    return torch.cat(out, dim=-1)


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@given(LENGTHS, st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_each_cell_attends_to_itself_in_either_layout(lengths, seed):
    padding, padded, packed = states(lengths, seed)
    expected = torch.cat([by_hand(*(x[row, :n] for x in padded)) for row, n in enumerate(lengths)])
    in_rows = Padded(padding, max(lengths)).attend(*padded, HEADS)[~padding]
    layout = Packed(lengths, torch.device("cpu"))
    for ours in (in_rows, layout.attend(*packed, HEADS), layout.attend_jagged(*packed, HEADS)):
        torch.testing.assert_close(ours.double(), expected, rtol=0, atol=2e-6)


@given(LENGTHS, st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_cls_alone_attends_as_among_all(lengths, seed):
    padding, padded, (q, k, v) = states(lengths, seed)
    layout = Packed(lengths, torch.device("cpu"))
    expected = layout.cls(layout.attend(q, k, v, HEADS))
    for attend in (layout.attend, layout.attend_jagged):
        torch.testing.assert_close(attend(layout.cls(q), k, v, HEADS), expected, rtol=0, atol=2e-6)
    rows = Padded(padding, max(lengths))
    torch.testing.assert_close(
        rows.cells(rows.attend(rows.cls(padded[0]), *padded[1:], HEADS)), expected, rtol=0, atol=2e-6
    )
    assert torch.equal(layout.cells(layout.cls(expected)), expected)


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("lengths", [[700, 700, 3], [257, 256, 1, 1], [1, 40] * 30], ids=["long", "blocks", "many"])
def test_bfloat16_is_the_same_attention_in_blocks(lengths):
    _, _, packed = states(lengths, dtype=torch.bfloat16)
    layout = Packed(lengths, torch.device("cpu"))
    expected = layout.attend(*(x.float() for x in packed), HEADS)
    ours = layout.attend(*packed, HEADS)
    assert ours.dtype == torch.bfloat16
    assert (ours.float() - expected).norm() < 0.01 * expected.norm()
    cls = layout.attend(layout.cls(packed[0]), *packed[1:], HEADS)
    assert (cls.float() - layout.cls(expected)).norm() < 0.01 * expected.norm()


def test_sums_leave_padding_out():
    lengths = [4, 1, 3]
    padding, (x, *_), (packed, *_) = states(lengths)
    x[padding] = torch.nan  # what stands at padding may be anything
    expected = torch.stack([x[row, :n].sum(dim=0) for row, n in enumerate(lengths)])
    for layout, states_ in ((Padded(padding, 4), x), (Packed(lengths, torch.device("cpu")), packed)):
        torch.testing.assert_close(layout.sum(states_), expected)
        assert layout.count().flatten().tolist() == lengths


def test_rows_without_padding_count_all_tokens():
    layout = Padded(None, 3)
    x = torch.randn(2, 3, WIDTH)
    torch.testing.assert_close(layout.sum(x) / layout.count(), x.mean(dim=1))
