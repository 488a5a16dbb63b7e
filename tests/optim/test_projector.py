import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scgalore.optim.projector import (
    PROJ_TYPES,
    Bases,
    Sides,
    auto_scale,
    compress,
    compressed_shape,
    exact_bases,
    expand_into_,
    iterate_basis,
    iterated_bases,
    orthonormal,
    overlap,
    random_bases,
    random_directions,
    random_start,
    rotate,
    sides_of,
    state_numel,
    turns,
)

quick = settings(max_examples=30, deadline=None)
sizes = st.integers(4, 20)
proj_types = st.sampled_from(PROJ_TYPES)
packings: st.SearchStrategy[tuple[int, ...]] = st.sampled_from([(), (3,)])


@pytest.fixture(autouse=True)
def _same_numbers_each_time() -> None:
    torch.manual_seed(0)


def decaying(m: int, n: int, *, power: float = 1.0, seed: int = 0) -> Tensor:
    """Matrix with singular values 1, 2^-power, 3^-power, ..."""
    generator = torch.Generator().manual_seed(seed)
    u, _ = torch.linalg.qr(torch.randn(m, min(m, n), generator=generator))
    v, _ = torch.linalg.qr(torch.randn(n, min(m, n), generator=generator))
    return (u * torch.arange(1, min(m, n) + 1).pow(-power)) @ v.T


def sketched(grad: Tensor, rank: int, n_iter: int = 2) -> Tensor:
    """Right basis by power iterations from a random start."""
    return iterate_basis(grad, random_directions(grad, rank, [0]), n_iter)


def captured(grad: Tensor, basis: Tensor) -> float:
    """Share of the gradient's energy on the right basis, of what the best basis of this rank holds."""
    best = torch.linalg.svdvals(grad)[: basis.shape[0]].square().sum()
    return float((grad @ basis.mT).square().sum() / best)


def assert_orthonormal(basis: Tensor) -> None:
    torch.testing.assert_close(
        basis @ basis.mT, torch.eye(basis.shape[-2]).expand(*basis.shape[:-1], -1), rtol=0, atol=1e-5
    )


@quick
@given(m=sizes, n=sizes, packed=packings, proj_type=proj_types, seed=st.integers(0, 99), method=st.sampled_from("eir"))
def test_bases_are_orthonormal_contiguous_and_project_back(
    m: int, n: int, packed: tuple[int, ...], proj_type: str, seed: int, method: str
) -> None:
    torch.manual_seed(seed)
    grad = torch.randn(*packed, m, n)
    sides = sides_of(m, n, proj_type)  # type: ignore[arg-type]
    bases = {
        "e": lambda: exact_bases(grad, 3, sides),
        "i": lambda: iterated_bases(grad, random_start(grad, 3, sides, [seed])),
        "r": lambda: random_bases(grad, 3, sides, [seed]),
    }[method]()
    for basis, size, wanted in ((bases.left, m, sides.left), (bases.right, n, sides.right)):
        assert (basis is not None) == wanted
        if basis is not None:
            assert basis.shape == (*packed, 3, size)
            assert basis.is_contiguous()
            assert basis.untyped_storage().nbytes() == 4 * basis.numel()
            assert_orthonormal(basis)
    low = compress(grad, bases)
    assert low.shape == compressed_shape(grad, bases)
    back = torch.zeros_like(grad)
    expand_into_(back, low, bases)
    torch.testing.assert_close(compress(back, bases), low, rtol=0, atol=5e-5)
    # An orthogonal projection: what is lost stands at right angles to what is kept.
    assert abs(float(((grad - back) * back).sum())) < 1e-3


@pytest.mark.parametrize("exact", [True, False])
def test_basis_of_a_low_rank_gradient_loses_nothing(exact: bool) -> None:
    grad = torch.randn(30, 4) @ torch.randn(4, 20)
    sides = Sides(left=False, right=True)
    bases = exact_bases(grad, 4, sides) if exact else iterated_bases(grad, random_start(grad, 4, sides, [0]))
    back = torch.zeros_like(grad)
    expand_into_(back, compress(grad, bases), bases)
    torch.testing.assert_close(back, grad, rtol=0, atol=1e-3)


