"""The public face of the bilevel core: named tensors in, named tensors out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..errors import TaskShapeError
from ..parallel.ranks import ALONE, Ranks
from .hessians import Curvature
from .inner import InnerKind, InnerMap, Inverse, Proximal
from .item_gradients import ItemGradient, QueryGradient, ResolvedSupportGradient, SupportGradient, TaskGradient
from .layout import Layout, Named, ThetaLayout, Vector
from .loss import PerSampleLoss
from .memory import DEFAULT, Memory, in_bytes
from .objective import Objective
from .solved_tasks import ProblemSettings, SolvedTasks
from .solvers import (
    OnIndefinite,
    OnUnconverged,
    Policy,
)
from .stationarity import Stationarity, stationarity
from .task import Task, check_weights
from .total_hessian import HessianOperator

Weights = Sequence[float] | Tensor | None

ITEM_GRADIENTS: dict[str, ItemGradient] = {
    "task": TaskGradient(),
    "query": QueryGradient(),
    "support": SupportGradient(),
}
REMOVALS: dict[str, ItemGradient] = {"closed-form": ITEM_GRADIENTS["support"], "resolve": ResolvedSupportGradient()}


class BilevelProblem:
    """``min_λ Σ_i c_i L_O^i(λ, θ_i(λ)) + (l2/2) ‖λ‖²`` with ``θ_i(λ) = argmin_θ L_I^i(λ, θ)``.

    L_I is the weighted sum of ``inner_loss`` over a task's support samples plus (proximal/2) ‖θ − λ_θ‖²; L_O that of
    ``outer_loss`` over its query samples (§3 of the paper). Both losses are ``loss(lam, theta, x, y)``, dicts of named
    tensors and one task's samples in, per-sample losses of shape ``(n,)`` out, written with torch operations.

    Args:
        inner_loss, outer_loss: the losses; a :class:`ModelLoss` or a function.
        proximal: δ > 0, the strength of the inner proximal term; or an inner kind such as ``Unrolled(lr, steps)``.
        l2: δ_o ≥ 0, the outer regulariser.
        theta_keys: names of the entries of λ that a task adapts. None for all of them, or for no entry of λ where
            ``theta_start`` says what is adapted instead.
        theta_start: start values of tensors that a task adapts and that are not in λ, by name (CAVIA's context
            parameters: ``{"context": torch.zeros(4)}``). The losses find them in ``theta``.
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
        theta_start: Named | None = None,
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
        self.theta_keys, self.theta_start = theta_keys, theta_start
        self.memory, self.progress, self.ranks = in_bytes(memory), progress, ranks
        self.policy = Policy(on_indefinite, on_unconverged)
        self.kind = (
            proximal
            if isinstance(proximal, InnerKind)
            else Proximal(float(proximal), inner_solver, inner_tolerance, policy=self.policy)
        )

    # ---- pieces -----------------------------------------------------------------------------------------------

    def at(self, lam: Named, tasks: Sequence[Task], weights: Weights = None) -> SolvedTasks:
        """This problem at λ on these tasks, as the flat, batched object that estimators work on."""
        if len(tasks) == 0:
            raise TaskShapeError("there are no tasks")
        settings = self._problem_settings(lam)
        flat, checked = settings.layout.flatten(lam), check_weights(weights, len(tasks))
        self.ranks.require_same("λ, the number of tasks or their weights", (flat, checked))
        return SolvedTasks(settings, flat, tasks, checked)

    def solve_inner(self, lam: Named, task: Task) -> InnerSolution:
        """θ(λ) of one task, with its residual and Jacobian products."""
        solved_tasks = self.at(lam, [task])
        return InnerSolution(solved_tasks.one(0).solution)

    def total_gradient(self, lam: Named, task: Task) -> dict[str, Tensor]:
        """g = ∂_λ L_O + (dθ/dλ)ᵀ ∂_θ L_O of one task (Thm 4.1), a dict like ``lam``."""
        solved_tasks = self.at(lam, [task])
        return solved_tasks.settings.layout.unravel(solved_tasks.one(0).total_gradient[0])

    def total_hessian(
        self, lam: Named, tasks: Sequence[Task], kind: str | Curvature = "gauss-newton", weights: Weights = None
    ) -> HessianOperator:
        """Σ_i c_i D²_λ L_O^i (Def. 4.2) in the given approximation, without the outer l2."""
        return HessianOperator(self.at(lam, tasks, weights), self.l2, kind, self.policy)

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
        return hessian.influence(ITEM_GRADIENTS["task"], k, leave_one_out=leave_one_out)

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
        return self.total_hessian(lam, tasks, kind, weights).influence(ITEM_GRADIENTS["query"], k, j)

    def support_influence(
        self,
        lam: Named,
        tasks: Sequence[Task],
        k: int,
        j: int,
        kind: str | Curvature = "gauss-newton",
        weights: Weights = None,
        *,
        removal: str = "closed-form",
    ) -> dict[str, Tensor]:
        """instance-IF of support sample ``j`` of task ``k``: −(l2·I + H)⁻¹ c_k D_λ P (Thm 4.6–4.8).

        P is the first-order change of the task's outer loss without the sample, so removal moves λ* by **+IF**. With
        ``removal="resolve"`` c_k D_λ P is replaced by the change of the task's total gradient when its inner problem is
        solved anew without the sample: one more inner solve, and much closer on small support sets.
        """
        if removal not in REMOVALS:
            raise ValueError(f"removal must be one of {sorted(REMOVALS)}, not {removal!r}")
        return self.total_hessian(lam, tasks, kind, weights).influence(REMOVALS[removal], k, j)

    def remove(self, lam: Named, influence: Vector, level: str = "task") -> dict[str, Tensor]:
        """λ after removal, to first order: ``λ − IF``, but ``λ + IF`` for a support sample (Prop. 4.8, corrected)."""
        if level not in ITEM_GRADIENTS:
            raise ValueError(f"level must be one of {sorted(ITEM_GRADIENTS)}, not {level!r}")
        layout = Layout(lam)
        return layout.unravel(layout.flatten(lam) + ITEM_GRADIENTS[level].sign * layout.flatten(influence))

    def _adapted(self, layout: Layout) -> Sequence[str]:
        """The entries of λ that a task adapts."""
        if self.theta_keys is not None:
            return self.theta_keys
        return [] if self.theta_start else list(layout.shapes)

    def _problem_settings(self, lam: Named) -> ProblemSettings:
        layout = Layout(lam)
        theta = ThetaLayout(layout, self._adapted(layout), self.theta_start)
        inner = Objective(self.inner_loss, layout, theta)
        outer = Objective(self.outer_loss, layout, theta)
        return ProblemSettings(inner, outer, layout, theta, self.kind, self.memory, self.progress, self.ranks)


class InnerSolution:
    """θ(λ) of one task.

    Attributes:
        theta: named tensors; its keys are a subset of λ's.
        residual: ‖∂_θ L_I(θ)‖ / ‖∂_θ L_I(λ)‖ (proximal), 0 (unrolled).
    """

    def __init__(self, solution: InnerMap) -> None:
        problem = solution.problem
        self._solution, self._lam_layout, self._theta_layout = solution, problem.layout, problem.theta_layout
        self.theta = self._theta_layout.unravel(solution.theta[0])
        self.residual = float(solution.residual[0])

    def jvp(self, v: Vector) -> Vector:
        """(dθ/dλ) v: ``v`` like λ, the result like θ."""
        return self._theta_layout.like(self._solution.jvp(self._lam_layout.flatten(v).unsqueeze(0))[0], v)

    def vjp(self, u: Vector) -> Vector:
        """(dθ/dλ)ᵀ u: ``u`` like θ, the result like λ."""
        return self._lam_layout.like(self._solution.vjp(self._theta_layout.flatten(u).unsqueeze(0))[0], u)
