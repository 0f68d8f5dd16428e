"""Random scores: what agreement by chance looks like."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..items import Items
from ..passes import Pass, Targets, walk
from .base import Estimator, FittedEstimator


class RandomFit(FittedEstimator["RandomScores"]):
    """Draws a random score for each item and target."""

    def scores(self, items: Items, targets: Targets) -> Pass:
        own = walk(self.run, items.gradient, items.gradient.losses, total_gradients=False)
        counts, draw = [len(losses) for losses in own.losses], torch.Generator().manual_seed(self.estimator.seed)
        numbers = torch.randn(sum(counts), len(targets.tasks), generator=draw, dtype=torch.float64)
        scores = list(targets.reduced(numbers.T).T.split(counts))
        note = f"estimator: {self.estimator.name}, seed {self.estimator.seed}"
        return Pass.of(replace(own, scores=scores), targets.losses(), note)


@dataclass(frozen=True)
class RandomScores(Estimator):
    """Independent standard normal numbers, one for each item and test task.

    Args:
        seed: of the numbers, which come from a generator of their own: the same seed gives the same scores.
    """

    name = "random"
    fitted = RandomFit

    seed: int = 0

    def reading(self, what: str, test_loss: float) -> str:
        return "score = a random number, independent of the item"
