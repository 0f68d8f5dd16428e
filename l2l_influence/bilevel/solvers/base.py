"""What a linear operator is, what a solver gives back, and what happens when a solve did not work.

An operator says what the matrices are; a solver says how to invert them. Both work on rows: ``v`` is ``[R, P]`` and row
``r`` belongs to system ``r``. The systems may differ (one inner problem a task) or be the same (one outer Hessian, many
right-hand sides); a solver need not know.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from ...errors import NegativeCurvatureError, NotConvergedError

Value = TypeVar("Value")
OnUnconverged = Literal["raise", "warn"]


class LinearOperator(ABC):
    """Symmetric operators, one a row.

    Attributes:
        note: what a reader of results should know of it, in a few words.
    """

    note: str = ""

    @abstractmethod
    def matvec(self, v: Tensor) -> Tensor:
        """``[R, P] -> [R, P]``, row by row."""

    def plus_identity(self, shift: float) -> LinearOperator:
        """``A + shift·I``, in a form that can be solved as well as this one."""
        return Shifted(self, shift)

    def dense(self, like: Tensor) -> Tensor:
        """The matrices, ``[R, P, P]``, for rows shaped ``like`` ``[R, P]``; for tests and small problems."""
        basis = torch.eye(like.shape[1]).to(like)
        columns = [self.matvec(e.expand_as(like)) for e in basis]
        return torch.stack(columns, dim=2)


class Invertible(LinearOperator):
    """A positive definite operator that knows its own inverse.

    Attributes:
        floor: a lower bound of its eigenvalues.
    """

    floor: float

    @abstractmethod
    def inverse(self, v: Tensor) -> Tensor:
        """``A⁻¹ v``, ``[R, P]``, as exactly as the dtype allows in one go."""


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
        dtype: of the right-hand sides.
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


class Attempt(NamedTuple):
    """One go at ``A x = b``.

    Attributes:
        x: ``[R, P]``; 0 in rows where b is 0.
        iterations: of the whole batch.
        smallest_curvature: ``[R]``, met on the way; inf where none was.
    """

    x: Tensor
    iterations: int
    smallest_curvature: Tensor


Approximate = Callable[[Tensor, Tensor, int], Attempt]
"""``(b, goal, budget) -> Attempt``: down to the residual ``goal``, ``[R]``, in at most ``budget`` iterations."""


class LinearSolver(ABC):
    """``solve(operator, b)`` never raises for a hard system: it reports, and :func:`enforce` decides.

    Attributes:
        tolerance: on ``‖b − A x‖ / ‖b‖``, of each row; None for the square root of the dtype's precision.
        max_iterations: in all.
    """

    tolerance: float | None
    max_iterations: int

    @abstractmethod
    def prepare(self, operator: LinearOperator, like: Tensor) -> Approximate:
        """What is done once for an operator, whatever the right-hand sides (rows shaped ``like``, ``[R, P]``)."""

    def solve(self, operator: LinearOperator, b: Tensor) -> Solution[Tensor]:
        """Solve ``A_r x_r = b_r`` for each row of ``b``, ``[R, P]``.

        Convergence is judged on the true residual: the one that a method updates on its way drifts in float32. A row
        that missed the tolerance for that reason is solved again for what is left, as long as that halves it.
        """
        scale = b.abs().amax(-1, keepdim=True)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        unit = b / scale  # tiny rows would underflow in inner products
        approximate = self.prepare(operator, unit)
        tolerance = torch.finfo(b.dtype).eps ** 0.5 if self.tolerance is None else self.tolerance
        size = unit.norm(dim=-1)
        goal = tolerance * size
        x, left, missed = torch.zeros_like(unit), unit, size
        smallest = torch.full_like(size, torch.inf)
        wanted = missed > goal
        iterations = 0
        while iterations < self.max_iterations and bool(wanted.any()):
            attempt = approximate(torch.where(wanted.unsqueeze(-1), left, 0.0), goal, self.max_iterations - iterations)
            iterations += attempt.iterations
            smallest = torch.minimum(smallest, attempt.smallest_curvature)
            x = x + attempt.x
            left = unit - operator.matvec(x)
            before, missed = missed, left.norm(dim=-1)
            wanted = wanted & (missed > goal) & (missed < before / 2) & (smallest > 0)
        report = SolveReport(
            solver=type(self).__name__.lower(),
            converged=(missed <= goal) & ~(smallest <= 0),
            residual=missed / torch.where(size > 0, size, torch.ones_like(size)),
            iterations=iterations,
            smallest_curvature=smallest,
            tolerance=tolerance,
            dtype=b.dtype,
        )
        return Solution(x * scale, report)


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
