"""Stationarity and inner residuals, accumulated during a pass over the training tasks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...bilevel.solved_tasks import SolvedBatch, SolvedTasks
from ...bilevel.stationarity import Stationarity, StationaritySum


class PassAccumulator:
    """Accumulates batch by batch how far λ is from a minimum, and how well the inner problems were solved.

    Attributes:
        residual: largest inner residual so far.
    """

    def __init__(self, solved_tasks: SolvedTasks, l2: float) -> None:
        self._balance, self.residual = StationaritySum(solved_tasks, l2), 0.0

    def add(self, solved: SolvedBatch) -> None:
        """Add a batch, including its total gradients."""
        self._balance.add(solved)
        self.add_residual(solved)

    def add_residual(self, solved: SolvedBatch) -> None:
        """Add a batch whose total gradients are not needed."""
        self.residual = max(self.residual, float(solved.solution.residual.max()))

    def stationarity(self) -> Stationarity:
        """The stationarity over all batches added."""
        return self._balance.result()

    def tensors(self) -> dict[str, Tensor]:
        """The state so far, on the CPU, to be saved."""
        residual = torch.tensor(self.residual, dtype=torch.float64)
        return {**self._balance.tensors(), "residual": residual}

    def resume_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that :meth:`tensors` returned."""
        self._balance.resume_from(tensors)
        self.residual = float(tensors["residual"])
