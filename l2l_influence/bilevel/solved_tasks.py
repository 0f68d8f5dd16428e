"""The tasks of a bilevel problem, with θ_i solved at one λ batch by batch. Hessians and estimators build on this."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..parallel.ranks import ALONE, Ranks
from .execution import ExecutionChoice, Found
from .factored import Theta
from .inner import InnerKind, InnerMap, InnerProblem, NoInner, SecondDerivative
from .layout import Layout, ThetaLayout
from .memory import DEFAULT, RECYCLED, allocated_bytes
from .objective import Joint, Objective
from .probe import Case, probe
from .task import Samples, Task, TaskBatch, equal_shape_batches, stack

VECTORS = 8
"""Vectors of λ's size that a solver needs per right-hand side; a cached inner solution takes no more than that."""


DERIVATIVES = 3
"""Derivatives of L_O that are cached with a solution: by λ, by θ, and total."""


@dataclass(frozen=True)
class ProblemSettings:
    """The settings of a bilevel problem: all that :class:`SolvedTasks` needs besides λ and the tasks.

    Attributes:
        inner, outer: the loss sums L_I (without its proximal term) and L_O.
        layout, theta_layout: layouts of λ and of θ.
        kind: how θ_i(λ) is defined.
        memory: memory budget in bytes: half for what a Hessian keeps, a quarter each for cached inner solutions and for
            the work on one batch.
        progress: whether a pass over the tasks shows a progress bar; None means only on a terminal.
        ranks: the processes that share the tasks.
        execution: how derivatives of tasks are computed; the choice that ``inner`` and ``outer`` share.
    """

    inner: Objective
    outer: Objective
    layout: Layout
    theta_layout: ThetaLayout
    kind: InnerKind
    memory: int = DEFAULT
    progress: bool | None = False
    ranks: Ranks = ALONE
    execution: ExecutionChoice = field(default_factory=ExecutionChoice)

    @property
    def batch_bytes(self) -> int:
        """Bytes that cached inner solutions may take, and as many for the work on one batch."""
        return self.memory // 4

    @property
    def hessian_bytes(self) -> int:
        """Bytes that a Hessian may keep."""
        return self.memory // 2

    def right_hand_sides_at_once(self, lam: Tensor) -> int:
        """How many right-hand sides of λ's size a solver may work on together."""
        return max(1, self.batch_bytes // (VECTORS * lam.nbytes))


@dataclass(frozen=True)
class SolvedBatch:
    """A batch of tasks with θ_i(λ) as ``kind`` defines it, and the chain rule through it: Z = [I; dθ/dλ].

    Attributes:
        batch: the tasks.
        solution: θ_i as a function of λ, and its derivatives.
        kind: the inner kind that found the solution.
        lam: λ, ``[P]``.
        outer: the outer loss sum L_O.
        microbatch_size: for how many tasks vectors of λ's size may be computed at a time.
    """

    batch: TaskBatch
    solution: InnerMap
    kind: InnerKind
    lam: Tensor
    outer: Objective
    microbatch_size: int

    @property
    def microbatches(self) -> list[SolvedBatch]:
        """The same tasks in batches of at most ``microbatch_size``."""
        return self._split or [self]

    @cached_property
    def _split(self) -> list[SolvedBatch]:
        """Empty if the batch is small enough: a batch that referred to itself would stay in memory."""
        count, size = len(self.batch.index), self.microbatch_size
        starts = range(0, count, size) if count > size else range(0)
        return [self._select(slice(start, start + size)) for start in starts]

    def _select(self, span: slice) -> SolvedBatch:
        solution = self.kind.solve(self.solution.problem.select(span))
        return replace(self, batch=self.batch.select(span), solution=solution)

    def with_query(self, query: Samples) -> SolvedBatch:
        """The same inner solutions with other query samples, or other weights of them."""
        return replace(self, batch=replace(self.batch, query=query))

    def with_support(self, support: Samples) -> SolvedBatch:
        """The same tasks adapted again to other support samples, or other weights of them."""
        problem = replace(self.solution.problem, samples=support, start=self.solution.theta)
        return replace(self, batch=replace(self.batch, support=support), solution=self.kind.solve(problem))

    @cached_property
    def outer_gradient(self) -> tuple[Tensor, Tensor]:
        """``(∂_λ L_O, ∂_θ L_O)`` at θ_i(λ), ``[B, P]`` and ``[B, Q]``."""
        return self.outer.gradient(self.lam, self.solution.theta, self.batch.query)

    @cached_property
    def gradient_and_loss(self) -> tuple[Tensor, Tensor]:
        """g_i = ∂_λ L_O + (dθ/dλ)ᵀ ∂_θ L_O (Thm 4.1), ``[B, P]``, and L_O, ``[B]``; without the task weights c_i."""
        return self.solution.total(self.outer.value_of_one, self.batch.query)

    @property
    def total_gradient(self) -> Tensor:
        """g_i, ``[B, P]``, without the task weights c_i."""
        return self.gradient_and_loss[0]

    def weighted_gradient(self) -> Tensor:
        """c_i g_i, ``[B, P]``. Their sum over tasks, plus δ_o λ, is the gradient of L_Total."""
        return self.batch.weight.unsqueeze(-1) * self.total_gradient

    def outer_loss(self) -> Tensor:
        """L_O, ``[B]``; the value computed with the gradient is reused if there is one."""
        if "gradient_and_loss" in vars(self):
            return self.gradient_and_loss[1]
        return self.outer.value(self.lam, self.solution.point, self.batch.query)

    def query_losses(self) -> Tensor:
        """ℓ_j of each query sample after adaptation, ``[B, n_q]``, without its weight."""
        return self.outer.losses(self.lam, self.solution.point, self.batch.query)[:, : self.batch.query.rows]

    def support_losses(self) -> Tensor:
        """ℓ_j of each support sample after adaptation, ``[B, n_s]``, without its weight."""
        losses = self.solution.problem.objective.losses(self.lam, self.solution.point, self.batch.support)
        return losses[:, : self.batch.support.rows]

    def expanded(self, v: Tensor) -> Tensor:
        """One vector as a row for each task: ``[P] -> [B, P]``."""
        return v.expand(len(self.batch.index), -1)

    def push_forward(self, v: Tensor) -> Tensor:
        """The θ part of Z v, (dθ/dλ) v: ``[B, P] -> [B, Q]``."""
        return self.solution.jvp(v)

    def pull_back(self, by_lam: Tensor, by_theta: Tensor) -> Tensor:
        """Zᵀ (by_λ, by_θ): ``[B, P]``, ``[B, Q] -> [B, P]``."""
        return by_lam + self.solution.vjp(by_theta)

    @cached_property
    def second(self) -> SecondDerivative:
        """The Hessian of L_O(λ, θ_i(λ, w)) by λ and the support weights w, as products."""
        return self.solution.second(self.outer, self.batch.query)

    def hessian(self, v: Tensor) -> Tensor:
        """Zᵀ ∇²L_O Z v, which omits the second derivatives of θ_i(λ): ``[B, P] -> [B, P]``."""
        query = self.batch.query
        along = Joint(v, self.push_forward(v), torch.zeros_like(query.w))
        curved = self.outer.hessian(self.lam, self.solution.theta, query, along)
        return self.pull_back(curved.lam, curved.theta)

    def query_slopes(self, v: Tensor) -> Tensor:
        """⟨D_λ w_j ℓ_j, v⟩ (Thm 4.5) of each query sample: ``[P] -> [B, n_q]``. Their sum over j is ⟨g_i, v⟩, except
        for terms that belong to no sample."""
        query = self.batch.query
        return self.solution.along(self.outer.weighted_losses_of_one, v, query)[1][:, : query.rows]

    def support_slopes(self, v: Tensor) -> Tensor:
        """w_j ∂⟨g_i, v⟩/∂w_j (Thm 4.6–4.8) of each support sample: ``[B, P] -> [B, n_s]``."""
        weight = self.batch.support.w
        return (weight * self.second(v, torch.zeros_like(weight))[1])[:, : self.batch.support.rows]

    def gradient_by_support(self, e: Tensor) -> Tensor:
        """Σ_j e_j w_j ∂g_i/∂w_j (Thm 4.6–4.8): ``[B, n_s] -> [B, P]``."""
        weight = self.batch.support.w
        along = F.pad(e, (0, weight.shape[1] - e.shape[1])) * weight
        return self.second(torch.zeros(len(e), len(self.lam)).to(e), along)[0]

    @property
    def nbytes(self) -> int:
        """Bytes that caching this batch takes."""
        derivatives = DERIVATIVES * len(self.batch.index) * self.lam.nbytes
        return self.solution.nbytes + derivatives + self.batch.support.nbytes + self.batch.query.nbytes


class SolvedTasks:
    """The tasks of a bilevel problem, with θ_i solved at λ.

    Tasks are loaded, stacked and solved in batches of equal shape. Solved batches are cached while they fit into the
    memory budget, and solved again on each pass beyond it, so that memory does not grow with the number of tasks.

    Args:
        settings: of the problem.
        lam: λ, ``[P]``.
        tasks: any sequence; each item is read when it is needed.
        weights: task weights c_i, one per task.
    """

    def __init__(self, settings: ProblemSettings, lam: Tensor, tasks: Sequence[Task], weights: list[float]) -> None:
        self.settings, self.lam, self.tasks, self.weights = settings, lam, tasks, weights
        self._cached: dict[int, SolvedBatch] = {}
        self._cached_bytes = 0
        self._plan: list[list[int]] | None = None

    @property
    def execution_note(self) -> str:
        """Why tasks are computed one by one, once a task was solved; empty if they are mapped, or if that was set."""
        return self.settings.execution.note

    def microbatches(self, purpose: str = "tasks") -> Iterator[SolvedBatch]:
        """The tasks of this rank, solved, in batches small enough to compute vectors of λ's size for each task.

        The order is the same on each pass. Results that add up over tasks must be combined by the ``ranks`` of the
        settings. If a task cannot be read or solved, all ranks raise.

        Args:
            purpose: label of the progress bar.
        """
        for batch in self.batches(purpose):
            yield from batch.microbatches

    def batches(self, purpose: str = "tasks") -> Iterator[SolvedBatch]:
        """As :meth:`microbatches`, in larger batches, for work that computes no vector of λ's size per task."""
        ranks, progress = self.settings.ranks, self.settings.progress
        hidden = True if ranks.rank else None if progress is None else not progress
        batches = self._batches()
        with tqdm(total=len(self._share), desc=purpose, unit="task", leave=False, disable=hidden) as bar:
            while True:
                with ranks.guard():
                    solved = next(batches, None)
                if solved is None:
                    return
                yield solved
                bar.update(len(solved.batch.index))

    def _batches(self) -> Iterator[SolvedBatch]:
        for number, (index, tasks) in enumerate(self._groups()):
            yield self._cached.get(number) or self._solve_and_cache(number, index, tasks)

    def alone(self) -> SolvedTasks:
        """The same problem with all tasks on this rank."""
        if self.settings.ranks.size == 1:
            return self
        return SolvedTasks(replace(self.settings, ranks=ALONE), self.lam, self.tasks, self.weights)

    def subset(self, positions: list[int], weights: list[float] | None = None) -> SolvedTasks:
        """The same problem on some of its tasks, with their weights unless others are given."""
        chosen = [self.weights[i] for i in positions] if weights is None else weights
        return self.with_tasks(_Chosen(self.tasks, positions), chosen)

    def with_tasks(self, tasks: Sequence[Task], weights: list[float]) -> SolvedTasks:
        """The same problem on other tasks."""
        return SolvedTasks(self.settings, self.lam, tasks, weights)

    def one(self, position: int) -> SolvedBatch:
        """One task as a batch of one."""
        return self._solve([position], [self.tasks[position]], 1)

    def _groups(self) -> Iterator[tuple[list[int], list[Task]]]:
        """Batches of tasks of equal shape. Each task is read once per pass, or not at all if its solution is cached."""
        if self._plan is None:
            found = []
            for group in equal_shape_batches(self.tasks, self._share, self._sizes[0]):
                found.append(group[0])
                yield group
            self._plan = found
        else:
            for number, index in enumerate(self._plan):
                yield index, [] if number in self._cached else [self.tasks[i] for i in index]

    @cached_property
    def _sizes(self) -> tuple[int, int]:
        """How many tasks make a batch and how many a microbatch, judged by the first task."""
        settings, task = self.settings, self.tasks[self.settings.ranks.rank % len(self.tasks)]
        problem, batch = self._problem([0], [task])
        forwards = [
            allocated_bytes(lambda: objective.losses(self.lam, problem.start, samples))  # noqa: B023
            for objective, samples in ((settings.inner, batch.support), (settings.outer, batch.query))
        ]
        total, largest = (max(sizes) for sizes in zip(*forwards, strict=True))
        rows = len(task.support[1]) + len(task.query[1])

        def fitting(vector: int) -> int:
            size = min(len(self.tasks), settings.batch_bytes // settings.kind.work(total, vector, rows))
            if self.lam.device.type == "cpu":  # on other devices torch reuses freed memory of any size
                size = min(size, RECYCLED // max(vector, largest))
            return max(1, size)

        microbatch_size = fitting(self.lam.nbytes)
        # A batch lives as long as any of its microbatches, and so do the derivatives that these have cached.
        most = settings.batch_bytes // (DERIVATIVES * self.lam.nbytes)
        return max(microbatch_size, min(most, fitting(settings.kind.written_out(problem)))), microbatch_size

    @property
    def _share(self) -> range:
        return self.settings.ranks.share(len(self.tasks))

    def _solve_and_cache(self, number: int, index: list[int], tasks: list[Task]) -> SolvedBatch:
        solved = self._solve(index, tasks, self._sizes[1])
        if self._cached_bytes + solved.nbytes <= self.settings.batch_bytes:
            self._cached[number] = solved
            self._cached_bytes += solved.nbytes
        return solved

    def _solve(self, index: list[int], tasks: list[Task], microbatch_size: int) -> SolvedBatch:
        settings, (problem, batch) = self.settings, self._problem(index, tasks)
        solution = settings.kind.solve(problem)
        return SolvedBatch(batch, solution, settings.kind, self.lam, settings.outer, microbatch_size)

    def _problem(self, index: list[int], tasks: list[Task]) -> tuple[InnerProblem, TaskBatch]:
        settings, batch = self.settings, stack(tasks, index, self.weights, self.lam)
        first = batch.query.of_task(0)
        outer = partial(_losses_at, settings.outer, self.lam, first)
        part, layout = settings.theta_layout, settings.layout
        problem = InnerProblem(settings.inner, self.lam, batch.support, self._start(tasks), layout, part, outer)
        settings.execution.settle(partial(self._probe, problem, batch))
        return problem, batch

    def _probe(self, problem: InnerProblem, batch: TaskBatch) -> Found | None:
        """How the first task of this batch can be computed. Both losses use the same model: it is enough to try second
        derivatives of one of them."""
        point, support, query = (self.lam, problem.initial), batch.support.of_task(0), batch.query.of_task(0)
        adapts = not isinstance(self.settings.kind, NoInner)
        inner = Case(self.settings.inner.at_step(0), *point, support, second=True)
        outer = Case(self.settings.outer, *point, query, second=not adapts)
        return probe([inner, outer] if adapts else [outer])

    def _start(self, tasks: list[Task]) -> Tensor:
        layout = self.settings.theta_layout
        initial = layout.start(self.lam)
        if all(task.start is None for task in tasks):
            return initial.expand(len(tasks), -1)
        return torch.stack([initial if task.start is None else layout.flatten(task.start) for task in tasks])


def _losses_at(outer: Objective, lam: Tensor, query: Samples, theta: Theta) -> Tensor:
    return outer.weighted_losses_of_one(lam, theta, query)


class _Chosen(Sequence[Task]):
    """Some tasks of a sequence, read when they are needed."""

    def __init__(self, tasks: Sequence[Task], positions: list[int]) -> None:
        self._tasks, self._positions = tasks, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, i: Any) -> Any:
        return self._tasks[self._positions[i]]
