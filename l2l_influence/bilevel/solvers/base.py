"""The interfaces of linear operators and solvers, and the report of a solve.

An operator says what the matrices are; a solver says how to invert them. Both work on rows: ``v`` is ``[R, P]``, and
row ``r`` belongs to system ``r``. The systems may differ (one inner problem per task) or be the same (one outer
Hessian, many right-hand sides); a solver does not need to know.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")
OnUnconverged = Literal["raise", "warn"]


class LinearOperator(ABC):
    """Symmetric matrices, one per row.

    Attributes:
        note: what results should say about the operator, in a few words.
        shift: the part of its diagonal that was added to make it invertible: regulariser and damping.
    """

    note: str = ""
    shift: float = 0.0

    @abstractmethod
    def matvec(self, v: Tensor) -> Tensor:
        """The product with each row: ``[R, P] -> [R, P]``."""

    @property
    def nbytes(self) -> int:
        """Bytes that keeping the operator takes, beyond what it was made from."""
        return 0

    def plus_identity(self, shift: float) -> LinearOperator:
        """``A + shift·I``, in a form that can be solved as well as this operator can."""
        return Shifted(self, shift)

    def for_many_products(self) -> LinearOperator:
        """The same operator, with the work that all products share done once.

        It takes more memory, and should be dropped after use.
        """
        return self

    def dense(self, like: Tensor) -> Tensor:
        """The matrices, ``[R, P, P]``, for rows shaped ``like`` ``[R, P]``; for tests and small problems."""
        basis = torch.eye(like.shape[1]).to(like)
        columns = [self.matvec(e.expand_as(like)) for e in basis]
        return torch.stack(columns, dim=2)


class Invertible(LinearOperator):
    """A positive definite operator with a closed-form inverse.

    Attributes:
        floor: a lower bound of its eigenvalues.
    """

    floor: float

    @abstractmethod
    def inverse(self, v: Tensor) -> Tensor:
        """``A⁻¹ v``, ``[R, P]``, as exactly as the dtype allows in one application."""


class Shifted(LinearOperator):
    """``A + shift·I``."""

    def __init__(self, operator: LinearOperator, shift: float) -> None:
        self.operator, self.note = operator, operator.note
        self.shift, self._added = operator.shift + shift, shift

    def matvec(self, v: Tensor) -> Tensor:
        return self.operator.matvec(v) + self._added * v


@dataclass(frozen=True)
class SolveReport:
    """The report of a solve, row by row.

    Attributes:
        solver: name of the solver.
        converged: ``[R]`` bool: the true residual met the tolerance, and the row was not refused.
        refused: ``[R]`` bool: a solver for positive definite systems met zero or negative curvature.
        residual: ``[R]``, true relative residual ``‖b − A x‖ / ‖b‖`` (0 if b = 0).
        iterations: of the whole batch.
        smallest_curvature: ``[R]``, smallest ``pᵀAp / pᵀp`` seen (or eigenvalue) of A including all that was added to
            its diagonal; inf if none was seen.
        tolerance: requested for ``residual``.
        dtype: of the right-hand sides.
        shift: the requested addition to A's diagonal: regulariser and damping.
        damping: ``[R]``, what a :class:`~.policy.Policy` added to the diagonal beyond that; 0 if nothing.
    """

    solver: str
    converged: Tensor
    refused: Tensor
    residual: Tensor
    iterations: int
    smallest_curvature: Tensor
    tolerance: float
    dtype: torch.dtype
    shift: float
    damping: Tensor

    @classmethod
    def of_all(cls, reports: Sequence[SolveReport]) -> SolveReport:
        """One report of consecutive solves by the same solver with the same matrix."""
        by_row = ("converged", "refused", "residual", "smallest_curvature", "damping")
        joined: dict[str, Any] = {name: torch.cat([getattr(report, name) for report in reports]) for name in by_row}
        return replace(reports[0], iterations=max(report.iterations for report in reports), **joined)

    @property
    def indefinite(self) -> bool:
        """Whether any row was refused."""
        return bool(self.refused.any())

    def __str__(self) -> str:
        verdict = "converged" if bool(self.converged.all()) else "NOT converged"
        return (
            f"{self.solver}: {verdict} in {self.iterations} iterations, relative residual "
            f"{float(self.residual.max()):.1e} (tolerance {self.tolerance:.1e}), smallest curvature "
            f"{float(self.smallest_curvature.min()):.3g}, diagonal shift {self.shift:.3g}{self._damped()}"
        )

    def _damped(self) -> str:
        damped = self.damping[self.damping > 0]
        if not len(damped):
            return ""
        return f" and up to {float(damped.max()):.3g} more in {len(damped)} of {len(self.damping)} systems"


@dataclass(frozen=True)
class Solution(Generic[Value]):
    """``value`` solves the system as well as ``report`` says."""

    value: Value
    report: SolveReport


class Attempt(NamedTuple):
    """One attempt at ``A x = b``.

    Attributes:
        x: ``[R, P]``; 0 in rows where b is 0.
        iterations: of the whole batch.
        smallest_curvature: ``[R]``, seen on the way; inf if none.
    """

    x: Tensor
    iterations: int
    smallest_curvature: Tensor


Approximate = Callable[[Tensor, Tensor, int], Attempt]
"""``(b, goal, budget) -> Attempt``: down to the residual ``goal``, ``[R]``, in at most ``budget`` iterations."""


class LinearSolver(ABC):
    """A solver of ``A_r x_r = b_r``. It reports and does not raise for a hard system; a :class:`~.policy.Policy`
    decides.

    Attributes:
        needs_positive: whether its answer is meaningless if it meets zero or negative curvature.
        tolerance: on ``‖b − A x‖ / ‖b‖`` of each row; the square root of the dtype's precision if None.
        max_iterations: in total.
        preconditioner: an operator M close to A, of which only the inverse is used; the identity if None.
    """

    needs_positive: ClassVar[bool] = True
    tolerance: float | None
    max_iterations: int
    preconditioner: Invertible | None = None

    @property
    def name(self) -> str:
        """The solver's name in reports."""
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(self).__name__).lower()  # "closed form"
        return name if self.preconditioner is None else f"preconditioned {name}"

    @property
    def nbytes(self) -> int:
        """Bytes that keeping the solver takes."""
        return 0 if self.preconditioner is None else self.preconditioner.nbytes

    def precondition(self, r: Tensor) -> Tensor:
        """M⁻¹ r, ``[R, P]``."""
        return r if self.preconditioner is None else self.preconditioner.inverse(r)

    @abstractmethod
    def prepare(self, operator: LinearOperator, like: Tensor) -> Approximate:
        """The work that is done once per operator, for any right-hand sides (rows shaped ``like``, ``[R, P]``)."""

    def solve(self, operator: LinearOperator, b: Tensor) -> Solution[Tensor]:
        """Solve ``A_r x_r = b_r`` for each row of ``b``, ``[R, P]``.

        Convergence is judged by the true residual, since the one that a method updates drifts in float32. A row that
        missed the tolerance for that reason is solved again for the remaining residual, as long as that halves it.
        """
        scale = b.abs().amax(-1, keepdim=True)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        unit = b / scale  # inner products of tiny rows would underflow
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
            wanted = wanted & (missed > goal) & (missed < before / 2) & ~self._refuses(smallest)
        refused = self._refuses(smallest)
        report = SolveReport(
            solver=self.name,
            converged=(missed <= goal) & ~refused,
            refused=refused,
            residual=missed / torch.where(size > 0, size, torch.ones_like(size)),
            iterations=iterations,
            smallest_curvature=smallest,
            tolerance=tolerance,
            dtype=b.dtype,
            shift=operator.shift,
            damping=torch.zeros_like(size),
        )
        return Solution(x * scale, report)

    def _refuses(self, curvature: Tensor) -> Tensor:
        return (curvature <= 0) & self.needs_positive
