"""Total Hessians as sums over tasks of products that one curvature defines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..solved_tasks import SolvedBatch, SolvedTasks
from ..solvers import LinearOperator
from ..solvers.neumann import largest_eigenvalue

Subsets = Sequence[Sequence[int]]
"""Positions of tasks, a group for each right-hand side."""


class TaskSum(LinearOperator):
    """``Σ_i c_i H_i`` over the tasks of a problem; all rows are right-hand sides of this one matrix."""

    @abstractmethod
    def without(self, groups: Subsets) -> LinearOperator:
        """One matrix for each row: the sum without the tasks of that row's group."""

    def largest_eigenvalue(self, like: Tensor, iterations: int) -> Tensor:
        """An estimate from below, ``[R]``, for rows shaped ``like`` ``[R, P]``."""
        return largest_eigenvalue(self, like, iterations)

    def effective_damping(self, shift: float) -> float:
        """The multiple of the identity that it is, with this one added, most like the exact sum with: more than
        ``shift`` where few samples stand for many directions."""
        return shift


class Curvature(ABC):
    """One way to approximate D²_λ L_O^i. A new kind is a new file with one of these, named in ``CURVATURES``."""

    @property
    def needs_exact_inverse(self) -> bool:
        """Whether it is meant to leave nothing out, which takes an inner inverse that leaves nothing out either."""
        return False

    @property
    def preconditioner(self) -> Curvature | None:
        """A kind close to this one whose systems are solved directly: what conjugate gradients are preconditioned by.

        Only for what is never indefinite: fewer iterations also meet negative curvature less often.
        """
        return None

    @abstractmethod
    def operator(self, solved_tasks: SolvedTasks) -> TaskSum:
        """Σ_i c_i D²_λ L_O^i in this approximation, over all tasks."""

    def linearised(self, solved: SolvedBatch) -> SolvedBatch:
        """The tasks as this kind differentiates them: total gradients to go with its Hessian come from here."""
        return solved


class PerTask(Curvature):
    """A curvature that is given by its products with each task's part."""

    @abstractmethod
    def product(self, solved: SolvedBatch, v: Tensor) -> Tensor:
        """The curvature of each task of the batch times ``v``: ``[P] -> [B, P]``."""

    def weighted_sum(self, solved: SolvedBatch, weight: Tensor, v: Tensor) -> Tensor:
        """Σ_i w_i H_i v over the tasks of the batch, for ``weight`` ``[B]``: ``[P] -> [P]``."""
        parts = zip(weight.split(solved.microbatch_size), solved.microbatches, strict=True)
        return torch.stack([some @ self.product(piece, v) for some, piece in parts]).sum(0)

    def operator(self, solved_tasks: SolvedTasks) -> TaskSum:
        return OverTasks(solved_tasks, self, torch.tensor(solved_tasks.weights, dtype=torch.float64))


class OverTasks(TaskSum):
    """``Σ_i w_ri H_i`` for row r, from products with each task's part; ``weights`` is ``[N]``, or ``[R, N]``."""

    def __init__(self, solved_tasks: SolvedTasks, curvature: PerTask, weights: Tensor) -> None:
        self._solved_tasks, self._curvature, self._weights = solved_tasks, curvature, weights

    def matvec(self, v: Tensor) -> Tensor:
        total = torch.zeros_like(v)
        for solved in self._solved_tasks.batches("Hessian product"):
            weights = self._weights[..., solved.batch.index].to(v).expand(len(v), -1)
            for row, weight, out in zip(v, weights, total, strict=True):
                out += self._curvature.weighted_sum(solved, weight, row)
        return self._solved_tasks.settings.ranks.sum(total)

    def without(self, groups: Subsets) -> LinearOperator:
        return OverTasks(self._solved_tasks, self._curvature, self._weights * outside(groups, len(self._weights)))


class ScaledIdentity(TaskSum):
    """``Σ_i s_i I``, for scales s ``[N]``, or ``[R, N]`` for row r's own."""

    def __init__(self, scales: Tensor) -> None:
        self._scales = scales

    def matvec(self, v: Tensor) -> Tensor:
        return self._scales.sum(-1, keepdim=True).to(v) * v

    def without(self, groups: Subsets) -> LinearOperator:
        return ScaledIdentity(self._scales * outside(groups, len(self._scales)))


def outside(groups: Subsets, count: int) -> Tensor:
    """1 where a task of ``count`` is not in the row's group, 0 where it is: ``[R, N]``, float64."""
    kept = torch.ones(len(groups), count, dtype=torch.float64)
    for row, group in zip(kept, groups, strict=True):
        row[list(group)] = 0
    return kept
