"""The total Hessian H of a bilevel problem as an operator: products, solves, and influence functions."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from .hessians import Curvature, Subsets, curvature
from .item_gradients import ItemGradient
from .layout import Vector
from .solved_tasks import SolvedBatch, SolvedTasks
from .solvers import (
    CG,
    BlockCG,
    Invertible,
    LinearOperator,
    LinearSolver,
    Policy,
    Solution,
    solver_for,
)


class HessianOperator:
    """The total Hessian H: ``H @ v`` is a product (HVP), ``H.solve(v)`` solves (l2·I + H) x = v (iHVP).

    Vectors are dicts like λ or flat tensors; results have the same form.

    Args:
        solved_tasks: the tasks, solved at λ.
        l2: strength of the outer regulariser, added to H in solves.
        kind: name of the approximation, or an object with settings such as ``Sketch(samples=8)``.
        policy: what to do if a solve cannot be trusted; raise an error if None.

    Raises:
        ValueError: there is no such kind.
    """

    def __init__(
        self, solved_tasks: SolvedTasks, l2: float, kind: str | Curvature, policy: Policy | None = None
    ) -> None:
        self.solved_tasks, self.l2, self.kind = solved_tasks, l2, kind
        self.policy = policy or Policy()
        self.curvature = curvature(kind)
        self.operator = self.curvature.operator(solved_tasks)
        self._layout = solved_tasks.settings.layout
        self._systems: dict[float, LinearOperator] = {}

    def __matmul__(self, v: Vector) -> Vector:
        return self._layout.like(self.operator.matvec(self._layout.flatten(v).unsqueeze(0))[0], v)

    def solve(
        self,
        v: Vector,
        solver: LinearSolver | None = None,
        *,
        damping: float = 0.0,
        tolerance: float | None = None,
    ) -> Solution[Vector]:
        """x with ((l2 + damping)·I + H) x = v, and the report of the solve.

        Args:
            v: the right-hand side.
            solver: conjugate gradients if None; the ``"sketch"`` kind is solved exactly through its low-rank factors.
            damping: added to l2.
            tolerance: relative residual for the default solver; chosen by the dtype if None.

        Raises:
            NegativeCurvatureError, NotConvergedError: the solution cannot be trusted.
        """
        rows = self._layout.flatten(v).unsqueeze(0)
        solution = self.solve_rows(rows, solver, damping=damping, tolerance=tolerance)
        return Solution(self._layout.like(solution.value[0], v), solution.report)

    def solve_rows(
        self,
        rows: Tensor,
        solver: LinearSolver | None = None,
        *,
        damping: float = 0.0,
        tolerance: float | None = None,
        without: Subsets | None = None,
    ) -> Solution[Tensor]:
        """As :meth:`solve`, for many right-hand sides ``[R, P]`` at once.

        Args:
            without: for each row, positions of tasks whose part is left out of H (leave-one-out correction).
        """
        tolerance, shift = tolerance or torch.finfo(rows.dtype).eps ** 0.6, self.l2 + damping
        if without is None:
            system, default = self._system(shift), self._solver(shift, tolerance)
        else:
            system = self.operator.without(without).plus_identity(shift)
            # Only a few tasks make the difference to the full Hessian: its inverse, if known, is a good preconditioner.
            default = CG(tolerance, preconditioner=self._preconditioner(shift))
        what = f"the outer system (l2·I + H) x = v with the {self.kind} Hessian"
        return self.policy.solve(system, solver or default, rows, what)

    def linearised(self, position: int) -> SolvedBatch:
        """One task as a batch of one, differentiated as this kind of Hessian does."""
        return self.curvature.linearised(self.solved_tasks.one(position))

    def influence(self, item: ItemGradient, k: int, j: int = 0, *, leave_one_out: bool = False) -> dict[str, Tensor]:
        """The influence function of item ``j`` of task ``k``, as named tensors.

        Raises:
            IndexError: there is no such task or item.
        """
        position = _position(k, len(self.solved_tasks.tasks), "task")
        solved = self.linearised(position)
        gradient = item.gradient(solved, _position(j, item.count(solved), item.item_name))
        solution = self.solve_rows(gradient, without=[[position]] if leave_one_out else None)
        return self._layout.unravel(item.influence(solution.value[0]))

    def _system(self, shift: float) -> LinearOperator:
        """``H + shift·I``, cached: that of a sketch holds a factorisation, which serves further right-hand sides."""
        if shift not in self._systems:
            self._systems[shift] = self.operator.plus_identity(shift)
        return self._systems[shift]

    def _solver(self, shift: float, tolerance: float) -> LinearSolver:
        """The default solver for systems with all of ``H + shift·I``."""
        if self._sketched is None:
            return solver_for(self._system(shift), tolerance)
        return BlockCG(tolerance, preconditioner=self._preconditioner(shift))

    def _preconditioner(self, shift: float) -> Invertible | None:
        """``H + shift·I``, or an approximation of it, if that knows its own inverse."""
        system = self._system(shift)
        if self._sketched is not None and shift > 0:
            system = self._sketched._system(self._sketched.operator.effective_damping(shift))
        return system if isinstance(system, Invertible) else None

    def largest_eigenvalue(self, iterations: int) -> float:
        """An estimate from below of the largest eigenvalue of H; of its preconditioner if there is one, whose products
        are cheap."""
        operator = self.operator if self._sketched is None else self._sketched.operator
        return float(operator.largest_eigenvalue(self.solved_tasks.lam.unsqueeze(0), iterations))

    @cached_property
    def _sketched(self) -> HessianOperator | None:
        preconditioner = self.curvature.preconditioner
        if preconditioner is None:
            return None
        return HessianOperator(self.solved_tasks, self.l2, preconditioner, self.policy)


def _position(k: int, count: int, what: str) -> int:
    """``k`` from the start, if it counts from the end."""
    if not -count <= k < count:
        raise IndexError(f"{what} {k} is out of range: there are {count} (0–{count - 1})")
    return k % count
