"""Cosine of gradients: similarity that ignores their lengths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..items import Items
from ..passes import Targets
from ..passes.targets import each_test_gradient
from .base import Estimator
from .directions import Directions, FeatureFit


class CosineSimilarityFit(FeatureFit["CosineSimilarity"]):
    """Features are gradients at length 1."""

    def features(self, gradients: Tensor) -> Tensor:
        lengths = gradients.norm(dim=-1, keepdim=True)
        return gradients / torch.where(lengths > 0, lengths, torch.ones_like(lengths))

    def directions(self, items: Items, targets: Targets, part: int = 0) -> Directions:
        """The score on the mean is the mean of cosines, so each test task's gradient is normalised by itself."""
        gradients, losses = each_test_gradient(targets.at(self.run).solved(), targets.test_gradient)
        note = f"estimator: {self.estimator.name}"
        return Directions(targets.reduced(self.features(gradients)), targets.reduced(losses), note)


@dataclass(frozen=True)
class CosineSimilarity(Estimator):
    """−⟨g_test, g_item⟩ / (‖g_test‖ ‖g_item‖); 0 where a gradient is 0.

    Positive = harmful, as in :class:`GradientSimilarity`. Between −1 and 1, without a unit.
    """

    name = "cosine-similarity"
    fitted = CosineSimilarityFit
    reads_test_gradients = True

    def reading(self, what: str, test_loss: float) -> str:
        return "score = −cosine of the test task's and the item's gradients; positive = harmful: the two point apart"
