"""What an item is by itself, whatever the test tasks: its loss, the size of its gradient."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from ....bilevel.solved_tasks import SolvedBatch, SolvedTasks
from ...problem.snapshot import Snapshot
from .base import Baseline, each_gradient, each_task


class OfItself(Baseline):
    """A number of the item alone, the same on each test task."""

    @abstractmethod
    def _value(self, solved: SolvedBatch) -> Tensor:
        """``[B, count]``."""

    def _measure(self, study: Snapshot, test: SolvedTasks) -> list[Tensor]:
        return [row.unsqueeze(1).repeat(1, len(test.tasks)) for row in each_task(study.solved_tasks, self._value)]


class QueryLoss(OfItself):
    """The item's own loss at λ*, after adaptation: L_O^i of a task, ℓ_j of a sample without its weight.

    It knows nothing of test tasks, nor of how often a task was trained on. What fits badly is taken to be harmful,
    which finds wrong labels and says little of what removal does. Unit: the loss.
    """

    reading = "score = the item's own loss after adaptation; high = suspected to be harmful; unit: the loss"

    def _value(self, solved: SolvedBatch) -> Tensor:
        return self._level.losses(solved)


class GradientNorm(OfItself):
    """‖pull‖: how hard the item pulls at λ*, whichever way.

    It knows nothing of test tasks. For a task it is c_i ‖g_i‖. Unit: the loss per unit of λ.
    """

    reading = "score = length of the item's gradient by λ; high = suspected to be harmful; unit: loss per unit of λ"

    def _value(self, solved: SolvedBatch) -> Tensor:
        return each_gradient(self._level, solved, lambda gradient: gradient.norm(dim=-1))
