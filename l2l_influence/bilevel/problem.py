""":class:`BilevelProblem`, the public interface of this package: named tensors in, named tensors out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..errors import TaskShapeError
from ..parallel.ranks import ALONE, Ranks
from .execution import ExecutionChoice
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
"""The gradient of each kind of item, by the name that ``BilevelProblem.remove(level=...)`` takes."""
REMOVALS: dict[str, ItemGradient] = {"closed-form": ITEM_GRADIENTS["support"], "resolve": ResolvedSupportGradient()}
"""How the removal of a support sample is estimated, by the name that ``support_influence(removal=...)`` takes."""


class BilevelProblem:
    """A bilevel problem: meta-parameters λ, and tasks that adapt parameters θ_i(λ) to their support sets.

    λ minimises ``L_Total(λ) = Σ_i c_i L_O^i(λ, θ_i(λ)) + (l2/2) ‖λ‖²``, and each task ``θ_i(λ) = argmin_θ L_I^i(λ, θ)``
    (§3 of the paper). L_O is the weighted sum of ``outer_loss`` over the task's query samples; L_I is that of
    ``inner_loss`` over its support samples plus the proximal term (δ/2) ‖θ − θ_0(λ)‖², where θ_0 is the start of θ: the
    adapted entries of λ. With ``Unrolled(lr, steps)`` in place of δ, θ_i(λ) is the end of gradient steps (MAML).

    Both losses have the signature ``loss(lam, theta, x, y)``: two dicts of named tensors and the samples of one task
    in, one loss per sample out, shape ``(n,)``, computed by torch operations. Use ``{**lam, **theta}`` for a model's
    parameters.

    Args:
        inner_loss, outer_loss: the losses: functions, or a :class:`ModelLoss`.
        proximal: δ > 0, the strength of the inner proximal term; or an inner kind such as ``Unrolled(lr, steps)``.
        l2: δ_o ≥ 0, the strength of the outer regulariser.
        theta_keys: names of the entries of λ that a task adapts. None means all of them, or no entry of λ if
            ``theta_start`` is given.
        theta_start: start values of adapted tensors that are not in λ, by name (CAVIA's context parameters:
            ``{"context": torch.zeros(4)}``). The losses find them in ``theta``.
        inner_solver: how the inner Hessian is inverted, see :class:`Proximal`.
        inner_tolerance: relative residual of inner solves; chosen by the dtype if None.
        on_indefinite: what to do if a linear system is not positive definite: ``"raise"`` an error, ``"damp"`` it (with
            a warning), or solve it as it is by ``"minres"``.
        on_unconverged: ``"raise"`` or ``"warn"`` if a solve misses its tolerance.
        memory: memory budget, in bytes or as text such as ``"4GiB"``. Half of it is for what a Hessian keeps, the rest
            for batches of tasks and their cached inner solutions. Test vectors and scores are not counted.
        progress: whether to show a progress bar for each pass over the tasks; None means only on a terminal.
        ranks: the processes that share the tasks. All of them must ask the same questions, and get the same answers.
        execution: ``"mapped"``: the tasks of a batch are computed all at once, by ``torch.func``. ``"one-by-one"``: in
            a loop, by plain autograd, for models that cannot be mapped (recurrent layers, control flow that depends on
            data, random numbers). ``"auto"``: mapped, if that gives the derivatives of plain autograd for the first
            task; otherwise one by one, and ``execution_note`` says why.

    Raises:
        ValueError: δ is not positive, l2 is negative, or a setting is unknown.

    >>> import torch
    >>> def loss(lam, theta, x, y):
    ...     return (x @ {**lam, **theta}["w"] - y) ** 2 / 2
    >>> _ = torch.manual_seed(0)
    >>> def data(rows):
    ...     x = torch.randn(rows, 2, dtype=torch.float64)
    ...     return x, x.sum(1)
    >>> tasks = [Task(support=data(5), query=data(5)) for _ in range(3)]
    >>> lam = {"w": torch.zeros(2, dtype=torch.float64)}
    >>> problem = BilevelProblem(loss, loss, proximal=2.0, l2=0.1)
    >>> influence = problem.task_influence(lam, tasks, k=1, kind="exact")
    >>> problem.remove(lam, influence)["w"].shape
    torch.Size([2])

    A task may also adapt parameters that are not in λ, here a shift of its inputs:

    >>> def shifted(lam, theta, x, y):
    ...     return ((x + theta["context"]) @ lam["w"] - y) ** 2 / 2
    >>> problem = BilevelProblem(shifted, shifted, proximal=2.0, l2=0.1, theta_start={"context": torch.zeros(2)})
    >>> list(problem.solve_inner(lam, tasks[0]).theta)
    ['context']
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
        execution: str = "auto",
    ) -> None:
        if l2 < 0:
            raise ValueError(f"l2, the strength of the outer regulariser, must be 0 or more, got {l2}")
        self.inner_loss, self.outer_loss, self.l2 = inner_loss, outer_loss, float(l2)
        self.theta_keys, self.theta_start = theta_keys, theta_start
        self.memory, self.progress, self.ranks = in_bytes(memory), progress, ranks
        self.policy = Policy(on_indefinite, on_unconverged)
        self.execution = ExecutionChoice(execution)
        self.kind = (
            proximal
            if isinstance(proximal, InnerKind)
            else Proximal(float(proximal), inner_solver, inner_tolerance, policy=self.policy)
        )

    @property
    def execution_note(self) -> str:
        """Why tasks are computed one by one, once a task was solved; empty if they are mapped, or if that was set."""
        return self.execution.note

    # ---- derivatives ------------------------------------------------------------------------------------------

    def at(self, lam: Named, tasks: Sequence[Task], weights: Weights = None) -> SolvedTasks:
        """The tasks of this problem, to be solved at λ: the flat, batched object that Hessians and estimators work on.

        Args:
            lam: named tensors.
            tasks: any sequence of tasks; each is read when it is needed.
            weights: the task weights c_i; 1 each if None.

        Raises:
            TaskShapeError: there are no tasks, or ``weights`` has another length.
        """
        if len(tasks) == 0:
            raise TaskShapeError("the sequence of tasks is empty: pass at least one Task")
        settings = self._problem_settings(lam)
        flat, checked = settings.layout.flatten(lam), check_weights(weights, len(tasks))
        self.ranks.require_same("λ, the number of tasks or their weights", (flat, checked))
        return SolvedTasks(settings, flat, tasks, checked)

    def solve_inner(self, lam: Named, task: Task) -> InnerSolution:
        """θ_i(λ) of one task, with its residual and its Jacobian-vector products.

        >>> import torch
        >>> loss = lambda lam, theta, x, y: (theta["w"] * x - y) ** 2 / 2
        >>> x, y = torch.ones(1), torch.full((1,), 3.0)
        >>> problem = BilevelProblem(loss, loss, proximal=1.0, l2=0.0)
        >>> solution = problem.solve_inner({"w": torch.zeros(1)}, Task((x, y), (x, y)))
        >>> round(float(solution.theta["w"]), 3)  # argmin (θ − 3)²/2 + θ²/2
        1.5
        >>> round(float(solution.jvp(torch.ones(1))), 3)  # dθ/dλ = δ / (δ + 1)
        0.5
        """
        solved_tasks = self.at(lam, [task])
        return InnerSolution(solved_tasks.one(0).solution)

    def total_gradient(self, lam: Named, task: Task) -> dict[str, Tensor]:
        """g_i = ∂_λ L_O + (dθ/dλ)ᵀ ∂_θ L_O, the total gradient of one task's outer loss (Thm 4.1).

        Returns a dict like ``lam``.

        >>> import torch
        >>> loss = lambda lam, theta, x, y: (theta["w"] * x - y) ** 2 / 2
        >>> x, y = torch.ones(1), torch.full((1,), 3.0)
        >>> problem = BilevelProblem(loss, loss, proximal=1.0, l2=0.0)
        >>> g = problem.total_gradient({"w": torch.zeros(1)}, Task((x, y), (x, y)))
        >>> round(float(g["w"]), 3)  # dθ/dλ (θ − 3) = 0.5 · (1.5 − 3)
        -0.75
        """
        solved_tasks = self.at(lam, [task])
        return solved_tasks.settings.layout.unravel(solved_tasks.one(0).total_gradient[0])

    def total_hessian(
        self, lam: Named, tasks: Sequence[Task], kind: str | Curvature = "gauss-newton", weights: Weights = None
    ) -> HessianOperator:
        """H = Σ_i c_i D²_λ L_O^i (Def. 4.2) as an operator, without the outer regulariser l2.

        ``H @ v`` is a Hessian-vector product (HVP), and ``H.solve(v)`` an inverse-Hessian-vector product (iHVP) with
        l2·I + H.

        Args:
            lam, tasks, weights: as for :meth:`at`.
            kind: the approximation: ``"exact"``, ``"hessian"``, ``"gauss-newton"``, ``"sketch"``, ``"gamma"``,
                ``"direct"``, ``"direct-first-order"`` or ``"identity"``; or an object with settings such as
                ``Sketch(samples=8)``.

        >>> import torch
        >>> loss = lambda lam, theta, x, y: (theta["w"] * x - y) ** 2 / 2
        >>> task = Task((torch.ones(1), torch.ones(1)), (torch.ones(1), torch.ones(1)))
        >>> problem = BilevelProblem(loss, loss, proximal=1.0, l2=0.75)
        >>> H = problem.total_hessian({"w": torch.zeros(1)}, [task], kind="exact")
        >>> H @ torch.ones(1)  # (dθ/dλ)² = 1/4
        tensor([0.2500])
        >>> H.solve(torch.ones(1)).value  # 1 / (0.75 + 0.25)
        tensor([1.])
        """
        return HessianOperator(self.at(lam, tasks, weights), self.l2, kind, self.policy)

    def stationarity(self, lam: Named, tasks: Sequence[Task], weights: Weights = None) -> Stationarity:
        """Measure how close ``lam`` is to a minimum: the norm of D_λ L_Total, absolute and relative to its terms."""
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

        Removing the task moves λ* by −IF to first order, see :meth:`remove`.

        Args:
            lam, tasks, kind, weights: as for :meth:`total_hessian`; ``lam`` is λ*, a minimum of L_Total or close to
                one.
            k: position of the task.
            leave_one_out: use the Hessian of the other tasks. This is closer to the effect of removal if the problem is
                convex; otherwise that Hessian may be indefinite.

        Raises:
            IndexError: there is no task ``k``.
            NegativeCurvatureError, NotConvergedError: the linear system could not be solved.
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
        """instance-IF of query sample ``j`` of task ``k``, with the total derivative (Thm 4.5 as Alg. 5 has it).

        Removing the sample moves λ* by −IF to first order. Arguments and errors are those of :meth:`task_influence`.
        """
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

        P is the first-order change of the task's outer loss when the sample is removed, so removal moves λ* by **+IF**.

        Args:
            removal: ``"closed-form"``, the paper's formula; or ``"resolve"``: replace c_k D_λ P by the change of the
                task's total gradient when its inner problem is solved again without the sample. This takes one more
                inner solve, and is much more accurate on small support sets.

        Other arguments and errors are those of :meth:`task_influence`.
        """
        if removal not in REMOVALS:
            raise ValueError(f"removal must be one of {sorted(REMOVALS)}, not {removal!r}")
        return self.total_hessian(lam, tasks, kind, weights).influence(REMOVALS[removal], k, j)

    def remove(self, lam: Named, influence: Vector, level: str = "task") -> dict[str, Tensor]:
        """λ after removal of an item, to first order: ``λ − IF``, or ``λ + IF`` for a support sample (Prop. 4.8,
        corrected).

        Args:
            lam: λ*, named tensors.
            influence: the influence function of the item, a dict like ``lam`` or a flat vector.
            level: the kind of item: ``"task"``, ``"query"`` or ``"support"``.

        >>> import torch
        >>> problem = BilevelProblem(None, None, proximal=1.0, l2=0.0)
        >>> lam, influence = {"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 2.0])}
        >>> problem.remove(lam, influence, level="task")
        {'w': tensor([-1., -2.])}
        >>> problem.remove(lam, influence, level="support")
        {'w': tensor([1., 2.])}
        """
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
        inner = Objective(self.inner_loss, layout, theta, self.execution)
        outer = Objective(self.outer_loss, layout, theta, self.execution)
        return ProblemSettings(
            inner, outer, layout, theta, self.kind, self.memory, self.progress, self.ranks, self.execution
        )


class InnerSolution:
    """θ_i(λ) of one task, and products with its Jacobian dθ/dλ.

    Attributes:
        theta: θ_i(λ), named tensors.
        residual: ‖∂_θ L_I(θ)‖ / ‖∂_θ L_I(θ_0)‖ (proximal); 0 for unrolled steps.
    """

    def __init__(self, solution: InnerMap) -> None:
        problem = solution.problem
        self._solution, self._lam_layout, self._theta_layout = solution, problem.layout, problem.theta_layout
        self.theta = self._theta_layout.unravel(solution.theta[0])
        self.residual = float(solution.residual[0])

    def jvp(self, v: Vector) -> Vector:
        """(dθ/dλ) v, a Jacobian-vector product: ``v`` like λ, the result like θ."""
        return self._theta_layout.like(self._solution.jvp(self._lam_layout.flatten(v).unsqueeze(0))[0], v)

    def vjp(self, u: Vector) -> Vector:
        """(dθ/dλ)ᵀ u, a vector-Jacobian product: ``u`` like θ, the result like λ."""
        return self._lam_layout.like(self._solution.vjp(self._theta_layout.flatten(u).unsqueeze(0))[0], u)
