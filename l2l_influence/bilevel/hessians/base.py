"""Total Hessians as sums over tasks of products that one curvature defines."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..local import LocalProblem, SolvedBatch
from ..solvers import LinearOperator


class Curvature(ABC):
    """One way to approximate D²_λ L_O^i. A new kind is a new file with one of these, named in ``CURVATURES``."""

    @abstractmethod
    def operator(self, local: LocalProblem) -> LinearOperator:
        """Σ_i c_i D²_λ L_O^i in this approximation, over all tasks."""


class PerTask(Curvature):
    """A curvature that is given by its products with each task's part."""

    @abstractmethod
    def product(self, at: SolvedBatch, v: Tensor) -> Tensor:
        """The curvature of each task of the batch times its row of ``v``: ``[B, P] -> [B, P]``."""

    def operator(self, local: LocalProblem) -> LinearOperator:
        return OverTasks(local, self)


class OverTasks(LinearOperator):
    """``Σ_i c_i H_i``; all rows are right-hand sides of the one matrix."""

    def __init__(self, local: LocalProblem, curvature: PerTask) -> None:
        self._local, self._curvature = local, curvature

    def matvec(self, v: Tensor) -> Tensor:
        total = torch.zeros_like(v)
        for at in self._local.solved("Hessian product"):
            weight = at.batch.weight
            for row, out in zip(v, total, strict=True):
                out += weight @ self._curvature.product(at, row.repeat(len(weight), 1))
        return total


class ScaledIdentity(LinearOperator):
    """``scale · I``."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def matvec(self, v: Tensor) -> Tensor:
        return self.scale * v
