"""Dense matrices, for tests and small problems."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .base import Approximate, Attempt, LinearOperator, LinearSolver


@dataclass(frozen=True)
class Dense(LinearSolver):
    """Builds the matrix of each row and solves by its eigenvalues, in float64: P products and P³ work.

    Args:
        tolerance: on ``‖b − A x‖ / ‖b‖``; missed only if the matrix is close to singular.
        max_iterations: refinements of what rounding left over.

    >>> Dense().name
    'dense'
    """

    tolerance: float = 1e-6
    max_iterations: int = 3

    def prepare(self, operator: LinearOperator, like: Tensor) -> Approximate:
        matrices = operator.dense(like).double()
        values, vectors = torch.linalg.eigh((matrices + matrices.mT) / 2)

        def attempt(b: Tensor, goal: Tensor, budget: int) -> Attempt:
            coordinates = (vectors.mT @ b.double().unsqueeze(-1)).squeeze(-1)
            x = (vectors @ (coordinates / values).unsqueeze(-1)).squeeze(-1)
            return Attempt(x.to(b.dtype), 1, values[:, 0].to(b.dtype))

        return attempt


class Stored(LinearOperator):
    """An operator whose matrices are built when first needed, and kept."""

    def __init__(self, operator: LinearOperator, like: Tensor, note: str = "") -> None:
        self._operator, self._like = operator, like
        self.note, self.shift = note, operator.shift

    @cached_property
    def matrices(self) -> Tensor:
        """``[R, P, P]``."""
        return self._operator.dense(self._like)

    @property
    def nbytes(self) -> int:
        return self._like.nbytes * self._like.shape[1]

    def matvec(self, v: Tensor) -> Tensor:
        return (self.matrices @ v.unsqueeze(-1)).squeeze(-1)

    def dense(self, like: Tensor) -> Tensor:
        return self.matrices
