"""The Neumann series, scaled so that it converges."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .base import Approximate, Attempt, LinearOperator, LinearSolver

MARGIN = 1.1


@dataclass(frozen=True)
class Neumann(LinearSolver):
    """``x ← x + α (b − A x)`` with ``α = 1/λ_max`` (Alg. 4 with its sign and its missing scale put right; see the
    errata in the docs). λ_max comes from power iterations and carries a margin, so α < 2/λ_max holds.

    The error shrinks by ``1 − λ_min/λ_max`` an iteration: CG needs about the square root of Neumann's iterations. A row
    stops where its residual r has ``rᵀAr ≤ 0``: from there the series can only grow.

    Args:
        tolerance: on ``‖b − A x‖ / ‖b‖``.
        max_iterations: at most this many products with A, power iterations not counted.
        power_iterations: products spent on estimating λ_max.
    """

    tolerance: float = 1e-3
    max_iterations: int = 5000
    power_iterations: int = 20

    def prepare(self, operator: LinearOperator, like: Tensor) -> Approximate:
        return partial(_series, operator, largest_eigenvalue(operator, like, self.power_iterations))


def _series(operator: LinearOperator, largest: Tensor, b: Tensor, goal: Tensor, budget: int) -> Attempt:
    x, r = torch.zeros_like(b), b
    smallest = torch.full_like(largest, torch.inf)
    active = r.norm(dim=-1) > goal
    iterations = 0
    while iterations < budget and bool(active.any()):
        iterations += 1
        ar = operator.matvec(r)
        curvature = (r * ar).sum(-1) / (r * r).sum(-1)
        smallest = torch.where(active, torch.minimum(smallest, curvature), smallest)
        active = active & (curvature > 0)
        # Curvature met on the way corrects a λ_max that the power iterations left too small.
        largest = torch.where(active, torch.maximum(largest, curvature), largest)
        alpha = torch.where(active, 1 / (MARGIN * largest), 0.0).unsqueeze(-1)
        x = x + alpha * r
        r = r - alpha * ar
        active = active & (r.norm(dim=-1) > goal)
    return Attempt(x, iterations, smallest)


def largest_eigenvalue(operator: LinearOperator, like: Tensor, iterations: int) -> Tensor:
    """|λ|_max of each row's operator, ``[R]``, by power iteration from a fixed start (no global random state used)."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(like.shape[1], generator=generator, dtype=torch.float64).to(like).expand_as(like)
    tiny = torch.finfo(like.dtype).tiny
    value = torch.ones(len(like)).to(like)
    for _ in range(iterations):
        v = operator.matvec(v / v.norm(dim=-1, keepdim=True).clamp_min(tiny))
        value = v.norm(dim=-1)
    return value.clamp_min(tiny)
