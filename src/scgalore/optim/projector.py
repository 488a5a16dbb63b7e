"""The linear algebra of gradient projection: bases, their refresh, and the way there and back.

Shape letters: m, n rows and columns of a weight, r rank. A basis is stored as ``(r, m)`` or ``(r, n)``: r orthonormal
directions, each contiguous, because the thin product ``G @ basis.mT`` is then twice as fast on CPU (rank 8) as with the
directions in columns. Everything broadcasts over a leading dimension of packed blocks (q, k, v).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ProjType = Literal["std", "reverse_std", "left", "right", "full"]
PROJ_TYPES: tuple[ProjType, ...] = ("std", "reverse_std", "left", "right", "full")

# Share of the old directions in a refresh, relative to the largest entry of the new: above float32 rounding, so that a
# rank-deficient gradient keeps them rather than noise, and below any direction that the gradient really has.
_KEEP_OLD = 1e-6


class Sides(NamedTuple):
    """Which sides of a matrix are projected."""

    left: bool
    right: bool


class Bases(NamedTuple):
    """The basis of each projected side, ``None`` for a side left whole."""

    left: Tensor | None  # (r, m)
    right: Tensor | None  # (r, n)


def sides_of(m: int, n: int, proj_type: ProjType) -> Sides:
    """Sides to project: ``std`` keeps the longer dimension of the weight whole, ``reverse_std`` the shorter."""
    tall = m >= n
    return {
        "std": Sides(left=not tall, right=tall),
        "reverse_std": Sides(left=tall, right=not tall),
        "left": Sides(left=True, right=False),
        "right": Sides(left=False, right=True),
        "full": Sides(left=True, right=True),
    }[proj_type]


def state_numel(m: int, n: int, rank: int, proj_type: ProjType) -> int:
    """How many numbers are kept for a projected m x n matrix: its bases and two moments."""
    left, right = sides_of(m, n, proj_type)
    return rank * (m * left + n * right) + 2 * (rank if left else m) * (rank if right else n)


def auto_scale(m: int, n: int, bases: Bases) -> float:
    """Factor by which a projected step gets the size of AdamW's at the same learning rate.

    Adam's normalised update has entries of about one: Frobenius norm sqrt(m r) in the subspace, sqrt(m n) in full.
    """
    left = 1.0 if bases.left is None else m / bases.left.shape[-2]
    right = 1.0 if bases.right is None else n / bases.right.shape[-2]
    return math.sqrt(left * right)


def compressed_shape(grad: Tensor, bases: Bases) -> tuple[int, ...]:
    """Shape of the projected gradient."""
    *packed, m, n = grad.shape
    m = m if bases.left is None else bases.left.shape[-2]
    n = n if bases.right is None else bases.right.shape[-2]
    return (*packed, m, n)


def compress(grad: Tensor, bases: Bases) -> Tensor:
    """Coordinates of a gradient in the subspace."""
    if bases.left is not None:
        grad = bases.left @ grad
    if bases.right is not None:
        grad = grad @ bases.right.mT
    return grad


def expand_into_(weight: Tensor, low: Tensor, bases: Bases, *, keep: float = 1.0, rate: float = 1.0) -> None:
    """``weight <- keep * weight + rate * back(low)`` in place, without a temporary of the weight's size."""
    a, b = low, bases.right
    if bases.left is not None:
        a, b = (bases.left.mT, low) if b is None else (bases.left.mT @ low, b)
    assert b is not None
    product = weight.addmm_ if weight.ndim == 2 else weight.baddbmm_
    product(a, b, beta=keep, alpha=rate)


def turns(old: Bases, new: Bases) -> Bases:
    """Cosines between old and new directions of each side, ``(r old, r new)``."""
    left, right = (None if a is None or b is None else a @ b.mT for a, b in zip(old, new, strict=True))
    return Bases(left, right)


def rotate(moment: Tensor, turn: Bases, *, squared: bool = False) -> Tensor:
    """Moment expressed in new bases; a second moment (``squared``) turns by the squared cosines.

    That is exact when directions only flip or change places, and keeps variances non-negative in every other case.
    """
    left, right = (side if side is None or not squared else side.square() for side in turn)
    if left is not None:
        moment = left.mT @ moment
    return moment if right is None else moment @ right


