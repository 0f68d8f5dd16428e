"""Conjugate gradients for many systems at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .base import Approximate, Attempt, Invertible, LinearOperator, LinearSolver


@dataclass(frozen=True)
class CG(LinearSolver):
    """Conjugate gradients, each row stopping on its own.

    Unlike SciPy's, it stops a row where ``pᵀAp ≤ 0``: the iterate so far is kept and the curvature reported, for CG has
    no meaning beyond it.

    Args:
        tolerance: on ``‖b − A x‖ / ‖b‖``, preconditioned or not.
        max_iterations: at most this many products with A, those that check the result not counted.
        preconditioner: an operator close to A that knows its inverse; the closer, the fewer iterations.
    """

    tolerance: float = 1e-6
    max_iterations: int = 500
    preconditioner: Invertible | None = None

    def prepare(self, operator: LinearOperator, like: Tensor) -> Approximate:
        return partial(self._conjugate_gradients, operator)

    def _conjugate_gradients(self, operator: LinearOperator, b: Tensor, goal: Tensor, budget: int) -> Attempt:
        x, r = torch.zeros_like(b), b
        p = z = self.precondition(r)
        rho = (r * z).sum(-1)
        smallest = torch.full_like(rho, torch.inf)
        active = (r.norm(dim=-1) > goal) & (rho > 0)
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
            z = self.precondition(r)
            rho, previous = torch.where(active, (r * z).sum(-1), rho), rho
            active = active & (r.norm(dim=-1) > goal) & (rho > 0)
            p = torch.where(active.unsqueeze(-1), z + (rho / previous).unsqueeze(-1) * p, p)
        return Attempt(x, iterations, smallest)
