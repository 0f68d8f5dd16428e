"""Similarity of gradients: what an item's gradient step does to the test tasks' loss, without any curvature."""

from __future__ import annotations

import torch
from torch import Tensor

from ....bilevel.item_gradients import ItemGradient
from ....bilevel.solved_tasks import SolvedBatch, SolvedTasks
from ...problem.snapshot import Snapshot
from ..scoring import each_test_gradient
from .base import Baseline, each_gradient, each_task


class GradientSimilarity(Baseline):
    """−⟨g_t, pull⟩: the loss of test task t per unit length of a gradient step that is not taken on the item.

    Positive = harmful: the item's gradient points against the test task's, so that training on it raises the test loss.
    It is the influence score with (δ_o I + H)⁻¹ = I. Unit: the loss, per unit of step size.
    """

    reading = (
        "score = −⟨test task's gradient, the item's gradient⟩; positive = harmful: the two point apart; unit: the loss "
        "per unit of step size"
    )

    def _measure(self, study: Snapshot, test: SolvedTasks) -> list[Tensor]:
        return disagreement(study.solved_tasks, self._level, each_test_gradient(test, exact=True))


class CosineSimilarity(Baseline):
    """−⟨g_t, pull⟩ / (‖g_t‖ ‖pull‖), which leaves the lengths of the gradients out; 0 where one of them is 0.

    Positive = harmful, as in :class:`GradientSimilarity`. Between −1 and 1, without unit.
    """

    reading = "score = −cosine of the test task's and the item's gradients; positive = harmful: the two point apart"

    def _measure(self, study: Snapshot, test: SolvedTasks) -> list[Tensor]:
        directions = _direction(each_test_gradient(test, exact=True))

        def cosines(solved: SolvedBatch) -> Tensor:
            return -each_gradient(self._level, solved, lambda gradient: _direction(gradient) @ directions.T)

        return each_task(study.solved_tasks, cosines)


def disagreement(solved_tasks: SolvedTasks, level: ItemGradient, tests: Tensor) -> list[Tensor]:
    """−⟨pull, g⟩ of each task's items, for each row g of ``tests`` ``[T, P]``: ``[count, T]``."""
    return each_task(solved_tasks, lambda solved: -level.gradients_along(solved, tests))


def _direction(rows: Tensor) -> Tensor:
    """Each row at length 1, or 0 where it is 0."""
    lengths = rows.norm(dim=-1, keepdim=True)
    return rows / torch.where(lengths > 0, lengths, torch.ones_like(lengths))
