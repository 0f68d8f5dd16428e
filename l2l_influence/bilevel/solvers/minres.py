"""Minimal residuals, for symmetric systems that need not be positive definite."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from .base import Approximate, Attempt, LinearOperator, LinearSolver
from .lanczos import Lanczos

ROUNDING = 30
"""A residual below this many units of rounding of ``‖A‖ ‖x‖`` is not trusted: the recurrences have drifted by then."""


@dataclass(frozen=True)
class MINRES(LinearSolver):
    """Paige and Saunders' MINRES, with a stopping rule for each row.

    Solves ``A x = b`` for symmetric, nonsingular A of any signature. Negative curvature is reported, and is no failure:
    the caller decides what x means, since A then describes no minimum.

    The curvatures are those of the Lanczos vectors and of the residuals. They cost nothing, and are positive throughout
    only if A is positive definite on the space searched (Liu and Roosta, 2022).

    Args:
        tolerance: on ``‖b − A x‖ / ‖b‖``.
        max_iterations: at most this many products with A, not counting those that check the result.

    >>> MINRES(max_iterations=100).tolerance
    1e-06
    """

    needs_positive: ClassVar[bool] = False
    tolerance: float = 1e-6
    max_iterations: int = 2000

    def prepare(self, operator: LinearOperator, like: Tensor) -> Approximate:
        return partial(_minimal_residuals, operator)


class _Rotations:
    """Turns the tridiagonal matrix of the Lanczos process into a triangular one, by one rotation per step.

    Attributes:
        cos, sin: ``[R]``, of the last rotation, which multiplies the residual norm by ``sin``.
    """

    def __init__(self, like: Tensor) -> None:
        self.cos, self.sin = -torch.ones_like(like), torch.zeros_like(like)
        self._far, self._bar = self.sin, self.sin

    def turn(self, alpha: Tensor, beta: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """The next column, from two above the diagonal down, and the curvature ``rᵀAr / rᵀr`` of the residual so
        far."""
        above = self.cos * self._bar + self.sin * alpha
        diagonal = self.sin * self._bar - self.cos * alpha
        curvature = -self.cos * diagonal
        size = diagonal.hypot(beta)
        column = (self._far, above, size)
        self._far, self._bar = self.sin * beta, -self.cos * beta
        self.cos, self.sin = diagonal / size, beta / size
        return column, curvature


def _minimal_residuals(operator: LinearOperator, b: Tensor, goal: Tensor, budget: int) -> Attempt:
    lanczos = Lanczos(operator, b)
    missed, rounding = lanczos.beta, ROUNDING * torch.finfo(b.dtype).eps
    rotations = _Rotations(missed)
    x = w = w_before = torch.zeros_like(b)
    smallest, largest = torch.full_like(missed, torch.inf), torch.zeros_like(missed)
    active = missed > goal
    iterations = 0
    while iterations < budget and bool(active.any()):
        iterations += 1
        v, alpha = lanczos.step()
        (far, above, size), curvature = rotations.turn(alpha, lanczos.beta)
        smallest = torch.where(active, smallest.minimum(alpha).minimum(curvature), smallest)
        largest = largest.maximum(size)
        direction = (v - far.unsqueeze(-1) * w_before - above.unsqueeze(-1) * w) / size.unsqueeze(-1)
        w, w_before = torch.where(active.unsqueeze(-1), direction, 0.0), w
        new = x + (rotations.cos * missed).unsqueeze(-1) * w
        # NaN if A is zero on the space searched; close to that, x grows until only its rounding is left.
        active = active & (rounding * largest * new.norm(dim=-1) <= missed)
        x = torch.where(active.unsqueeze(-1), new, x)
        missed = torch.where(active, rotations.sin * missed, missed)
        active = active & (missed > goal)
    return Attempt(x, iterations, smallest)
