"""What a pass over the training tasks says of λ* and of the inner solutions, on its way."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...bilevel.solved_tasks import SolvedBatch, SolvedTasks
from ...bilevel.stationarity import Stationarity, StationaritySum


class Tally:
    """Added up batch by batch.

    Attributes:
        residual: largest inner residual met.
    """

    def __init__(self, solved_tasks: SolvedTasks, l2: float) -> None:
        self._balance, self.residual = StationaritySum(solved_tasks, l2), 0.0

    def add(self, solved: SolvedBatch) -> None:
        self._balance.add(solved)
        self.residual = max(self.residual, float(solved.solution.residual.max()))

    def stationarity(self) -> Stationarity:
        return self._balance.result()

    def tensors(self) -> dict[str, Tensor]:
        """What has been added up so far, on the CPU."""
        residual = torch.tensor(self.residual, dtype=torch.float64)
        return {**self._balance.tensors(), "residual": residual}

    def resume_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`tensors` gave."""
        self._balance.resume_from(tensors)
        self.residual = float(tensors["residual"])
