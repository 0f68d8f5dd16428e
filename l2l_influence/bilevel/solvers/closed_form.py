"""The solver for operators with a closed-form inverse."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import LossStructureError
from .base import Approximate, Attempt, Invertible, LinearOperator, LinearSolver


@dataclass(frozen=True)
class ClosedForm(LinearSolver):
    """The inverse of an :class:`Invertible` operator, refined by what rounding left over.

    Args:
        tolerance: on ``‖b − A x‖ / ‖b‖``; chosen by the dtype if None.
        max_iterations: applications of the inverse.
    """

    tolerance: float | None = None
    max_iterations: int = 3

    def prepare(self, operator: LinearOperator, like: Tensor) -> Approximate:
        if not isinstance(operator, Invertible):
            raise LossStructureError(
                f"{type(operator).__name__} has no closed-form inverse: use another solver, such as CG()"
            )
        floor = torch.full_like(like[:, 0], operator.floor)
        return lambda b, goal, budget: Attempt(operator.inverse(b), 1, floor)


class MultipleOfIdentity(Invertible):
    """``shift · I``, with shift > 0."""

    def __init__(self, shift: float, note: str = "") -> None:
        self.shift = self.floor = shift
        self.note = note

    def matvec(self, v: Tensor) -> Tensor:
        return self.shift * v

    def inverse(self, v: Tensor) -> Tensor:
        return v / self.shift
