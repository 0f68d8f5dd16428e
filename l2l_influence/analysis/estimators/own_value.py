"""Scores that depend on the item alone, whatever the test tasks."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

from torch import Tensor

from ...bilevel.item_gradients import ItemGradient
from ...bilevel.solved_tasks import SolvedBatch
from ..items import Items
from ..passes import Pass, Targets, walk
from .base import EstimatorType, FittedEstimator


class OwnValueFit(FittedEstimator[EstimatorType]):
    """One number per item, the same for each target."""

    @abstractmethod
    def value(self, gradient: ItemGradient, solved: SolvedBatch) -> Tensor:
        """The number of each item, ``[B, count]``."""

    def scores(self, items: Items, targets: Targets) -> Pass:
        gradient = items.gradient
        found = walk(self.run, gradient, lambda solved: self.value(gradient, solved), total_gradients=False)
        losses = targets.losses()
        scores = [row.unsqueeze(1).repeat(1, len(losses)) for row in found.scores]
        return Pass.of(replace(found, scores=scores), losses, f"estimator: {self.estimator.name}")
