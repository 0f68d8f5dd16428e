"""Similarity of gradients: the effect of an item's gradient step on the test loss, without any curvature."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Estimator
from .directions import GradientFit


class GradientSimilarityFit(GradientFit["GradientSimilarity"]):
    """Scores are products of total gradients."""


@dataclass(frozen=True)
class GradientSimilarity(Estimator):
    """−⟨g_test, g_item⟩: the change of the test loss per unit length of a gradient step on the item, not taken.

    Positive = harmful: the two gradients point apart, so training on the item raises the test loss. It is the influence
    score with (δ_o I + H)⁻¹ = I. Unit: the loss, per unit of step size. It predicts no Δλ, as the step has no length.
    """

    name = "gradient-similarity"
    fitted = GradientSimilarityFit
    reads_test_gradients = True

    def reading(self, what: str, test_loss: float) -> str:
        return (
            "score = −⟨test task's gradient, the item's gradient⟩; positive = harmful: the two point apart; unit: the "
            "loss per unit of step size"
        )
