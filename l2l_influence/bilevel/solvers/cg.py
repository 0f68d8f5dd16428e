"""Conjugate gradients for many systems at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import LinearOperator, LinearSolver, Solution, SolveReport, relative_residual


@dataclass(frozen=True)
class CG(LinearSolver):
    """Conjugate gradients, each row stopping on its own.

    Unlike SciPy's, it stops a row where ``pᵀAp ≤ 0`` (the iterate so far is kept and the curvature reported: CG has no
    meaning beyond it), and convergence is judged on the true residual, not on the recursive one, which drifts in
    float32.

    Args:
        tolerance: on ``‖b − A x‖ / ‖b‖``.
        max_iterations: at most this many products with A.
    """

    tolerance: float = 1e-6
    max_iterations: int = 500

    def solve(self, operator: LinearOperator, b: Tensor) -> Solution[Tensor]:
        x, r, p = torch.zeros_like(b), b.clone(), b.clone()
        rho = (r * r).sum(-1)
        goal = (self.tolerance**2) * rho
        smallest = torch.full_like(rho, torch.inf)
        active = rho > 0
        iterations = 0
        while bool(active.any()) and iterations < self.max_iterations:
            iterations += 1
            ap = operator.matvec(p)
            curvature = (p * ap).sum(-1)
            smallest = torch.where(active, torch.minimum(smallest, curvature / (p * p).sum(-1)), smallest)
            active = active & (curvature > 0)
            alpha = torch.where(active, rho / curvature, 0.0).unsqueeze(-1)
            x = x + alpha * p
            r = r - alpha * ap
            rho, previous = torch.where(active, (r * r).sum(-1), rho), rho
            active = active & (rho > goal)
            p = torch.where(active.unsqueeze(-1), r + (rho / previous).unsqueeze(-1) * p, p)
        residual = relative_residual(operator, x, b)
        # Rounding separates the true residual from the recursive one by a few units in the last place.
        slack = self.tolerance * 1.5 + 20 * torch.finfo(b.dtype).eps
        report = SolveReport(
            solver="cg",
            converged=(residual <= slack) & ~(smallest <= 0),
            residual=residual,
            iterations=iterations,
            smallest_curvature=smallest,
            tolerance=self.tolerance,
            dtype=b.dtype,
        )
        return Solution(x, report)
