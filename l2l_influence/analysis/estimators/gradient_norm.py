"""The length of an item's gradient as a score."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...bilevel.item_gradients import ItemGradient
from ...bilevel.solved_tasks import SolvedBatch
from ..passes.passes import each_gradient
from .base import Estimator
from .own_value import OwnValueFit


class GradientNormFit(OwnValueFit["GradientNorm"]):
    """The value is the length."""

    def value(self, gradient: ItemGradient, solved: SolvedBatch) -> Tensor:
        return each_gradient(gradient, solved, lambda rows: rows.norm(dim=-1))


@dataclass(frozen=True)
class GradientNorm(Estimator):
    """‖g_item‖, the length of the item's gradient at λ*, whatever its direction. For a task it is c_i ‖g_i‖.

    It does not depend on the test tasks. Unit: the loss per unit of λ.
    """

    name = "gradient-norm"
    fitted = GradientNormFit

    def reading(self, what: str, test_loss: float) -> str:
        return "score = length of the item's gradient by λ; high = suspected to be harmful; unit: loss per unit of λ"
