"""Total Hessians as sums over tasks, and the interface of the approximations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..solved_tasks import SolvedBatch, SolvedTasks
from ..solvers import LinearOperator
from ..solvers.neumann import largest_eigenvalue

Subsets = Sequence[Sequence[int]]
"""Positions of tasks, one subset for each right-hand side."""


class TaskSum(LinearOperator):
    """``Σ_i c_i H_i`` over the tasks of a problem; all rows are right-hand sides of this one matrix."""

    @abstractmethod
    def without(self, subsets: Subsets) -> LinearOperator:
        """One matrix for each row: the sum without the tasks of that row's subset."""

    def largest_eigenvalue(self, like: Tensor, iterations: int) -> Tensor:
        """An estimate from below, ``[R]``, for rows shaped ``like`` ``[R, P]``."""
        return largest_eigenvalue(self, like, iterations)

    def effective_damping(self, shift: float) -> float:
        """Effective damping κ: this operator + shift·I is closest to H + κ·I, where H is the exact sum.

        It exceeds ``shift`` if the operator is a sample with few rows for many directions.
        """
        return shift


class Curvature(ABC):
    """A way to approximate D²_λ L_O^i. A new one is a new file with a subclass, and an entry in ``CURVATURES``."""

    @property
    def needs_exact_inverse(self) -> bool:
        """Whether it is meant to omit nothing, which requires an exact inner inverse as well."""
        return False

    @property
    def preconditioner(self) -> Curvature | None:
        """A similar kind whose systems are solved directly, as a preconditioner for conjugate gradients; None for no
        preconditioner.

        Only for kinds that are never indefinite: with fewer iterations CG also detects negative curvature less often.
        """
        return None

    @abstractmethod
    def operator(self, solved_tasks: SolvedTasks) -> TaskSum:
        """Σ_i c_i D²_λ L_O^i in this approximation, over all tasks."""

    def linearised(self, solved: SolvedBatch) -> SolvedBatch:
        """The tasks as this kind differentiates them: the total gradients that belong to its Hessian."""
        return solved


class PerTask(Curvature):
    """A curvature that is defined by its products with the part of each task."""

    @abstractmethod
    def product(self, solved: SolvedBatch, v: Tensor) -> Tensor:
        """The curvature of each task of the batch times ``v``: ``[P] -> [B, P]``."""

    def weighted_sum(self, solved: SolvedBatch, weight: Tensor, v: Tensor) -> Tensor:
        """Σ_i w_i H_i v over the tasks of the batch, for ``weight`` ``[B]``: ``[P] -> [P]``."""
        parts = zip(weight.split(solved.microbatch_size), solved.microbatches, strict=True)
        return torch.stack([weights @ self.product(microbatch, v) for weights, microbatch in parts]).sum(0)

    def operator(self, solved_tasks: SolvedTasks) -> TaskSum:
        return OverTasks(solved_tasks, self, torch.tensor(solved_tasks.weights, dtype=torch.float64))


class OverTasks(TaskSum):
    """``Σ_i w_ri H_i`` for row r, by products with the part of each task; ``weights`` is ``[N]``, or ``[R, N]``."""

    def __init__(self, solved_tasks: SolvedTasks, curvature: PerTask, weights: Tensor) -> None:
        self._solved_tasks, self._curvature, self._weights = solved_tasks, curvature, weights

    def matvec(self, v: Tensor) -> Tensor:
        total = torch.zeros_like(v)
        for solved in self._solved_tasks.batches("Hessian product"):
            weights = self._weights[..., solved.batch.index].to(v).expand(len(v), -1)
            for row, weight, out in zip(v, weights, total, strict=True):
                out += self._curvature.weighted_sum(solved, weight, row)
        return self._solved_tasks.settings.ranks.sum(total)

    def without(self, subsets: Subsets) -> LinearOperator:
        return OverTasks(self._solved_tasks, self._curvature, self._weights * outside(subsets, len(self._weights)))


class ScaledIdentity(TaskSum):
    """``Σ_i s_i I`` for scales s ``[N]``, or ``[R, N]`` with a row of scales for each right-hand side."""

    def __init__(self, scales: Tensor) -> None:
        self._scales = scales

    def matvec(self, v: Tensor) -> Tensor:
        return self._scales.sum(-1, keepdim=True).to(v) * v

    def without(self, subsets: Subsets) -> LinearOperator:
        return ScaledIdentity(self._scales * outside(subsets, len(self._scales)))


def outside(subsets: Subsets, count: int) -> Tensor:
    """1 for each of ``count`` tasks that is not in the row's subset, 0 for the others: ``[R, N]``, float64."""
    kept = torch.ones(len(subsets), count, dtype=torch.float64)
    for row, subset in zip(kept, subsets, strict=True):
        row[list(subset)] = 0
    return kept
