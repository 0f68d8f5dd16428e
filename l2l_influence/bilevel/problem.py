"""The public face of the bilevel core: named tensors in, named tensors out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..errors import TaskShapeError
from ..parallel.ranks import ALONE, Ranks
from .hessians import Curvature, Groups, curvature
from .inner import InnerKind, InnerMap, Inverse, Proximal
from .item_gradients import Level, QuerySample, ResolvedSupportSample, SupportSample, WholeTask
from .layout import Layout, Named, Vector
from .loss import PerSampleLoss
from .memory import DEFAULT, Memory, in_bytes
from .objective import Objective
from .solved_tasks import LocalProblem, Settings, SolvedBatch
from .solvers import (
    CG,
    BlockCG,
    Invertible,
    LinearOperator,
    LinearSolver,
    OnIndefinite,
    OnUnconverged,
    Policy,
    Solution,
    solver_for,
)
from .stationarity import Stationarity, stationarity
from .task import Task, check_weights

Weights = Sequence[float] | Tensor | None

LEVELS: dict[str, Level] = {"task": WholeTask(), "query": QuerySample(), "support": SupportSample()}
REMOVALS: dict[str, Level] = {"closed-form": LEVELS["support"], "resolve": ResolvedSupportSample()}


class BilevelProblem:
    """``min_λ Σ_i c_i L_O^i(λ, θ_i(λ)) + (l2/2) ‖λ‖²`` with ``θ_i(λ) = argmin_θ L_I^i(λ, θ)``.

    L_I is the weighted sum of ``inner_loss`` over a task's support samples plus (proximal/2) ‖θ − λ_θ‖²; L_O that of
    ``outer_loss`` over its query samples (§3 of the paper). Both losses are ``loss(lam, theta, x, y)``, dicts of named
    tensors and one task's samples in, per-sample losses of shape ``(n,)`` out, written with torch operations.

    Args:
        inner_loss, outer_loss: the losses; a :class:`ModelLoss` or a function.
        proximal: δ > 0, the strength of the inner proximal term; or an inner kind such as ``Unrolled(lr, steps)``.
        l2: δ_o ≥ 0, the outer regulariser.
        theta_keys: which of λ's entries a task adapts; None for all of them.
        inner_solver: how the inner Hessian is inverted, see :class:`Proximal`.
        inner_tolerance: relative residual of inner solves; from the dtype unless given.
        on_indefinite: where a system is not positive definite: ``"raise"`` an error, ``"damp"`` it (with a warning), or
            solve it as it is by ``"minres"``.
        on_unconverged: ``"raise"`` or ``"warn"`` where a solve misses its tolerance.
        memory: that may be used: bytes, or text such as ``"4GiB"``. A half is for what a Hessian keeps, the rest for
            batches of tasks and their kept solutions; test vectors and scores come on top.
        progress: show a bar for each pass over the tasks; None for only on a terminal.
        ranks: processes that share the tasks: each of them asks the same questions, and gets the same answers.
    """

    def __init__(
        self,
        inner_loss: PerSampleLoss,
        outer_loss: PerSampleLoss,
        proximal: float | InnerKind,
        l2: float,
        theta_keys: Sequence[str] | None = None,
        *,
        inner_solver: str | Inverse = "cg",
        inner_tolerance: float | None = None,
        on_indefinite: OnIndefinite = "raise",
        on_unconverged: OnUnconverged = "raise",
        memory: Memory = DEFAULT,
        progress: bool | None = False,
        ranks: Ranks = ALONE,
    ) -> None:
        if l2 < 0:
            raise ValueError(f"the outer regulariser l2 must not be negative, got {l2}")
        self.inner_loss, self.outer_loss, self.l2 = inner_loss, outer_loss, float(l2)
        self.theta_keys = theta_keys
        self.memory, self.progress, self.ranks = in_bytes(memory), progress, ranks
        self.policy = Policy(on_indefinite, on_unconverged)
        self.kind = (
            proximal
            if isinstance(proximal, InnerKind)
            else Proximal(float(proximal), inner_solver, inner_tolerance, policy=self.policy)
        )

    # ---- pieces -----------------------------------------------------------------------------------------------

    def at(self, lam: Named, tasks: Sequence[Task], weights: Weights = None) -> LocalProblem:
        """This problem at λ on these tasks, as the flat, batched object that estimators work on."""
        if len(tasks) == 0:
            raise TaskShapeError("there are no tasks")
        settings = self._settings(lam)
        flat, checked = settings.layout.flatten(lam), check_weights(weights, len(tasks))
        self.ranks.require_same("λ, the number of tasks or their weights", (flat, checked))
        return LocalProblem(settings, flat, tasks, checked)

    def solve_inner(self, lam: Named, task: Task) -> InnerSolution:
        """θ(λ) of one task, with its residual and Jacobian products."""
        local = self.at(lam, [task])
        return InnerSolution(local.at(0).solution, local.settings.layout, local.settings.part)

    def total_gradient(self, lam: Named, task: Task) -> dict[str, Tensor]:
        """g = ∂_λ L_O + (dθ/dλ)ᵀ ∂_θ L_O of one task (Thm 4.1), a dict like ``lam``."""
        local = self.at(lam, [task])
        return local.settings.layout.unravel(local.at(0).total_gradient[0])

    def total_hessian(
        self, lam: Named, tasks: Sequence[Task], kind: str | Curvature = "gauss-newton", weights: Weights = None
    ) -> TotalHessian:
        """Σ_i c_i D²_λ L_O^i (Def. 4.2) in the given approximation, without the outer l2."""
        return TotalHessian(self.at(lam, tasks, weights), self.l2, kind, self.policy)

    def stationarity(self, lam: Named, tasks: Sequence[Task], weights: Weights = None) -> Stationarity:
        """How close ``lam`` is to a minimum: D_λ L_Total, and how large it is beside its terms."""
        return stationarity(self.at(lam, tasks, weights), self.l2)

    # ---- influences -------------------------------------------------------------------------------------------

    def task_influence(
        self,
        lam: Named,
        tasks: Sequence[Task],
        k: int,
        kind: str | Curvature = "gauss-newton",
        weights: Weights = None,
        *,
        leave_one_out: bool = False,
    ) -> dict[str, Tensor]:
        """task-IF of task ``k``: −(l2·I + H)⁻¹ c_k g_k (Thm 4.3), the derivative of λ* by the task's relative weight.

        Removing the task moves λ* by −IF to first order. With ``leave_one_out`` H is that of the other tasks, which is
        closer to removal where the problem is convex, and may be indefinite where it is not.
        """
        hessian = self.total_hessian(lam, tasks, kind, weights)
        return hessian.influence(LEVELS["task"], k, leave_one_out=leave_one_out)

    def query_influence(
        self,
        lam: Named,
        tasks: Sequence[Task],
        k: int,
        j: int,
        kind: str | Curvature = "gauss-newton",
        weights: Weights = None,
    ) -> dict[str, Tensor]:
        """instance-IF of query sample ``j`` of task ``k`` (Thm 4.5 with the total derivative, as Alg. 5 has it)."""
        return self.total_hessian(lam, tasks, kind, weights).influence(LEVELS["query"], k, j)

    def support_influence(
        self,
        lam: Named,
        tasks: Sequence[Task],
        k: int,
        j: int,
        kind: str | Curvature = "gauss-newton",
        weights: Weights = None,
        *,
        inner: str = "closed-form",
    ) -> dict[str, Tensor]:
        """instance-IF of support sample ``j`` of task ``k``: −(l2·I + H)⁻¹ c_k D_λ P (Thm 4.6–4.8).

        P is the first-order change of the task's outer loss without the sample, so removal moves λ* by **+IF**. With
        ``inner="resolve"`` c_k D_λ P is replaced by the change of the task's total gradient when its inner problem is
        solved anew without the sample: one more inner solve, and much closer on small support sets.
        """
        if inner not in REMOVALS:
            raise ValueError(f"inner must be one of {sorted(REMOVALS)}, not {inner!r}")
        return self.total_hessian(lam, tasks, kind, weights).influence(REMOVALS[inner], k, j)

    def remove(self, lam: Named, influence: Vector, level: str = "task") -> dict[str, Tensor]:
        """λ after removal, to first order: ``λ − IF``, but ``λ + IF`` for a support sample (Prop. 4.8, corrected)."""
        if level not in LEVELS:
            raise ValueError(f"level must be one of {sorted(LEVELS)}, not {level!r}")
        layout = Layout(lam)
        return layout.unravel(layout.flatten(lam) + LEVELS[level].sign * layout.flatten(influence))

    def _settings(self, lam: Named) -> Settings:
        layout = Layout(lam)
        part = layout.keep(self.theta_keys or layout.shapes)
        inner = Objective(self.inner_loss, layout, part)
        outer = Objective(self.outer_loss, layout, part)
        return Settings(inner, outer, layout, part, self.kind, self.memory, self.progress, self.ranks)


class InnerSolution:
    """θ(λ) of one task.

    Attributes:
        theta: named tensors; its keys are a subset of λ's.
        residual: ‖∂_θ L_I(θ)‖ / ‖∂_θ L_I(λ)‖ (proximal), 0 (unrolled).
    """

    def __init__(self, solution: InnerMap, layout: Layout, part: Layout) -> None:
        self._solution, self._layout, self._part = solution, layout, part
        self.theta = part.unravel(solution.theta[0])
        self.residual = float(solution.residual[0])

    def jvp(self, v: Vector) -> Vector:
        """(dθ/dλ) v: ``v`` like λ, the result like θ."""
        return self._part.like(self._solution.jvp(self._layout.flatten(v).unsqueeze(0))[0], v)

    def vjp(self, u: Vector) -> Vector:
        """(dθ/dλ)ᵀ u: ``u`` like θ, the result like λ."""
        return self._layout.like(self._solution.vjp(self._part.flatten(u).unsqueeze(0))[0], u)


class TotalHessian:
    """H as an operator: ``H @ v``, and ``H.solve(v)`` for (l2·I + H) x = v. Vectors are dicts like λ, or flat."""

    def __init__(self, local: LocalProblem, l2: float, kind: str | Curvature, policy: Policy | None = None) -> None:
        self.local, self.l2, self.kind = local, l2, kind
        self.policy = policy or Policy()
        self.curvature = curvature(kind)
        self.operator = self.curvature.operator(local)
        self._layout = local.settings.layout
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
            solver: conjugate gradients unless given; the ``sketch`` kind is solved exactly through its own columns.
            damping: added to l2.
            tolerance: relative residual for the default solver; from the dtype unless given.

        Raises:
            NegativeCurvatureError, NotConvergedError: the solve cannot be trusted.
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
        without: Groups | None = None,
    ) -> Solution[Tensor]:
        """As :meth:`solve`, for right-hand sides ``[R, P]`` at once.

        Args:
            without: for each row, positions of tasks whose part is left out of H (leave-one-out correction).
        """
        tolerance, shift = tolerance or torch.finfo(rows.dtype).eps ** 0.6, self.l2 + damping
        if without is None:
            system, default = self._system(shift), self._solver(shift, tolerance)
        else:
            system = self.operator.without(without).plus_identity(shift)
            # The whole Hessian's inverse, where it is known, leaves little to do: a few tasks make the difference.
            default = CG(tolerance, preconditioner=self._preconditioner(shift))
        what = f"the outer system (l2·I + H) x = v with the {self.kind} Hessian"
        return self.policy.solve(system, solver or default, rows, what)

    def seen(self, position: int) -> SolvedBatch:
        """One task as a batch of one, differentiated as this kind of Hessian does."""
        return self.curvature.seen(self.local.at(position))

    def influence(self, level: Level, k: int, j: int = 0, *, leave_one_out: bool = False) -> dict[str, Tensor]:
        """The influence function of item ``j`` of task ``k``, as named tensors."""
        position = _position(k, len(self.local.tasks), "task")
        at = self.seen(position)
        pull = level.pull(at, _position(j, level.count(at), level.what))
        solution = self.solve_rows(pull, without=[[position]] if leave_one_out else None)
        return self._layout.unravel(level.influence(solution.value[0]))

    def _system(self, shift: float) -> LinearOperator:
        """``H + shift·I``, kept: a sketch's holds a factorisation, which further right-hand sides can use."""
        if shift not in self._systems:
            self._systems[shift] = self.operator.plus_identity(shift)
        return self._systems[shift]

    def _solver(self, shift: float, tolerance: float) -> LinearSolver:
        """Of systems with all of ``H + shift·I``."""
        if self._near is None:
            return solver_for(self._system(shift), tolerance)
        return BlockCG(tolerance, preconditioner=self._preconditioner(shift))

    def _preconditioner(self, shift: float) -> Invertible | None:
        """``H + shift·I``, or what is near to it, if that knows its own inverse."""
        system = self._system(shift)
        if self._near is not None and shift > 0:
            system = self._near._system(self._near.operator.acts_as(shift))
        return system if isinstance(system, Invertible) else None

    def largest_eigenvalue(self, iterations: int) -> float:
        """An estimate of H's, from below; of what is near to H, where products with that cost next to nothing."""
        operator = self.operator if self._near is None else self._near.operator
        return float(operator.largest_eigenvalue(self.local.lam.unsqueeze(0), iterations))

    @cached_property
    def _near(self) -> TotalHessian | None:
        near = self.curvature.near
        return None if near is None else TotalHessian(self.local, self.l2, near, self.policy)


def _position(k: int, count: int, what: str) -> int:
    if not -count <= k < count:
        raise IndexError(f"there is no {what} {k}: there are {count}")
    return k % count
