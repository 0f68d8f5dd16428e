"""Total Hessians as sums over tasks of products that one curvature defines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..local import LocalProblem, SolvedBatch
from ..solvers import LinearOperator


class TaskSum(LinearOperator):
    """``Σ_i c_i H_i`` over the tasks of a problem."""

    @abstractmethod
    def without(self, positions: Sequence[int]) -> TaskSum:
        """The same sum without the tasks at these positions."""


class Curvature(ABC):
    """One way to approximate D²_λ L_O^i. A new kind is a new file with one of these, named in ``CURVATURES``."""

    @abstractmethod
    def operator(self, local: LocalProblem) -> TaskSum:
        """Σ_i c_i D²_λ L_O^i in this approximation, over all tasks."""

    def seen(self, at: SolvedBatch) -> SolvedBatch:
        """The tasks as this kind differentiates them: total gradients to go with its Hessian come from here."""
        return at


class PerTask(Curvature):
    """A curvature that is given by its products with each task's part."""

    @abstractmethod
    def product(self, at: SolvedBatch, v: Tensor) -> Tensor:
        """The curvature of each task of the batch times its row of ``v``: ``[B, P] -> [B, P]``."""

    def operator(self, local: LocalProblem) -> TaskSum:
        return OverTasks(local, self, local.weights)


class OverTasks(TaskSum):
    """``Σ_i c_i H_i``; all rows are right-hand sides of the one matrix."""

    def __init__(self, local: LocalProblem, curvature: PerTask, weights: Sequence[float]) -> None:
        self._local, self._curvature = local, curvature
        self._weights = torch.tensor(weights, dtype=torch.float64)

    def matvec(self, v: Tensor) -> Tensor:
        total = torch.zeros_like(v)
        for at in self._local.solved("Hessian product"):
            weight = self._weights[at.batch.index].to(v)
            for row, out in zip(v, total, strict=True):
                out += weight @ self._curvature.product(at, row.repeat(len(weight), 1))
        return total

    def without(self, positions: Sequence[int]) -> TaskSum:
        return OverTasks(self._local, self._curvature, _zeroed(self._weights, positions).tolist())


class ScaledIdentity(TaskSum):
    """``Σ_i s_i I``."""

    def __init__(self, scales: Tensor) -> None:
        self._scales = scales
        self._scale = float(scales.sum())

    def matvec(self, v: Tensor) -> Tensor:
        return self._scale * v

    def without(self, positions: Sequence[int]) -> TaskSum:
        return ScaledIdentity(_zeroed(self._scales, positions))


def _zeroed(values: Tensor, positions: Sequence[int]) -> Tensor:
    kept = values.clone()
    kept[list(positions)] = 0
    return kept
