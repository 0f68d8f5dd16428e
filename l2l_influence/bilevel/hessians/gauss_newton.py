"""H_i = Zᵀ GGN(L_O) Z: positive semi-definite, solved by conjugate gradients with a sketch as preconditioner."""

from __future__ import annotations

from torch import Tensor

from ..local import SolvedBatch
from .base import Curvature, PerTask
from .sketch import Sketch

DRAWS = 2
"""A task, of the sketch that preconditions, and gives the largest eigenvalue: a draw costs about half of a product."""


class GaussNewton(PerTask):
    """Keeps the curvature of the criterion in the model's outputs and drops that of the outputs in (λ, θ)."""

    @property
    def near(self) -> Curvature:
        return Sketch(DRAWS)

    def product(self, at: SolvedBatch, v: Tensor) -> Tensor:
        curved = at.outer.gauss_newton(at.lam, at.solution.theta, at.batch.query, v, at.push_forward(v))
        return at.pull_back(*curved)