def test_expand_adds_to_a_shrunken_weight() -> None:
    weight, low = torch.randn(5, 7), torch.randn(2, 3)
    bases = Bases(torch.randn(2, 5), torch.randn(3, 7))
    assert bases.left is not None
    assert bases.right is not None
    expected = 0.5 * weight - 2.0 * bases.left.T @ low @ bases.right
    expand_into_(weight, low, bases, keep=0.5, rate=-2.0)
    torch.testing.assert_close(weight, expected)


def test_subspace_iteration_captures_what_the_svd_does() -> None:
    grad = decaying(64, 48)
    assert captured(grad, sketched(grad, 8, n_iter=1)) > 0.85
    assert captured(grad, sketched(grad, 8)) > 0.95
    # One warm step from the basis of a gradient that has drifted.
    stale = sketched(grad + 0.3 * decaying(64, 48, seed=1), 8)
    assert captured(grad, iterate_basis(grad, stale)) > max(0.97, captured(grad, stale))
    assert captured(grad, sketched(grad, 8, n_iter=20)) == pytest.approx(1.0, abs=1e-4)


def test_random_bases_hold_their_share_of_any_gradient() -> None:
    grad = decaying(64, 48)
    sides = Sides(left=False, right=True)
    shares = []
    for seed in range(200):
        right = random_bases(grad, 12, sides, [seed]).right
        assert right is not None
        shares.append(float((grad @ right.mT).square().sum() / grad.square().sum()))
    assert sum(shares) / len(shares) == pytest.approx(12 / 48, abs=0.02)


@quick
@given(
    seeds=st.lists(st.integers(0, 2**63), min_size=3, max_size=3), place=st.integers(0, 2), other=st.integers(0, 2**63)
)
def test_each_seed_changes_the_random_directions(seeds: list[int], place: int, other: int) -> None:
    grad = torch.zeros(3, 8)
    drawn = random_directions(grad, 2, seeds)
    assert torch.equal(drawn, random_directions(grad, 2, seeds))
    changed = [*seeds[:place], other, *seeds[place + 1 :]]
    assert torch.equal(drawn, random_directions(grad, 2, changed)) == (changed == seeds)


def test_nearby_seeds_give_unlike_directions() -> None:
    grad = torch.zeros(2, 400)
    drawn = [
        random_directions(grad, 1, (seed, number, step))
        for seed in range(3)
        for number in range(8)
        for step in range(8)
    ]
    likeness = (torch.cat(drawn) @ torch.cat(drawn).T).fill_diagonal_(0).abs()
    assert likeness.max() < 0.3  # 18 000 pairs of standard deviation 0.05


