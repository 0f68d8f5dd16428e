"""Comparison of an approximate inverse with the exact one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Invertible, LinearOperator
from .cg import CG


@dataclass(frozen=True)
class Agreement:
    """An approximate solution x̃ compared with the exact ``x = A⁻¹ b``, row by row.

    Attributes:
        residual: ``[R]``, ``‖b − A x̃‖ / ‖b‖``: 0 is exact, 1 no better than x̃ = 0, NaN if b = 0.
        cosine: ``[R]``, between x̃ and x; NaN if CG did not find x.
    """

    residual: Tensor
    cosine: Tensor

    def __str__(self) -> str:
        return f"relative residual {float(self.residual.nanmedian()):.2g}, cosine {float(self.cosine.nanmedian()):.3f}"


def agreement(
    approximate: Invertible, exact: LinearOperator, b: Tensor, tolerance: float = 1e-3, max_iterations: int = 1000
) -> Agreement:
    """Compare ``approximate.inverse(b)`` with the exact solution for each row of ``b``, ``[R, P]``.

    Args:
        approximate: such as EK-FAC, or a multiple of the identity.
        exact: the matrices that it approximates, such as ``InnerHessian``.
        b: right-hand sides; influences depend on the one ∂_θ L_O.
        tolerance: of the exact solution, by CG, which bounds the error of the cosine.
        max_iterations: of CG.
    """
    guess = approximate.inverse(b)
    solution = CG(tolerance, max_iterations).solve(exact, b)
    cosine = (_unit(guess) * _unit(solution.value)).sum(-1)
    residual = (b - exact.matvec(guess)).norm(dim=-1) / b.norm(dim=-1)
    return Agreement(residual, torch.where(solution.report.converged, cosine, torch.nan))


def _unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=-1, keepdim=True)
