"""Test tasks as targets of scores, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ...bilevel import Task
from ...bilevel.inner import IdentityJacobian
from ...bilevel.solved_tasks import SolvedBatch, SolvedTasks
from ..run import RunAt
from .passes import each_task

TestGradient = Literal["total", "partial"]
"""D_λ L_O of a test task; or ∂_θ L_O alone, without dθ'/dλ, as Def. 5.2 prints it."""


@dataclass(frozen=True)
class Targets:
    """The losses that items are scored on: that of each test task, or their mean.

    Attributes:
        run: at whose λ the test tasks are solved.
        tasks: the test tasks.
        mean: one target, the mean loss, in place of one target per task.
        test_gradient: which gradient of a test task is used.
    """

    run: RunAt
    tasks: Sequence[Task]
    mean: bool = False
    test_gradient: TestGradient = "total"

    def solved(self) -> SolvedTasks:
        """The test tasks at λ; their solutions are kept as long as the returned object."""
        return self.run.with_tasks(self.tasks)

    def at(self, run: RunAt) -> Targets:
        """The same targets at another λ, or under another inner kind."""
        return replace(self, run=run)

    def some(self, positions: range) -> Targets:
        """Some of the test tasks."""
        return replace(self, tasks=_Some(self.tasks, positions))

    def gradients(self) -> tuple[Tensor, Tensor]:
        """The targets' gradients by λ, ``[R, P]``, and their losses, ``[R]``, float64."""
        if self.mean:
            return mean_test_gradient(self.solved(), self.test_gradient)
        return each_test_gradient(self.solved(), self.test_gradient)

    def losses(self) -> Tensor:
        """The targets' losses, ``[R]``, float64."""
        return self.reduced(torch.stack(each_task(self.solved(), SolvedBatch.outer_loss, "test tasks")))

    def reduced(self, rows: Tensor) -> Tensor:
        """From values of each test task, ``[T, ...]``, to those of each target, ``[R, ...]``."""
        return rows.mean(0, keepdim=True) if self.mean else rows

    @property
    def note(self) -> str:
        """The targets in words."""
        partial = "" if self.test_gradient == "total" else "; their gradient is ∂_θ L_O, without dθ/dλ"
        return f"test tasks: {len(self.tasks)}{partial}"


class _Some(Sequence[Task]):
    """Some tasks of a sequence, read when they are used."""

    def __init__(self, tasks: Sequence[Task], positions: range) -> None:
        self._tasks, self._positions = tasks, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, i: Any) -> Any:
        return self._tasks[self._positions[i]]


def each_test_gradient(test: SolvedTasks, test_gradient: TestGradient = "total") -> tuple[Tensor, Tensor]:
    """D_λ L_O of each test task, ``[T, P]``, and its L_O, ``[T]``, in float64 on the CPU."""
    gradients = test.lam.new_zeros(len(test.tasks), test.lam.numel())
    losses = torch.zeros(len(test.tasks), dtype=torch.float64)
    for solved in test.microbatches("test tasks"):
        read = _read(solved, test_gradient)
        gradients[solved.batch.index] = read.weighted_gradient()
        losses[solved.batch.index] = read.outer_loss().double().cpu()
    ranks = test.settings.ranks
    return ranks.sum(gradients), ranks.sum(losses)


def mean_test_gradient(test: SolvedTasks, test_gradient: TestGradient = "total") -> tuple[Tensor, Tensor]:
    """The mean over test tasks of D_λ L_O, ``[1, P]``, and of L_O, ``[1]``, float64."""
    gradient, loss = test.lam.new_zeros(1, test.lam.numel()), torch.zeros(1, dtype=torch.float64)
    for solved in test.microbatches("test tasks"):
        read = _read(solved, test_gradient)
        gradient += read.batch.weight @ read.total_gradient
        loss += float(read.outer_loss().sum())
    ranks, count = test.settings.ranks, len(test.tasks)
    return ranks.sum(gradient) / count, ranks.sum(loss) / count


def _read(solved: SolvedBatch, test_gradient: TestGradient) -> SolvedBatch:
    return solved if test_gradient == "total" else replace(solved, solution=IdentityJacobian(solved.solution))
