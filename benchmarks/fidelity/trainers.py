"""Ways to train a learner again."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from l2l_influence.evaluation.metrics import Floats

from ..estimators.retraining import Retraining, Weights
from ..estimators.worlds import World
from .tasks import Drawn
from .training import MetaTraining, Schedule


@dataclass(frozen=True)
class Again:
    """Retraining from λ*, or, where ``start`` is None, from a start that the seed draws."""

    training: MetaTraining
    drawn: Drawn
    schedule: Schedule
    start: Tensor | None

    def __call__(self, weights: Weights, seed: int) -> Tensor:
        start = self.training.fresh(1 + seed) if self.start is None else self.start
        return self.training.train(self.drawn.train, weights, start, self.schedule, seed)

    def losses(self, lam: Tensor) -> Floats:
        return self.training.losses(lam, self.drawn.test)


@dataclass(frozen=True)
class ToTheMinimum:
    """Retraining of a smooth problem to its minimum, from λ*."""

    problem: World
    lam: Tensor
    metric: Tensor = field(repr=False)

    def __call__(self, weights: Weights, seed: int) -> Tensor:
        return self._retraining.optimum(self.lam, weights, self.metric).lam

    def losses(self, lam: Tensor) -> Floats:
        return self._retraining.losses(lam, self.problem.test).numpy()

    @cached_property
    def _retraining(self) -> Retraining:
        return Retraining(self.problem)
