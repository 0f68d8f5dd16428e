"""Conjugate gradients for many systems at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .base import Approximate, Attempt, LinearOperator, LinearSolver


@dataclass(frozen=True)
class CG(LinearSolver):
    """Conjugate gradients, each row stopping on its own.

    Unlike SciPy's, it stops a row where ``pᵀAp ≤ 0``: the iterate so far is kept and the curvature reported, for CG has
    no meaning beyond it.

    Args:
        tolerance: on ``‖b − A x‖ / ‖b‖``.
        max_iterations: at most this many products with A, those that check the result not counted.
    """

    tolerance: float = 1e-6
    max_iterations: int = 500

    def prepare(self, operator: LinearOperator, like: Tensor) -> Approximate:
        return partial(_conjugate_gradients, operator)


def _conjugate_gradients(operator: LinearOperator, b: Tensor, goal: Tensor, budget: int) -> Attempt:
    x, r, p = torch.zeros_like(b), b, b
    rho = (r * r).sum(-1)
    smallest = torch.full_like(rho, torch.inf)
    active = rho > goal**2
    iterations = 0
    while iterations < budget and bool(active.any()):
        iterations += 1
        ap = operator.matvec(p)
        curvature = (p * ap).sum(-1)
        smallest = torch.where(active, torch.minimum(smallest, curvature / (p * p).sum(-1)), smallest)
        active = active & (curvature > 0)
        alpha = torch.where(active, rho / curvature, 0.0).unsqueeze(-1)
        x = x + alpha * p
        r = r - alpha * ap
        rho, previous = torch.where(active, (r * r).sum(-1), rho), rho
        active = active & (rho > goal**2)
        p = torch.where(active.unsqueeze(-1), r + (rho / previous).unsqueeze(-1) * p, p)
    return Attempt(x, iterations, smallest)
