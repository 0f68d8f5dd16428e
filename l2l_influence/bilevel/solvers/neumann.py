"""The Neumann series, scaled so that it converges."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .base import Approximate, Attempt, Invertible, LinearOperator, LinearSolver
from .lanczos import fixed_start

MARGIN = 1.1
"""Factor on the estimate of λ_max, which power iterations approach from below."""


@dataclass(frozen=True)
class Neumann(LinearSolver):
    """``x ← x + α M⁻¹(b − A x)`` with ``α = 1/λ_max(M⁻¹A)``: Alg. 4 with its sign and scale corrected (see the errata
    in the docs).

    λ_max comes from power iterations and is multiplied by a margin, so that α < 2/λ_max holds. The error shrinks by a
    factor of ``1 − λ_min/λ_max`` per iteration: CG needs about the square root of the number of iterations. A row stops
    if its step z has ``zᵀAz ≤ 0``, since the series can only grow from there.

    Args:
        tolerance: on ``‖b − A x‖ / ‖b‖``, preconditioned or not.
        max_iterations: at most this many products with A, not counting power iterations.
        power_iterations: products that estimate λ_max, at least one.
        preconditioner: an operator M close to A with a closed-form inverse; the paper has M = I.

    >>> Neumann(tolerance=1e-2).power_iterations
    20
    """

    tolerance: float = 1e-3
    max_iterations: int = 5000
    power_iterations: int = 20
    preconditioner: Invertible | None = None

    def prepare(self, operator: LinearOperator, like: Tensor) -> Approximate:
        largest = largest_eigenvalue(operator, like, self.power_iterations, self.preconditioner)
        return partial(self._series, operator, largest)

    def _series(self, operator: LinearOperator, largest: Tensor, b: Tensor, goal: Tensor, budget: int) -> Attempt:
        x, r = torch.zeros_like(b), b
        smallest = torch.full_like(largest, torch.inf)
        active = r.norm(dim=-1) > goal
        iterations = 0
        while iterations < budget and bool(active.any()):
            iterations += 1
            z = self.precondition(r)
            az = operator.matvec(z)
            curvature = (z * az).sum(-1)
            smallest = torch.where(active, torch.minimum(smallest, curvature / (z * z).sum(-1)), smallest)
            size = (z * r).sum(-1)  # zᵀMz
            active = active & (curvature > 0) & (size > 0)
            # Curvature seen on the way corrects a λ_max that the power iterations underestimated.
            largest = torch.where(active, torch.maximum(largest, curvature / size), largest)
            alpha = torch.where(active, 1 / (MARGIN * largest), 0.0).unsqueeze(-1)
            x = x + alpha * z
            r = r - alpha * az
            active = active & (r.norm(dim=-1) > goal)
        return Attempt(x, iterations, smallest)


def largest_eigenvalue(
    operator: LinearOperator, like: Tensor, iterations: int, preconditioner: Invertible | None = None
) -> Tensor:
    """λ|_max of each row's operator, ``[R]``, by power iteration from a fixed start (no global random state is used).

    With a preconditioner M, that of M⁻¹A, which is symmetric in the inner product of M. Except for rounding it never
    exceeds the true value.
    """
    tiny = torch.finfo(like.dtype).tiny

    def with_size(u: Tensor) -> tuple[Tensor, Tensor]:
        """w = M⁻¹u and ``√(wᵀMw)``."""
        w = u if preconditioner is None else preconditioner.inverse(u)
        return w, (u * w).sum(-1).clamp_min(0).sqrt().clamp_min(tiny)

    w, size = with_size(fixed_start(like))
    for _ in range(iterations):
        w, size = with_size(operator.matvec(w / size.unsqueeze(-1)))
    return size
