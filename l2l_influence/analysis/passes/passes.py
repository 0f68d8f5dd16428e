"""Passes over the training tasks that score their items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...bilevel.item_gradients import ItemGradient
from ...bilevel.solved_tasks import SolvedBatch, SolvedTasks
from ...bilevel.stationarity import Stationarity
from ..run import RunAt
from .accumulator import PassAccumulator
from .packed_tensors import PackedTensors

Measure = Callable[[SolvedBatch], Tensor]
"""Values of a batch of tasks, ``[B, ...]``."""


@dataclass(frozen=True)
class Walk:
    """What one pass over the training tasks found, one entry per task.

    Attributes:
        scores: ``[count, R]`` for the task's items and R targets, float64.
        losses: each item's own loss, ``[count]``, float64.
        residual: largest inner residual.
        stationarity: of λ; None if the pass needed no total gradients.
    """

    scores: list[Tensor]
    losses: list[Tensor]
    residual: float
    stationarity: Stationarity | None = None


@dataclass(frozen=True)
class Pass:
    """Scores of all items of a run, and what was found on the way.

    Attributes:
        scores: for each training task ``[count, R]``, its items' scores on R targets, float64.
        losses: for each training task ``[count]``, its items' own losses after adaptation, float64.
        test_losses: of the targets, ``[R]``, float64.
        residual: largest inner residual.
        stationarity: of λ, if the pass found it.
        notes: how the scores were computed, one line each.
    """

    scores: list[Tensor]
    losses: list[Tensor]
    test_losses: Tensor
    residual: float
    stationarity: Stationarity | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, walk: Walk, test_losses: Tensor, *notes: str) -> Pass:
        """A walk's findings, with the losses of the targets."""
        return cls(walk.scores, walk.losses, test_losses, walk.residual, walk.stationarity, notes)


def walk(
    run: RunAt, gradient: ItemGradient, measure: Measure, *, alone: bool = False, total_gradients: bool = True
) -> Walk:
    """One pass over the training tasks of ``run``.

    Args:
        gradient: of the items.
        measure: the items' scores, ``[B, count, R]``.
        alone: every process visits all tasks. Needed if ``measure`` solves outer systems, which processes can only do
            together; otherwise they share the tasks.
        total_gradients: also compute the stationarity of λ.
    """
    solved_tasks = run.solved_tasks.alone() if alone else run.solved_tasks
    scores, losses = PackedTensors(len(run.recorded)), PackedTensors(len(run.recorded))
    found = PassAccumulator(solved_tasks, run.problem.l2)
    for solved in solved_tasks.microbatches("scores"):
        scores.put(solved.batch.index, measure(solved).detach())
        losses.put(solved.batch.index, gradient.losses(solved).detach())
        (found.add if total_gradients else found.add_residual)(solved)
    ranks = solved_tasks.settings.ranks
    stationarity = found.stationarity() if total_gradients else None
    return Walk(ranks.gather(scores.each()), ranks.gather(losses.each()), ranks.maximum(found.residual), stationarity)


def each_task(solved_tasks: SolvedTasks, measure: Measure, purpose: str = "tasks") -> list[Tensor]:
    """``measure(batch)``, ``[B, ...]``, by position of the task, in float64 on the CPU."""
    found = PackedTensors(len(solved_tasks.tasks))
    for solved in solved_tasks.microbatches(purpose):
        found.put(solved.batch.index, measure(solved).detach())
    return solved_tasks.settings.ranks.gather(found.each())


def each_gradient(gradient: ItemGradient, solved: SolvedBatch, of: Callable[[Tensor], Tensor]) -> Tensor:
    """``of(item gradient)`` of all items, ``[B, count, ...]``, for ``of``: ``[B, P] -> [B, ...]``."""
    return torch.stack([of(gradient.gradient(solved, j)) for j in range(gradient.count(solved))], dim=1)
