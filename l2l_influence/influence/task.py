"""The influence of whole training tasks (task-IF, Thm 4.3; scores, Def. 5.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from learn2learn.algorithms.base_learner import BaseLearner
from learn2learn.data import Taskset
from torch import Tensor

from ..bilevel import TotalHessian
from ..bilevel.functional import BatchNormMode
from ..bilevel.hessians import Curvature
from ..bilevel.local import GIB, LocalProblem
from ..bilevel.solvers import LinearSolver, Policy, SolveReport
from ..bilevel.solvers.base import OnUnconverged
from ..bilevel.solvers.neumann import largest_eigenvalue
from ..recording import RecordedTask, recording_of
from .criterion import Reduction
from .data import Split
from .edit import edited_state
from .result import TaskScore, TaskScores
from .study import InnerName, Options, Study

RELATIVE_DAMPING = 1e-2
"""``damping="auto"`` is this times the largest eigenvalue of the total Hessian."""


class TaskInfluence:
    """Which training tasks made the meta-parameters what they are, and which of them hurt.

    A hook on a recorded run: make it before or after the training loop, ask it after. It reads the learner's parameters
    λ* when asked, on a private copy; the learner is never changed.

    Args:
        maml: the recorded learner (:class:`l2l_influence.MAML`).
        tasks: the training :class:`~l2l_influence.TaskDataset`; None for all tasks that were trained on.
        loss: the loss of the loop: a torch loss module or function, or ``loss(outputs, y)`` with one value a sample.
        reduction: ``"mean"`` or ``"sum"``, where it cannot be read off the loss.
        inner: ``"unrolled"``, the loop's own gradient steps; or ``"proximal"``, the paper's inner problem. The first
            agrees better with retraining a learner that takes gradient steps, and is faster.
        proximal: δ of the proximal inner problem; ``"auto"`` is 1/(lr·K) for a mean loss, n/(lr·K) for a sum of n
            samples.
        inner_solver: for the proximal kind: ``"auto"``, ``"gram"``, ``"cg"`` or ``"dense"`` (see
            :class:`~l2l_influence.bilevel.Proximal`).
        inner_tolerance: for the proximal kind: largest relative gradient at which an inner problem counts as solved.
            With ReLU or max-pooling the minimum tends to lie on a kink, where a few per cent are left. What was reached
            stands in the result's notes.
        hessian: kind of total Hessian: ``"sketch"`` (a sampled Gauss–Newton matrix; ``Sketch(draws=…, seed=…)`` to set
            it up, from ``l2l_influence.bilevel``), ``"gauss-newton"`` or ``"gamma"`` (the paper's).
        l2: δ_o, the outer regulariser, for an objective in which the average task has weight 1.
        damping: added to l2 when solving; ``"auto"`` is a hundredth of the largest eigenvalue of the Hessian.
        batch_norm: ``"batch"`` statistics, as MAML trains, or ``"running"``.
        tolerance: relative residual of the outer solve, for the default solver.
        solver: of the outer system, with a tolerance of its own; conjugate gradients, or the exact one of a sketch,
            unless given.
        on_unconverged: ``"raise"`` or ``"warn"`` when the outer solve misses its tolerance.
        memory: bytes that kept inner solutions may take.
        progress: show a progress bar; None for only on a terminal.
    """

    def __init__(
        self,
        maml: BaseLearner,
        tasks: Taskset | None = None,
        loss: Callable[..., Tensor] | None = None,
        *,
        reduction: Reduction | None = None,
        inner: InnerName = "unrolled",
        proximal: float | Literal["auto"] = "auto",
        inner_solver: str = "auto",
        inner_tolerance: float = 0.1,
        hessian: str | Curvature = "sketch",
        l2: float = 1e-3,
        damping: float | Literal["auto"] = "auto",
        batch_norm: BatchNormMode = "batch",
        tolerance: float = 1e-2,
        solver: LinearSolver | None = None,
        on_unconverged: OnUnconverged = "raise",
        memory: int = GIB,
        progress: bool | None = None,
    ) -> None:
        if loss is None:
            raise TypeError("pass the loss of your training loop, for example loss=nn.CrossEntropyLoss()")
        self._maml, self._tasks = maml, tasks
        self._options = Options(
            loss, reduction, inner, proximal, inner_solver, inner_tolerance, l2, batch_norm, memory, progress
        )
        self._kind, self._damping = hessian, damping
        self._solver, self._tolerance = solver, tolerance
        self._on_unconverged = on_unconverged
        self._last: tuple[_State, Study, TotalHessian, float] | None = None

    def scores(
        self,
        test_tasks: Taskset | Sequence[Any],
        num_tasks: int | None = None,
        *,
        split: Split | None = None,
        seed: int = 0,
    ) -> TaskScores:
        """IS_k = −⟨(δ_o I + H)⁻¹ g_test, c_k g_k⟩ for every training task (Def. 5.2 with D_λ, one outer solve in all).

        Positive = harmful: the mean test loss is predicted to fall by the score if the task is removed and λ retrained.

        Args:
            test_tasks: a learn2learn taskset (read without using random numbers of yours), or a sequence of ``(x, y)``
                batches or ``((x, y), (x, y))`` support and query pairs.
            num_tasks: how many of them; all of a sequence, 100 of a taskset unless given.
            split: ``split(x, y) -> ((x, y), (x, y))`` for a taskset's batches; as in training unless given.
            seed: of the tasks drawn from a taskset that has not sampled them yet.
        """
        study, hessian, damping = self._study()
        test = study.test_problem(test_tasks, num_tasks, split, seed)
        gradient, test_loss = _mean_gradient_and_loss(test)
        values, report = self._solve(hessian, gradient.unsqueeze(0), damping)
        found = self._score(study, values)
        notes = self._notes(study, hessian, found.residual, len(test.tasks), damping, report)
        return TaskScores(_rows(study.recorded, found), test_loss, notes)

    def score_matrix(
        self,
        test_tasks: Taskset | Sequence[Any],
        num_tasks: int | None = None,
        *,
        split: Split | None = None,
        seed: int = 0,
    ) -> tuple[list[int], Tensor]:
        """Scores on each test task by itself: the training tasks' ids, and IS of shape ``(training, test)``, float64.

        The arguments are those of :meth:`scores`, whose score is the mean of a row. All test tasks are solved together.
        """
        study, hessian, damping = self._study()
        test = study.test_problem(test_tasks, num_tasks, split, seed)
        gradients = study.local.lam.new_empty(len(test.tasks), study.local.lam.numel())
        for solved in test.solved("test tasks"):
            gradients[solved.batch.index] = solved.weighted_gradient()
        values, _ = self._solve(hessian, gradients, damping)
        return [task.id for task in study.recorded], self._score(study, values).scores

    def influence(self, task: int) -> dict[str, Tensor]:
        """task-IF −(δ_o I + H)⁻¹ c_k g_k (Thm 4.3) of the task with that id, named as ``maml.module``'s parameters."""
        ready = self._study()
        return ready[0].local.settings.layout.unravel(self._group_influence(ready, [task]))

    def remove(self, tasks: Iterable[int]) -> dict[str, Tensor]:
        """The learner's state_dict with λ* − Σ IF_k: what training without these tasks is predicted to give.

        ``maml.load_state_dict(edited)`` applies it; ``maml`` itself is left as it is.
        """
        ready = self._study()
        local = ready[0].local
        edited = local.lam - self._group_influence(ready, list(tasks))
        return edited_state(self._maml, local.settings.layout.unravel(edited))

    def _group_influence(self, ready: tuple[Study, TotalHessian, float], tasks: list[int]) -> Tensor:
        study, hessian, damping = ready
        if len(set(tasks)) < len(tasks) or not tasks:
            raise ValueError(f"name at least one task, each once, got {tasks}")
        gradient = torch.zeros_like(study.local.lam)
        for task in tasks:
            solved = study.local.at(study.position(task))
            gradient += solved.weighted_gradient()[0]
        return -self._solve(hessian, gradient.unsqueeze(0), damping)[0][0]

    def _study(self) -> tuple[Study, TotalHessian, float]:
        """The run at the learner's present parameters; kept until these, or the recording, change."""
        recorded = recording_of(self._maml).training_tasks(self._tasks)
        state = _state_of(self._maml, recorded)
        if self._last is not None and _same(self._last[0], state):
            return self._last[1:]
        study = Study(self._maml, recorded, self._options)
        hessian = TotalHessian(study.local, study.problem.l2, self._kind, Policy(on_unconverged=self._on_unconverged))
        self._last = (state, study, hessian, self._damping_of(hessian, study))
        return self._last[1:]

    def _damping_of(self, hessian: TotalHessian, study: Study) -> float:
        if self._damping != "auto":
            return float(self._damping)
        like = study.local.lam.unsqueeze(0)
        return RELATIVE_DAMPING * float(largest_eigenvalue(hessian.operator, like, 8))

    def _solve(self, hessian: TotalHessian, gradients: Tensor, damping: float) -> tuple[Tensor, SolveReport]:
        """(δ_o I + H)⁻¹ of each row, ``[R, P]``."""
        solution = hessian.solve_rows(
            gradients,
            self._solver,
            damping=damping,
            tolerance=self._tolerance,
        )
        return solution.value, solution.report

    def _score(self, study: Study, values: Tensor) -> _Found:
        """One pass over the training tasks: −⟨value, c_k g_k⟩ for each of the solved query vectors, ``[R, P]``."""
        count, residual = len(study.recorded), 0.0
        scores = torch.zeros(count, len(values), dtype=torch.float64)
        losses = torch.zeros(count, dtype=torch.float64)
        for solved in study.local.solved("scores"):
            scores[solved.batch.index] = -(solved.weighted_gradient() @ values.T).double().cpu()
            losses[solved.batch.index] = solved.outer_loss().double().cpu()
            residual = max(residual, float(solved.solution.residual.max()))
        return _Found(scores, losses, residual)

    def _notes(
        self,
        study: Study,
        hessian: TotalHessian,
        residual: float,
        test_tasks: int,
        damping: float,
        report: SolveReport,
    ) -> list[str]:
        first = study.proximal is None and any(task.first_order for task in study.recorded)
        kind = hessian.operator.note or self._kind
        inner = "the loop's own gradient steps" if study.proximal is None else f"proximal, δ = {study.proximal:.4g}"
        return [
            f"inner: {inner}; largest relative residual {residual:.1e}",
            f"outer: {kind} Hessian, l2 {study.problem.l2:.3g} + damping {damping:.3g}; {report}",
            f"test tasks: {test_tasks}",
            f"recording: {recording_of(self._maml).describe()}",
            *(["the loop took first-order steps; the scores differentiate through them all the same"] if first else []),
        ]


@dataclass(frozen=True)
class _Found:
    """Scores ``[N, R]`` and losses ``[N]`` of the training tasks, and the largest inner residual met on the way."""

    scores: Tensor
    losses: Tensor
    residual: float


def _rows(recorded: Sequence[RecordedTask], found: _Found) -> list[TaskScore]:
    """A row for each training task, most harmful first."""
    score = found.scores[:, 0]
    order = score.argsort(descending=True, stable=True).tolist()
    return [
        TaskScore(rank, task.id, task.key, task.classes, task.trained, float(found.losses[at]), float(score[at]))
        for rank, at in enumerate(order, start=1)
        for task in [recorded[at]]
    ]


def _mean_gradient_and_loss(test: LocalProblem) -> tuple[Tensor, float]:
    """Of the test tasks' outer losses: the mean total gradient, ``[P]``, and the mean, in one pass."""
    gradient, loss = torch.zeros_like(test.lam), 0.0
    for solved in test.solved("test tasks"):
        gradient += solved.weighted_gradient().sum(0)
        loss += float(solved.outer_loss().sum())
    return gradient / len(test.tasks), loss / len(test.tasks)


_State = tuple[list[Tensor], list[tuple[Any, ...]]]


def _state_of(maml: BaseLearner, recorded: Sequence[RecordedTask]) -> _State:
    """All that an answer depends on: the learner's tensors, and how each task was used."""
    tensors = [value.detach().clone() for value in maml.module.state_dict().values()]
    uses = [(t.id, t.trained, t.lr, t.steps, t.support_rows, t.query_rows) for t in recorded]
    return tensors, uses


def _same(a: _State, b: _State) -> bool:
    return a[1] == b[1] and all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True))
