"""H_i = Zᵀ GGN(L_O) Z: positive semi-definite, solved by conjugate gradients with a sketch as preconditioner."""

from __future__ import annotations

from torch import Tensor

from ..solved_tasks import SolvedBatch
from .base import Curvature, PerTask
from .sketch import Sketch

SAMPLES = 2
"""Samples per task of the sketch that preconditions and gives the largest eigenvalue: one costs half of a product."""


class GaussNewton(PerTask):
    """Keeps the curvature of the criterion by the model outputs, and omits that of the outputs by (λ, θ)."""

    @property
    def preconditioner(self) -> Curvature:
        return Sketch(SAMPLES)

    def product(self, solved: SolvedBatch, v: Tensor) -> Tensor:
        return solved.solution.total(solved.outer.outputs_dot_of_one, solved.batch.query, self._curved(solved, v))[0]

    def weighted_sum(self, solved: SolvedBatch, weight: Tensor, v: Tensor) -> Tensor:
        return solved.solution.sum_of_totals(
            weight, solved.outer.outputs_dot_of_one, solved.batch.query, self._curved(solved, v)
        )

    @staticmethod
    def _curved(solved: SolvedBatch, v: Tensor) -> Tensor:
        """The curvature of L_O by the outputs, times the derivative of the outputs along v: ``[B, n, ...]``."""
        outputs, along = solved.solution.along(solved.outer.outputs_of_one, v, solved.batch.query)
        return solved.outer.curve(solved.lam, solved.solution.point, solved.batch.query, outputs, along)
