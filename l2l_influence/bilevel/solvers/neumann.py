"""The Neumann series, scaled so that it converges."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import LinearOperator, LinearSolver, Solution, SolveReport, relative_residual


@dataclass(frozen=True)
class Neumann(LinearSolver):
    """``x ← x + α (b − A x)`` with ``α = 1/λ_max`` (Alg. 4 with its sign and its missing scale put right; see the
    errata in the docs). λ_max comes from power iterations and carries a margin, so α < 2/λ_max holds.

    The error shrinks by ``1 − λ_min/λ_max`` an iteration: CG needs about the square root of Neumann's iterations.

    Args:
        tolerance: on ``‖b − A x‖ / ‖b‖``.
        max_iterations: at most this many products with A, power iterations not counted.
        power_iterations: products spent on estimating λ_max.
    """

    tolerance: float = 1e-3
    max_iterations: int = 5000
    power_iterations: int = 20

    def solve(self, operator: LinearOperator, b: Tensor) -> Solution[Tensor]:
        alpha = (1 / (1.1 * largest_eigenvalue(operator, b, self.power_iterations))).unsqueeze(-1)
        x, r = torch.zeros_like(b), b.clone()
        size = b.norm(dim=-1)
        iterations = 0
        while iterations < self.max_iterations and bool((r.norm(dim=-1) > self.tolerance * size).any()):
            iterations += 1
            x = x + alpha * r
            r = b - operator.matvec(x)
        residual = relative_residual(operator, x, b)
        report = SolveReport(
            solver="neumann",
            converged=residual <= self.tolerance,
            residual=residual,
            iterations=iterations,
            smallest_curvature=_curvature_along(operator, r),
            tolerance=self.tolerance,
            dtype=b.dtype,
        )
        return Solution(x, report)


def largest_eigenvalue(operator: LinearOperator, like: Tensor, iterations: int) -> Tensor:
    """λ_max of each row's operator, ``[R]``, by power iteration from a fixed start (no global random state used)."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(like.shape[1], generator=generator, dtype=torch.float64).to(like).expand_as(like)
    value = torch.ones(len(like)).to(like)
    for _ in range(iterations):
        v = v / v.norm(dim=-1, keepdim=True)
        v = operator.matvec(v)
        value = v.norm(dim=-1)
    return value.clamp_min(torch.finfo(like.dtype).tiny)


def _curvature_along(operator: LinearOperator, v: Tensor) -> Tensor | None:
    """``vᵀAv / vᵀv`` for the last residual, which leans toward the smallest (or a negative) eigenvalue."""
    square = (v * v).sum(-1)
    if not bool((square > 0).all()):
        return None
    return (v * operator.matvec(v)).sum(-1) / square
