"""The whole matrix, for tests and small problems."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import LinearOperator, LinearSolver, Solution, SolveReport, relative_residual


@dataclass(frozen=True)
class Dense(LinearSolver):
    """Builds each row's matrix and solves by its eigenvalues: exact, P products and P³ work.

    Args:
        tolerance: on ``‖b − A x‖ / ‖b‖``; missed only where the matrix is close to singular.
    """

    tolerance: float = 1e-6

    def solve(self, operator: LinearOperator, b: Tensor) -> Solution[Tensor]:
        matrices = operator.dense(b).double()
        values, vectors = torch.linalg.eigh((matrices + matrices.mT) / 2)
        coordinates = (vectors.mT @ b.double().unsqueeze(-1)).squeeze(-1)
        x = (vectors @ (coordinates / values).unsqueeze(-1)).squeeze(-1).to(b.dtype)
        residual = relative_residual(operator, x, b)
        report = SolveReport(
            solver="dense",
            converged=residual <= self.tolerance,
            residual=residual,
            iterations=1,
            smallest_curvature=values[:, 0].to(b.dtype),
            tolerance=self.tolerance,
            dtype=torch.float64,
        )
        return Solution(x, report)
