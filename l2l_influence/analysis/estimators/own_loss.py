"""The item's own loss as a score."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...bilevel.item_gradients import ItemGradient
from ...bilevel.solved_tasks import SolvedBatch
from .base import Estimator
from .own_value import OwnValueFit


class OwnLossFit(OwnValueFit["OwnLoss"]):
    """The value is the loss."""

    def value(self, gradient: ItemGradient, solved: SolvedBatch) -> Tensor:
        return gradient.losses(solved)


@dataclass(frozen=True)
class OwnLoss(Estimator):
    """The item's own loss at λ*, after adaptation: L_O^i of a task, ℓ_j of a sample without its weight.

    It depends neither on the test tasks nor on how often a task was trained on. Items that fit badly are taken to be
    harmful, which finds wrong labels and says little about removal. Unit: the loss.
    """

    name = "loss"
    fitted = OwnLossFit

    def reading(self, what: str, test_loss: float) -> str:
        return "score = the item's own loss after adaptation; high = suspected to be harmful; unit: the loss"
