"""Conjugate gradients for many systems at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.linalg import vecdot

from .base import Approximate, Attempt, Invertible, LinearOperator, LinearSolver


@dataclass(frozen=True)
class CG(LinearSolver):
    """Conjugate gradients, with a stopping rule for each row.

    Unlike SciPy's, it stops a row where ``pᵀAp ≤ 0``, keeps the iterate and reports the curvature, since CG is
    meaningless beyond it.

    Args:
        tolerance: on ``‖b − A x‖ / ‖b‖``, preconditioned or not.
        max_iterations: at most this many products with A, not counting those that check the result.
        preconditioner: an operator close to A with a closed-form inverse; the closer, the fewer iterations.

    >>> CG(tolerance=1e-8).name
    'cg'
    """

    tolerance: float = 1e-6
    max_iterations: int = 500
    preconditioner: Invertible | None = None

    def prepare(self, operator: LinearOperator, like: Tensor) -> Approximate:
        return partial(self._conjugate_gradients, operator)

    def _conjugate_gradients(self, operator: LinearOperator, b: Tensor, goal: Tensor, budget: int) -> Attempt:
        # Updates are in place: beside products with few samples, allocating new memory would take most of the time.
        x, r = torch.zeros_like(b), b.clone()
        z = self.precondition(r)
        p, rho = z.clone(), vecdot(r, z)
        smallest = torch.full_like(rho, torch.inf)
        active = (r.norm(dim=-1) > goal) & (rho > 0)
        iterations = 0
        while iterations < budget and bool(active.any()):
            iterations += 1
            ap = operator.matvec(p)
            curvature = vecdot(p, ap)
            smallest = torch.where(active, torch.minimum(smallest, curvature / vecdot(p, p)), smallest)
            active = active & (curvature > 0)
            alpha = torch.where(active, rho / curvature, 0.0).unsqueeze(-1)
            x.addcmul_(alpha, p)
            r.addcmul_(alpha, ap, value=-1)
            z = self.precondition(r)
            rho, previous = torch.where(active, vecdot(r, z), rho), rho
            active = active & (r.norm(dim=-1) > goal) & (rho > 0)
            p.mul_(torch.where(active, rho / previous, 0.0).unsqueeze(-1)).add_(z)
        return Attempt(x, iterations, smallest)
