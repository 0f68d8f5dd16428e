"""Low rank plus a multiple of the identity, inverted exactly through a small Gram matrix."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.linalg import vecdot

from ...errors import NegativeCurvatureError
from .base import Invertible, LinearOperator
from .lanczos import fixed_start

CHUNK = 2**14
"""Columns of A whose products are added up in float64 at a time."""

BLOCK = 256
"""Rows of A whose products with the rows from them on are computed at a time; the rest follows by symmetry."""


class LowRankOperator(LinearOperator):
    """``AᵀA`` for a matrix A of few rows; a subclass says how the rows are stored."""

    @property
    @abstractmethod
    def width(self) -> int:
        """How many columns of A are stored here."""

    @abstractmethod
    def project(self, v: Tensor) -> Tensor:
        """A v: ``[R, P] -> [R, r]``."""

    @abstractmethod
    def lift(self, small: Tensor) -> Tensor:
        """Aᵀ s: ``[R, r] -> [R, P]``."""

    @abstractmethod
    def gram(self) -> Tensor:
        """AAᵀ in float64, ``[..., r, r]``."""

    def matvec(self, v: Tensor) -> Tensor:
        return self.lift(self.project(v))

    def largest_eigenvalue(self, like: Tensor, iterations: int) -> Tensor:
        """The result of power iteration, ``[R]`` (:func:`~.neumann.largest_eigenvalue`), from products with AAᵀ
        instead.

        From w to the next iterate, ``‖AᵀA w‖² = sᵀAAᵀs`` for ``s = A w``, and ``A(AᵀA w) = AAᵀs``.
        """
        start, gram = fixed_start(like), self.gram()
        s, size = self.project(start).double(), start.double().norm(dim=-1)
        for _ in range(iterations):
            s = s / size.unsqueeze(-1)
            ahead = s @ gram if gram.dim() == 2 else each_times(s, gram)
            s, size = ahead, vecdot(s, ahead).clamp_min(0).sqrt().clamp_min(torch.finfo(s.dtype).tiny)
        return size.to(like)

    def plus_identity(self, shift: float) -> LinearOperator:
        return LowRankPlusIdentity(self, shift)


class LowRank(LowRankOperator):
    """``AᵀA`` for stored rows A: ``[R, r, P]`` for different matrices, or ``[r, P]`` for one matrix for all rows of a
    vector."""

    def __init__(self, rows: Tensor, note: str = "") -> None:
        self.rows, self.note = rows, note

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes

    @property
    def width(self) -> int:
        return self.rows.shape[-1]

    def project(self, v: Tensor) -> Tensor:
        return v @ self.rows.mT if self.rows.dim() == 2 else each_times(v, self.rows.mT)

    def lift(self, small: Tensor) -> Tensor:
        return small @ self.rows if self.rows.dim() == 2 else each_times(small, self.rows)

    def gram(self) -> Tensor:
        """AAᵀ in float64, ``[..., r, r]``.

        If one A serves all right-hand sides, its rows are many and their products take most of the time: these are
        computed in A's dtype, in chunks of columns. The true residual of a solve shows whether that matters.
        """
        rows = self.rows
        total = torch.zeros(*rows.shape[:-1], rows.shape[-2], dtype=torch.float64, device=rows.device)
        for part in rows.split(CHUNK, dim=-1):
            wide: Tensor = part if rows.dim() == 2 else part.double()
            for start in range(0, rows.shape[-2], BLOCK):
                block = slice(start, start + BLOCK)
                total[..., start:, block] += wide[..., start:, :] @ wide[..., block, :].mT
        total.tril_()
        return total.add_(total.tril(-1).mT)


def each_times(v: Tensor, matrices: Tensor) -> Tensor:
    """``v_R M_R`` of each row, ``[R, a], [R, a, b] -> [R, b]``."""
    return (v.unsqueeze(1) @ matrices).squeeze(1)  # products from the left are several times faster on a CPU


class LowRankPlusIdentity(Invertible):
    """``AᵀA + δ I`` with far fewer rows A than columns.

    The inverse is exact, ``(v − Aᵀ(δI + AAᵀ)⁻¹A v) / δ``. It takes one factorisation of an r × r matrix, kept for
    further right-hand sides. That small system is in float64 for any dtype of A, since its condition number limits
    float32.

    Raises:
        NegativeCurvatureError: δ is negligible beside the largest eigenvalue of AAᵀ, or A is not finite.
    """

    def __init__(self, low_rank: LowRankOperator, delta: float) -> None:
        if not delta > 0:
            raise ValueError(f"delta, the multiple of the identity, must be positive, got {delta}")
        self.low_rank, self.delta, self.floor = low_rank, delta, delta
        self.note, self.shift = low_rank.note, low_rank.shift + delta
        self._factor = _shifted_factor(low_rank.gram(), delta)

    def matvec(self, v: Tensor) -> Tensor:
        return self.low_rank.matvec(v) + self.delta * v

    @property
    def nbytes(self) -> int:
        return self.low_rank.nbytes + self._factor.nbytes

    def inverse(self, v: Tensor) -> Tensor:
        small = self._solve_small(self.low_rank.project(v).double())
        return (v - self.low_rank.lift(small.to(v.dtype))).div_(self.delta)

    def _solve_small(self, s: Tensor) -> Tensor:
        if self._factor.dim() == 2:
            return torch.cholesky_solve(s.mT, self._factor).mT
        return torch.cholesky_solve(s.unsqueeze(-1), self._factor).squeeze(-1)


def _shifted_factor(gram: Tensor, delta: float) -> Tensor:
    """Cholesky factor of ``G + δI``."""
    shifted = gram.clone()
    shifted.diagonal(dim1=-2, dim2=-1).add_(delta)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if bool(failed.any()) or not bool(factor.isfinite().all()):
        raise NegativeCurvatureError(
            f"AAᵀ + δI has no Cholesky factor with δ = {delta:.3g} and entries up to {float(shifted.abs().max()):.3g}. "
            "Use a larger regulariser (proximal, l2 or damping), or check the task losses for infinite or NaN values"
        )
    return factor
