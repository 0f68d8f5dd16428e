"""The public face of the bilevel core: named tensors in, named tensors out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ..errors import TaskShapeError
from .hessians import Curvature, curvature
from .inner import InnerKind, InnerMap, Proximal
from .layout import Layout, Named, Vector
from .local import GIB, LocalProblem, Settings, SolvedBatch
from .loss import PerSampleLoss
from .objective import Objective
from .solvers import LinearOperator, LinearSolver, Solution, enforce, solver_for
from .solvers.base import OnUnconverged
from .task import Task, check_weights

Level = Literal["task", "query", "support"]
Removal = Literal["closed-form", "resolve"]
Weights = Sequence[float] | Tensor | None


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
        inner_solver: how the inner Hessian is inverted: ``"cg"`` or ``"dense"`` for all of it, ``"gram"`` for its
            Gauss–Newton part (exact when outputs are linear in θ), ``"auto"`` to pick by size.
        inner_tolerance: relative residual of inner solves; from the dtype unless given.
        memory: bytes that kept inner solutions may take.
        progress: show a bar for each pass over the tasks; None for only on a terminal.
    """

    def __init__(
        self,
        inner_loss: PerSampleLoss,
        outer_loss: PerSampleLoss,
        proximal: float | InnerKind,
        l2: float,
        theta_keys: Sequence[str] | None = None,
        *,
        inner_solver: str = "cg",
        inner_tolerance: float | None = None,
        memory: int = GIB,
        progress: bool | None = False,
    ) -> None:
        if l2 < 0:
            raise ValueError(f"the outer regulariser l2 must not be negative, got {l2}")
        self.inner_loss, self.outer_loss, self.l2 = inner_loss, outer_loss, float(l2)
        self.theta_keys = theta_keys
        self.memory, self.progress = memory, progress
        self.kind = (
            proximal
            if isinstance(proximal, InnerKind)
            else Proximal(float(proximal), inverse=inner_solver, tolerance=inner_tolerance)
        )

    # ---- pieces -----------------------------------------------------------------------------------------------

    def at(self, lam: Named, tasks: Sequence[Task], weights: Weights = None) -> LocalProblem:
        """This problem at λ on these tasks, as the flat, batched object that estimators work on."""
        if len(tasks) == 0:
            raise TaskShapeError("there are no tasks")
        settings = self._settings(lam)
        return LocalProblem(settings, settings.layout.flatten(lam), tasks, check_weights(weights, len(tasks)))

    def solve_inner(self, lam: Named, task: Task) -> InnerSolution:
        """θ(λ) of one task, with its residual and Jacobian products."""
        local = self.at(lam, [task])
        return InnerSolution(local.at(0).solution, local.settings.layout, local.settings.part)

    def total_gradient(self, lam: Named, task: Task) -> dict[str, Tensor]:
        """g = ∂_λ L_O + (dθ/dλ)ᵀ ∂_θ L_O of one task (Thm 4.1), a dict like ``lam``."""
        local = self.at(lam, [task])
        return local.settings.layout.unravel(local.at(0).total_gradient()[0])

    def total_hessian(
        self, lam: Named, tasks: Sequence[Task], kind: str | Curvature = "gauss-newton", weights: Weights = None
    ) -> TotalHessian:
        """Σ_i c_i D²_λ L_O^i (Def. 4.2) in the given approximation, without the outer l2."""
        return TotalHessian(self.at(lam, tasks, weights), self.l2, kind)

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
        position = _position(k, len(tasks), "task")
        gradient = hessian.seen(position).weighted_gradient()[0]
        return (hessian.without([position]) if leave_one_out else hessian).influence(gradient)

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
        hessian = self.total_hessian(lam, tasks, kind, weights)
        solved = only_query(hessian.seen(_position(k, len(tasks), "task")), j)
        return hessian.influence(solved.weighted_gradient()[0])

    def support_influence(
        self,
        lam: Named,
        tasks: Sequence[Task],
        k: int,
        j: int,
        kind: str | Curvature = "gauss-newton",
        weights: Weights = None,
        *,
        inner: Removal = "closed-form",
    ) -> dict[str, Tensor]:
        """instance-IF of support sample ``j`` of task ``k``: −(l2·I + H)⁻¹ c_k D_λ P (Thm 4.6–4.8).

        P is the first-order change of the task's outer loss without the sample, so removal moves λ* by **+IF**. With
        ``inner="resolve"`` c_k D_λ P is replaced by the change of the task's total gradient when its inner problem is
        solved anew without the sample: one more inner solve, and much closer on small support sets.
        """
        hessian = self.total_hessian(lam, tasks, kind, weights)
        at = hessian.seen(_position(k, len(tasks), "task"))
        sample = _position(j, at.batch.support.w.shape[1], "support sample")
        if inner == "resolve":
            change = hessian.resolved_change(at, [sample])
        elif inner == "closed-form":
            change = -at.batch.weight * at.gradient_by_support(one_hot(at.batch.support.w, sample))[0]
        else:
            raise ValueError(f'inner must be "closed-form" or "resolve", not {inner!r}')
        return hessian.influence(change)

    def remove(self, lam: Named, influence: Vector, level: Level = "task") -> dict[str, Tensor]:
        """λ after removal, to first order: ``λ − IF`` for a task or query sample, ``λ + IF`` for a support sample."""
        signs = {"task": -1.0, "query": -1.0, "support": 1.0}
        if level not in signs:
            raise ValueError(f"level must be one of {sorted(signs)}, not {level!r}")
        layout = Layout(lam)
        return layout.unravel(layout.flatten(lam) + signs[level] * layout.flatten(influence))

    def _settings(self, lam: Named) -> Settings:
        layout = Layout(lam)
        part = layout.keep(self.theta_keys or layout.shapes)
        inner = Objective(self.inner_loss, layout, part)
        outer = Objective(self.outer_loss, layout, part)
        return Settings(inner, outer, layout, part, self.kind, self.memory, self.progress)


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

    def __init__(self, local: LocalProblem, l2: float, kind: str | Curvature) -> None:
        self.local, self.l2, self.kind = local, l2, kind
        self.curvature = curvature(kind)
        self.operator = self.curvature.operator(local)
        self._layout = local.settings.layout
        self._systems: dict[float, LinearOperator] = {}

    def without(self, positions: Sequence[int]) -> TotalHessian:
        """The Hessian of the other tasks."""
        rest = copy.copy(self)
        rest.operator, rest._systems = self.operator.without(positions), {}
        return rest

    def seen(self, position: int) -> SolvedBatch:
        """One task as a batch of one, differentiated as this kind of Hessian does."""
        return self.curvature.seen(self.local.at(position))

    def resolved_change(self, at: SolvedBatch, samples: Sequence[int]) -> Tensor:
        """c_i times the change of a task's total gradient when it is adapted without some support samples, ``[P]``."""
        task = at.batch.tasks[0].without_support(samples)
        anew = self.local.with_tasks([task], at.batch.weight.tolist())
        return (self.curvature.seen(anew.at(0)).weighted_gradient() - at.weighted_gradient())[0]

    def __matmul__(self, v: Vector) -> Vector:
        return self._layout.like(self.operator.matvec(self._layout.flatten(v).unsqueeze(0))[0], v)

    def solve(
        self,
        v: Vector,
        solver: LinearSolver | None = None,
        *,
        damping: float = 0.0,
        tolerance: float | None = None,
        on_unconverged: OnUnconverged = "raise",
    ) -> Solution[Vector]:
        """x with ((l2 + damping)·I + H) x = v, and the report of the solve.

        Args:
            v: the right-hand side.
            solver: conjugate gradients unless given; the ``sketch`` kind is solved exactly through its own columns.
            damping: added to l2.
            tolerance: relative residual for the default solver; from the dtype unless given.
            on_unconverged: ``"raise"`` or ``"warn"``.

        Raises:
            NegativeCurvatureError, NotConvergedError: the solve cannot be trusted.
        """
        rows = self._layout.flatten(v).unsqueeze(0)
        solution = self.solve_rows(rows, solver, damping=damping, tolerance=tolerance, on_unconverged=on_unconverged)
        return Solution(self._layout.like(solution.value[0], v), solution.report)

    def solve_rows(
        self,
        rows: Tensor,
        solver: LinearSolver | None = None,
        *,
        damping: float = 0.0,
        tolerance: float | None = None,
        on_unconverged: OnUnconverged = "raise",
    ) -> Solution[Tensor]:
        """As :meth:`solve`, for right-hand sides ``[R, P]`` at once."""
        shift = self.l2 + damping
        # A sketch's system holds a factorisation, which further right-hand sides can use.
        if shift not in self._systems:
            self._systems[shift] = self.operator.plus_identity(shift)
        system = self._systems[shift]
        solution = (solver or solver_for(system, tolerance or torch.finfo(rows.dtype).eps ** 0.6)).solve(system, rows)
        report = replace(solution.report, shift=shift)
        enforce(report, f"the outer system (l2·I + H) x = v with the {self.kind} Hessian", on_unconverged)
        return Solution(solution.value, report)

    def influence(self, gradient: Tensor) -> dict[str, Tensor]:
        """−(l2·I + H)⁻¹ g for a flat gradient, as named tensors."""
        return self._layout.unravel(-self.solve_rows(gradient.unsqueeze(0)).value[0])


def only_query(solved: SolvedBatch, j: int) -> SolvedBatch:
    """The batch with its outer loss cut down to query sample ``j``, at its own weight."""
    query = solved.batch.query
    chosen = one_hot(query.w, _position(j, query.w.shape[1], "query sample"))
    return solved.with_query(query._replace(w=chosen * query.w))


def one_hot(like: Tensor, position: int) -> Tensor:
    """1 at one sample of each task, 0 at the others, shaped ``like`` ``[B, n]``."""
    chosen = torch.zeros_like(like)
    chosen[:, position] = 1
    return chosen


def _position(k: int, count: int, what: str) -> int:
    if not -count <= k < count:
        raise IndexError(f"there are {count} {what}s, so there is no {what} {k}")
    return k % count
