"""H_i = Zᵀ GGN(L_O) Z: positive semi-definite, solved by conjugate gradients with a sketch as preconditioner."""

from __future__ import annotations

from torch import Tensor

from ..solved_tasks import SolvedBatch
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
        return at.solution.total(at.outer.outputs_dot_of_one, at.batch.query, self._curved(at, v))[0]

    def weighted_sum(self, at: SolvedBatch, weight: Tensor, v: Tensor) -> Tensor:
        return at.solution.sum_of_totals(weight, at.outer.outputs_dot_of_one, at.batch.query, self._curved(at, v))

    @staticmethod
    def _curved(at: SolvedBatch, v: Tensor) -> Tensor:
        """GGN(L_O)'s part in the outputs times what moving λ along v moves them by, ``[B, n, ...]``."""
        outputs, along = at.solution.along(at.outer.outputs_of_one, v, at.batch.query)
        return at.outer.curve(at.lam, at.solution.point, at.batch.query, outputs, along)
