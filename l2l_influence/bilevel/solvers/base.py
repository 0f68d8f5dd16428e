"""What a linear operator is, what a solver does, and what it gives back.

An operator says what the matrices are; a solver says how to invert them. Both work on rows: ``v`` is ``[R, P]`` and row
``r`` belongs to system ``r``. The systems may differ (one inner problem a task) or be the same (one outer Hessian, many
right-hand sides); a solver need not know.
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
    """Symmetric operators, one a row.

    Attributes:
        note: what a reader of results should know of it, in a few words.
        shift: how much of its diagonal was put there to make it invertible: regulariser and damping.
    """

    note: str = ""
    shift: float = 0.0

    @abstractmethod
    def matvec(self, v: Tensor) -> Tensor:
        """``[R, P] -> [R, P]``, row by row."""

    @property
    def nbytes(self) -> int:
        """Memory that keeping it takes, beyond what it was made from."""
        return 0

    def plus_identity(self, shift: float) -> LinearOperator:
        """``A + shift·I``, in a form that can be solved as well as this one."""
        return Shifted(self, shift)

    def for_many_products(self) -> LinearOperator:
        """The same operator, having done what all products share. It takes more memory: to be used and dropped."""
        return self

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
        self.operator, self.note = operator, operator.note
        self.shift, self._added = operator.shift + shift, shift

    def matvec(self, v: Tensor) -> Tensor:
        return self.operator.matvec(v) + self._added * v


@dataclass(frozen=True)
class SolveReport:
    """How a solve went, row by row.

    Attributes:
        solver: its name.
        converged: ``[R]`` bool: the true residual met the tolerance, and the row was not refused.
        refused: ``[R]`` bool: zero or negative curvature was met by a solver that has no meaning there.
        residual: ``[R]`` true relative residual ``‖b − A x‖ / ‖b‖`` (0 for b = 0).
        iterations: of the whole batch.
        smallest_curvature: ``[R]`` smallest ``pᵀAp / pᵀp`` seen (or eigenvalue), of A with all that was added to it;
            inf where none was seen.
        tolerance: what was asked of ``residual``.
        dtype: of the right-hand sides.
        shift: how much of A's diagonal was asked for: regulariser and damping.
        damping: ``[R]``, what a :class:`~.policy.Policy` added to the diagonal on top of that; 0 where it did not.
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
        """One report of solves by the same solver of the same matrix, one after the other."""
        by_row = ("converged", "refused", "residual", "smallest_curvature", "damping")
        joined: dict[str, Any] = {name: torch.cat([getattr(each, name) for each in reports]) for name in by_row}
        return replace(reports[0], iterations=max(each.iterations for each in reports), **joined)

    @property
    def indefinite(self) -> bool:
        """Whether any row was refused."""
        return bool(self.refused.any())

    def __str__(self) -> str:
        verdict = "converged" if bool(self.converged.all()) else "NOT converged"
        return (
            f"{self.solver}: {verdict} in {self.iterations} iterations, relative residual "
            f"{float(self.residual.max()):.1e} (asked {self.tolerance:.1e}), smallest curvature "
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
    """``solve(operator, b)`` never raises for a hard system: it reports, and a :class:`~.policy.Policy` decides.

    Attributes:
        needs_positive: whether zero or negative curvature makes its answer meaningless.
        tolerance: on ``‖b − A x‖ / ‖b‖``, of each row; None for the square root of the dtype's precision.
        max_iterations: in all.
        preconditioner: an operator M close to A, of which only the inverse is used; None for the identity.
    """

    needs_positive: ClassVar[bool] = True
    tolerance: float | None
    max_iterations: int
    preconditioner: Invertible | None = None

    @property
    def name(self) -> str:
        """As reports call it."""
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(self).__name__).lower()  # "closed form"
        return name if self.preconditioner is None else f"preconditioned {name}"

    @property
    def nbytes(self) -> int:
        """Memory that keeping it takes."""
        return 0 if self.preconditioner is None else self.preconditioner.nbytes

    def precondition(self, r: Tensor) -> Tensor:
        """M⁻¹ r, ``[R, P]``."""
        return r if self.preconditioner is None else self.preconditioner.inverse(r)

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