def overlap(turn: Bases) -> float:
    """Fraction of the old subspace contained in the new one, for the side and block that changed most; independent of signs."""
    shares = [side.square().sum((-2, -1)) / side.shape[-2] for side in turn if side is not None]
    return min(float(share.min()) for share in shares)


def iterate_basis(grad: Tensor, basis: Tensor, n_iter: int = 1) -> Tensor:
    """Subspace iteration towards the leading right singular directions of ``grad``, from ``basis``."""
    for _ in range(n_iter):
        image = _unit_peak(basis @ grad.mT)  # (r, m)
        # Rows are normalised, since weak directions would otherwise be weighted by the square of their singular value.
        image = image / image.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        basis = orthonormal(_unit_peak(image @ grad) + _KEEP_OLD * basis)  # (r, n)
    return basis


def orthonormal(directions: Tensor) -> Tensor:
    """Orthonormal basis of the span of ``(r, n)`` directions, each with the sign of the one it continues.

    Householder QR, because real gradients are rank-deficient and Cholesky QR breaks down on them. The signs do not
    depend on the LAPACK build.
    """
    q, upper = torch.linalg.qr(directions.mT)
    sign = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
    return (q * sign.unsqueeze(-2)).mT.contiguous()


def random_directions(grad: Tensor, rank: int, seeds: Iterable[int]) -> Tensor:
    """Gaussian directions on the right of ``grad``: long ones, so nearly orthonormal.

    They are drawn on the CPU, so that every rank and device has the same ones, from a seed combined from several numbers.
    """
    drawn = torch.randn(*grad.shape[:-2], rank, grad.shape[-1], generator=_generator(seeds))
    return (drawn / grad.shape[-1] ** 0.5).to(grad)


def random_projection(grad: Tensor, rank: int, sides: Sides, seeds: Sequence[int]) -> Bases:
    """Gaussian projection of one side that keeps norms on average: entries of variance 1 / rank.

    It is drawn on the device of ``grad``, since it is drawn at every step: the same on all ranks, and another on
    another kind of device.
    """
    size = grad.shape[-2] if sides.left else grad.shape[-1]
    drawn = torch.randn(
        *grad.shape[:-2],
        rank,
        size,
        generator=_generator(seeds, grad.device),
        device=grad.device,
        dtype=grad.dtype,
    )
    drawn /= rank**0.5
    return Bases(drawn, None) if sides.left else Bases(None, drawn)


def _generator(seeds: Iterable[int], device: torch.device | str = "cpu") -> torch.Generator:
    mixed = 0
    for seed in seeds:
        mixed = (mixed ^ seed) * 6364136223846793005 % 2**64
    # The CPU's generator reads 32 bits of its seed, and the upper half is the better mixed one.
    return torch.Generator(device).manual_seed(mixed >> 32)


def random_start(grad: Tensor, rank: int, sides: Sides, seeds: Sequence[int]) -> Bases:
    """Random directions for each projected side, to iterate from."""
    left = random_directions(grad.mT, rank, (*seeds, 0)) if sides.left else None
    right = random_directions(grad, rank, (*seeds, 1)) if sides.right else None
    return Bases(left, right)


def random_bases(grad: Tensor, rank: int, sides: Sides, seeds: Sequence[int]) -> Bases:
    """Bases independent of the gradient, uniform among all subspaces."""
    left, right = (None if side is None else orthonormal(side) for side in random_start(grad, rank, sides, seeds))
    return Bases(left, right)


def iterated_bases(grad: Tensor, start: Bases, n_iter: int = 1) -> Bases:
    """Bases by subspace iteration on each projected side."""
    left = None if start.left is None else iterate_basis(grad.mT, start.left, n_iter)
    right = None if start.right is None else iterate_basis(grad, start.right, n_iter)
    return Bases(left, right)


def exact_bases(grad: Tensor, rank: int, sides: Sides) -> Bases:
    """Leading singular directions by a full SVD, as in galore-torch."""
    u, _, vh = torch.linalg.svd(grad, full_matrices=False)
    # Cloned, since a slice would keep all of U or Vh, in memory and in every checkpoint.
    left = u[..., :rank].mT.clone(memory_format=torch.contiguous_format) if sides.left else None
    right = vh[..., :rank, :].clone(memory_format=torch.contiguous_format) if sides.right else None
    return Bases(left, right)


def _unit_peak(x: Tensor) -> Tensor:
    # Squares of tiny gradients underflow, and scaling a matrix does not change its basis.
    return x / x.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