def test_directions_come_out_ordered_and_keep_their_signs() -> None:
    grad = decaying(40, 24)
    basis = iterate_basis(grad, sketched(grad, 5), n_iter=60)
    truth = torch.linalg.svd(grad).Vh[:5]
    torch.testing.assert_close((basis * truth).sum(1).abs(), torch.ones(5), rtol=0, atol=1e-3)
    signs = torch.tensor([-1.0, 1.0, 1.0, -1.0, -1.0])[:, None]
    torch.testing.assert_close(
        iterate_basis(grad, signs * basis), signs * iterate_basis(grad, basis), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("factor", [1e-30, 1e-10, 1e10, 1e30])
def test_size_of_a_gradient_does_not_matter(factor: float) -> None:
    grad = decaying(40, 24)
    expected = sketched(grad, 5)
    torch.testing.assert_close(sketched(factor * grad, 5), expected, rtol=0, atol=1e-4)


def test_rank_deficient_gradient_keeps_the_old_directions_it_says_nothing_about() -> None:
    # The gradient lives in the first two coordinates, the old basis spans coordinates 0, 1, 5 and 6.
    grad = torch.zeros(30, 12)
    grad[:, :2] = torch.randn(30, 2)
    old = torch.eye(12)[[0, 1, 5, 6]]
    new = iterate_basis(grad, old)
    assert_orthonormal(new)
    torch.testing.assert_close((new @ old.T).square().sum(), torch.tensor(4.0), rtol=0, atol=1e-4)


def test_block_without_gradient_keeps_its_directions() -> None:
    grad = torch.randn(3, 10, 12)
    grad[1] = 0
    old = sketched(torch.randn(3, 10, 12), 4)
    new = iterate_basis(grad, old)
    assert_orthonormal(new)
    torch.testing.assert_close(new[1], old[1], rtol=0, atol=1e-5)


@quick
@given(seed=st.integers(0, 99), left=st.booleans(), right=st.booleans())
def test_moments_follow_flipped_and_permuted_directions_exactly(seed: int, left: bool, right: bool) -> None:
    torch.manual_seed(seed)
    grad = torch.randn(14, 11)
    old = exact_bases(grad, 5, Sides(left, right))
    orders = torch.randperm(5), torch.randperm(5)
    signs = [torch.where(torch.rand(5, 1) < 0.5, -1.0, 1.0) for _ in range(2)]
    new = Bases(*(None if b is None else s * b[o] for b, s, o in zip(old, signs, orders, strict=True)))
    low = compress(grad, old)
    turn = turns(old, new)
    torch.testing.assert_close(rotate(low, turn), compress(grad, new), rtol=0, atol=1e-4)
    squared = rotate(low.square(), turn, squared=True)
    torch.testing.assert_close(squared, compress(grad, new).square(), rtol=1e-4, atol=1e-4)


@quick
@given(seed=st.integers(0, 99))
def test_rotation_within_the_subspace_keeps_the_moment_and_its_energy(seed: int) -> None:
    torch.manual_seed(seed)
    old = sketched(torch.randn(14, 11), 5)
    turned = torch.linalg.qr(torch.randn(5, 5))[0] @ old
    moment = torch.randn(14, 5)
    turn = turns(Bases(None, old), Bases(None, turned))
    rotated = rotate(moment, turn)
    torch.testing.assert_close(rotated @ turned, moment @ old, rtol=0, atol=1e-5)
    variance = rotate(moment.square(), turn, squared=True)
    assert (variance >= 0).all()
    torch.testing.assert_close(variance.sum(), moment.square().sum())


@quick
@given(seed=st.integers(0, 99), kept=st.integers(0, 5))
def test_overlap_is_the_share_of_directions_found_again_whatever_their_signs(seed: int, kept: int) -> None:
    torch.manual_seed(seed)
    frame = orthonormal(torch.randn(11, 11))
    old = frame[:5]
    mixed = orthonormal(torch.randn(5, 5)) @ torch.cat([frame[:kept], frame[5 : 10 - kept]])
    assert overlap(turns(Bases(None, old), Bases(None, mixed))) == pytest.approx(kept / 5, abs=1e-5)
    # The side that moved most decides, and so does the block.
    assert overlap(turns(Bases(old, old), Bases(-old, mixed))) == pytest.approx(kept / 5, abs=1e-5)
    packed = torch.stack([old, mixed])
    assert overlap(turns(Bases(None, old.expand(2, -1, -1)), Bases(None, packed))) == pytest.approx(kept / 5, abs=1e-5)


@pytest.mark.parametrize("proj_type", PROJ_TYPES)
def test_numbers_of_the_specification(proj_type: str) -> None:
    m, n, r = 1536, 512, 8
    expected = {
        "std": m * 2 * r + n * r,
        "reverse_std": n * 2 * r + m * r,
        "left": n * 2 * r + m * r,
        "right": m * 2 * r + n * r,
        "full": (m + n) * r + 2 * r * r,
    }[proj_type]
    assert state_numel(m, n, r, proj_type) == expected  # type: ignore[arg-type]


def test_auto_scale_is_the_root_of_dimension_over_rank() -> None:
    assert auto_scale(128, 512, Bases(None, torch.empty(8, 512))) == 8.0
    assert auto_scale(128, 512, Bases(torch.empty(8, 128), None)) == 4.0
    assert auto_scale(128, 512, Bases(torch.empty(8, 128), torch.empty(8, 512))) == 32.0
