"""Low rank plus a multiple of the identity, inverted exactly through a small Gram matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import LossStructureError
from .base import LinearOperator, LinearSolver, Solution, SolveReport, relative_residual


class LowRankPlusIdentity(LinearOperator):
    """``AᵀA + δ I`` for rows A, ``[R, r, P]`` with r ≪ P.

    The inverse is exact, ``(v − Aᵀ(δI + AAᵀ)⁻¹A v) / δ`` (DESIGN: inner inverse ``"gram"``), and costs one
    factorisation of an r × r matrix, kept for further right-hand sides. That small system is in float64 whatever the
    dtype of A: its condition number is what limits float32.
    """

    def __init__(self, rows: Tensor, delta: float) -> None:
        if delta <= 0:
            raise ValueError(f"the multiple of the identity must be positive, got {delta}")
        self.rows, self.delta = rows, delta
        gram = (rows @ rows.mT).double()
        self._factor = torch.linalg.cholesky(gram + delta * torch.eye(gram.shape[-1]).to(gram))

    def matvec(self, v: Tensor) -> Tensor:
        return self._lift(self._project(v)) + self.delta * v

    def solve(self, v: Tensor) -> Tensor:
        """The exact inverse applied to ``v``, ``[R, P]``."""
        small = torch.cholesky_solve(self._project(v).double().unsqueeze(-1), self._factor).squeeze(-1)
        return (v - self._lift(small.to(v.dtype))) / self.delta

    def _project(self, v: Tensor) -> Tensor:
        return (self.rows @ v.unsqueeze(-1)).squeeze(-1)

    def _lift(self, small: Tensor) -> Tensor:
        return (self.rows.mT @ small.unsqueeze(-1)).squeeze(-1)


class Gram(LinearSolver):
    """The exact inverse of a :class:`LowRankPlusIdentity`."""

    def solve(self, operator: LinearOperator, b: Tensor) -> Solution[Tensor]:
        if not isinstance(operator, LowRankPlusIdentity):
            raise LossStructureError("the gram solver needs an operator of low rank plus a multiple of the identity")
        x = operator.solve(b)
        residual = relative_residual(operator, x, b)
        tolerance = torch.finfo(b.dtype).eps ** 0.5
        report = SolveReport(
            solver="gram",
            converged=residual <= tolerance,
            residual=residual,
            iterations=1,
            smallest_curvature=torch.full_like(residual, operator.delta),
            tolerance=tolerance,
            dtype=b.dtype,
        )
        return Solution(x, report)
