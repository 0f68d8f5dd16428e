"""What a linear operator is, what a solver gives back, and what happens when a solve did not work.

An operator says what the matrices are; a solver says how to invert them. Both work on rows: ``v`` is ``[R, P]`` and row
``r`` belongs to system ``r``. The systems may differ (one inner problem a task) or be the same (one outer Hessian, many
right-hand sides); a solver need not know.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from ...errors import NegativeCurvatureError, NotConvergedError

Value = TypeVar("Value")
OnUnconverged = Literal["raise", "warn"]


class LinearOperator(ABC):
    """Symmetric operators, one a row."""

    @abstractmethod
    def matvec(self, v: Tensor) -> Tensor:
        """``[R, P] -> [R, P]``, row by row."""

    def dense(self, like: Tensor) -> Tensor:
        """The matrices, ``[R, P, P]``, for rows shaped ``like`` ``[R, P]``; for tests and small problems."""
        basis = torch.eye(like.shape[1]).to(like)
        columns = [self.matvec(e.expand_as(like)) for e in basis]
        return torch.stack(columns, dim=2)


class Shifted(LinearOperator):
    """``A + shift·I``."""

    def __init__(self, operator: LinearOperator, shift: float) -> None:
        self.operator, self.shift = operator, shift

    def matvec(self, v: Tensor) -> Tensor:
        return self.operator.matvec(v) + self.shift * v


@dataclass(frozen=True)
class SolveReport:
    """How a solve went, row by row.

    Attributes:
        solver: its name.
        converged: ``[R]`` bool: the true residual met the tolerance on positive curvature.
        residual: ``[R]`` true relative residual ``‖b − A x‖ / ‖b‖`` (0 for b = 0).
        iterations: of the whole batch.
        smallest_curvature: ``[R]`` smallest ``pᵀAp / pᵀp`` seen (or eigenvalue); None where a solver sees none.
        tolerance: what was asked of ``residual``.
        shift: what was added to the diagonal: regulariser and damping.
        dtype: of the arithmetic.
    """

    solver: str
    converged: Tensor
    residual: Tensor
    iterations: int
    smallest_curvature: Tensor | None
    tolerance: float
    dtype: torch.dtype
    shift: float = 0.0

    @property
    def indefinite(self) -> bool:
        """Whether zero or negative curvature was met in any row."""
        return self.smallest_curvature is not None and bool((self.smallest_curvature <= 0).any())

    def __str__(self) -> str:
        verdict = "converged" if bool(self.converged.all()) else "NOT converged"
        return (
            f"{self.solver}: {verdict} in {self.iterations} iterations, relative residual "
            f"{float(self.residual.max()):.1e} (asked {self.tolerance:.1e}), diagonal shift {self.shift:.3g}"
        )


@dataclass(frozen=True)
class Solution(Generic[Value]):
    """``value`` solves the system as well as ``report`` says."""

    value: Value
    report: SolveReport


class LinearSolver(ABC):
    """``solve(operator, b)`` never raises for a hard system: it reports, and :func:`enforce` decides."""

    @abstractmethod
    def solve(self, operator: LinearOperator, b: Tensor) -> Solution[Tensor]:
        """Solve ``A_r x_r = b_r`` for each row of ``b``, ``[R, P]``."""


def relative_residual(operator: LinearOperator, x: Tensor, b: Tensor) -> Tensor:
    """``‖b − A x‖ / ‖b‖`` a row, with the residual computed anew; 0 where ``b`` is 0."""
    size = b.norm(dim=-1)
    return (b - operator.matvec(x)).norm(dim=-1) / torch.where(size > 0, size, torch.ones_like(size))


def enforce(report: SolveReport, what: str, on_unconverged: OnUnconverged = "raise") -> None:
    """Raise (or warn) when a solve cannot be trusted.

    Raises:
        NegativeCurvatureError: the operator is not positive definite along a direction that the solver tried.
        NotConvergedError: the tolerance was missed and ``on_unconverged`` is ``"raise"``.
    """
    if report.indefinite:
        assert report.smallest_curvature is not None
        raise NegativeCurvatureError(
            f"{what}: {report.solver} met curvature {float(report.smallest_curvature.min()):.3g}, so the matrix is not "
            "positive definite and its inverse does not describe a minimum. Use a larger regulariser (proximal, l2 or "
            "damping), a positive semi-definite curvature ('gram', 'gauss-newton'), or train closer to a minimum"
        )
    if bool(report.converged.all()):
        return
    message = f"{what}: {report}. Allow more iterations, a larger tolerance, or a larger regulariser or damping"
    if on_unconverged == "raise":
        raise NotConvergedError(message)
    warnings.warn(message, stacklevel=3)
