"""The linear algebra of gradient projection: bases, their refresh, and the way there and back.

Shape letters: m, n rows and columns of a weight, r rank, k packed blocks (q, k, v). A basis is stored as ``(..., r, n)`` or
``(..., r, m)``: its r rows are orthonormal directions, contiguous, because the thin product ``G @ basis.mT`` then runs twice as fast
on CPU as with the directions in columns. Everything broadcasts over leading dimensions.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

ProjType = Literal["std", "reverse_std", "left", "right", "full"]
PROJ_TYPES: tuple[ProjType, ...] = ("std", "reverse_std", "left", "right", "full")

# Weight of the old directions in a refresh, relative to the largest entry of G'GQ: far above float32 rounding, so that
# a rank-deficient gradient keeps them instead of noise, far below any direction the gradient really has.
_KEEP_OLD = 1e-6


class Sides(NamedTuple):
    """Which sides of an m x n matrix are projected."""

    left: bool
    right: bool


class Bases(NamedTuple):
    """The basis of each projected side, ``None`` for a side left alone."""

    left: Tensor | None  # (..., r, m)
    right: Tensor | None  # (..., r, n)


def sides_of(m: int, n: int, proj_type: ProjType) -> Sides:
    """Sides to project: ``std`` keeps the longer dimension of the weight whole, ``reverse_std`` the shorter one."""
    tall = m >= n
    return {
        "std": Sides(not tall, tall),
        "reverse_std": Sides(tall, not tall),
        "left": Sides(left=True, right=False),
        "right": Sides(left=False, right=True),
        "full": Sides(left=True, right=True),
    }[proj_type]


def auto_scale(m: int, n: int, rank: int, sides: Sides) -> float:
    """Factor that gives a projected step the Frobenius norm AdamW's step has at the same learning rate.

    Adam's normalised update has entries of size one: norm ``sqrt(m r)`` in the subspace against ``sqrt(m n)`` in full.
    """
    return math.sqrt((m / rank if sides.left else 1.0) * (n / rank if sides.right else 1.0))


def state_numel(m: int, n: int, rank: int, proj_type: ProjType) -> int:
    """Numbers kept for one projected m x n matrix: its basis and two moments."""
    left, right = sides_of(m, n, proj_type)
    basis = rank * (m * left + n * right)
    return basis + 2 * (rank if left else m) * (rank if right else n)


def compress(grad: Tensor, bases: Bases) -> Tensor:
    """Coordinates of a gradient in the subspace."""
    if bases.left is not None:
        grad = bases.left @ grad
    if bases.right is not None:
        grad = grad @ bases.right.mT
    return grad


def expand_into_(weight: Tensor, low: Tensor, bases: Bases, *, keep: float, rate: float) -> None:
    """``weight <- keep * weight + rate * expanded low`` in place, without an m x n temporary."""
    if bases.left is None:
        assert bases.right is not None
        a, b = low, bases.right
    elif bases.right is None:
        a, b = bases.left.mT, low
    else:
        a, b = bases.left.mT @ low, bases.right
    product = weight.addmm_ if weight.ndim == 2 else weight.baddbmm_
    product(a, b, beta=keep, alpha=rate)


def rotate(moment: Tensor, old: Bases, new: Bases, *, squared: bool = False) -> Tensor:
    """Moment expressed in the new bases; a second moment (``squared``) turns with the squared coefficients.

    Squared coefficients are exact for flipped and permuted directions, and keep a variance non-negative for any other change.
    """
    for before, after, left in ((old.left, new.left, True), (old.right, new.right, False)):
        if before is None or after is None:
            continue
        turn = before @ after.mT  # (r_old, r_new)
        turn = turn.square() if squared else turn
        moment = turn.mT @ moment if left else moment @ turn
    return moment


def _unit_peak(x: Tensor) -> Tensor:
    # Squares of tiny gradients underflow; a factor per matrix changes no basis.
    return x / x.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def iterate_basis(grad: Tensor, basis: Tensor, n_iter: int) -> Tensor:
    """Subspace iteration towards the leading right singular directions of ``grad``, warm-started from ``basis``.

    Householder QR, since real gradients are rank-deficient and Cholesky QR breaks down on them. The directions come out
    ordered and with the sign of the ones they continue, whatever the LAPACK build.
    """
    for _ in range(n_iter):
        image = _unit_peak(grad @ basis.mT)  # (..., m, r)
        # Unit columns: the small directions would otherwise enter with the square of their singular value.
        image = image / image.norm(dim=-2, keepdim=True).clamp_min(1e-12)
        target = _unit_peak(grad.mT @ image) + _KEEP_OLD * basis.mT  # (..., n, r)
        q, upper = torch.linalg.qr(target)
        signs = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
        basis = (q * signs.unsqueeze(-2)).mT.contiguous()
    return basis


def random_basis(grad: Tensor, rank: int, seed: int) -> Tensor:
    """Leading right directions of ``grad`` from a random start and two power iterations.

    Drawn on the CPU, so that every rank and device starts from the same numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(*grad.shape[:-2], rank, grad.shape[-1], generator=generator, dtype=torch.float64)
    start = torch.linalg.qr(start.mT)[0].mT.contiguous().to(device=grad.device, dtype=grad.dtype)
    return iterate_basis(grad, start, n_iter=2)


def exact_bases(grad: Tensor, rank: int, sides: Sides) -> Bases:
    """Leading singular directions from a full SVD, as galore-torch takes them."""
    u, _, vh = torch.linalg.svd(grad, full_matrices=False)
    # Cloned: a slice would keep the whole of U or Vh alive, and in every checkpoint.
    left = u[..., :, :rank].mT.clone(memory_format=torch.contiguous_format) if sides.left else None
    right = vh[..., :rank, :].clone(memory_format=torch.contiguous_format) if sides.right else None
    return Bases(left, right)


def iterated_bases(grad: Tensor, rank: int, sides: Sides, old: Bases | None, seed: int) -> Bases:
    """Bases by subspace iteration: one step from the old ones, or from a seeded random start."""

    def one_side(matrix: Tensor, start: Tensor | None, side_seed: int) -> Tensor:
        if start is None or start.shape[-2] != rank:
            return random_basis(matrix, rank, side_seed)
        return iterate_basis(matrix, start, n_iter=1)

    left = one_side(grad.mT, old.left if old else None, 2 * seed) if sides.left else None
    right = one_side(grad, old.right if old else None, 2 * seed + 1) if sides.right else None
    return Bases(left, right)
