"""Items that can be removed from a bilevel problem (tasks, query samples, support samples), by their gradients.

The *gradient* of an item is the derivative of D_λ L_Total by the item's relative weight 1 + ε. An influence function
needs nothing else of it: dλ*/dε = −(δ_o I + H)⁻¹ gradient, and removal (ε = −1) moves λ* by +(δ_o I + H)⁻¹ gradient to
first order, for every kind of item. A new kind of item is a new :class:`ItemGradient`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from .solved_tasks import SolvedBatch
from .task import Samples


class ItemGradient(ABC):
    """Items of one kind. Each task of a batch has ``count`` of them, numbered j.

    Attributes:
        item_name: what messages call one item.
        sign: the paper's influence function is ``sign · (δ_o I + H)⁻¹ gradient``: −1, but +1 for support samples.
    """

    item_name: ClassVar[str]
    sign: ClassVar[float] = -1.0

    @abstractmethod
    def count(self, solved: SolvedBatch) -> int:
        """How many items each task of the batch has."""

    @abstractmethod
    def gradient(self, solved: SolvedBatch, j: int) -> Tensor:
        """∂/∂ε D_λ L_Total for item ``j`` of each task, ``[B, P]``."""

    @abstractmethod
    def with_own_loss(self, solved: SolvedBatch, j: int) -> SolvedBatch:
        """The batch with the loss of item ``j`` alone as the outer loss; the loss of a sample has weight 1, and terms
        that belong to no sample have weight 0."""

    @abstractmethod
    def losses(self, solved: SolvedBatch) -> Tensor:
        """The loss of each item after adaptation, ``[B, count]``; the loss of a sample has weight 1."""

    def gradients_along(self, solved: SolvedBatch, v: Tensor) -> Tensor:
        """⟨gradient, v⟩ of all items for each row of ``v``: ``[R, P] -> [B, count, R]``."""
        return torch.stack([self.gradient(solved, j) @ v.T for j in range(self.count(solved))], dim=1)

    def influence(self, solved_gradient: Tensor) -> Tensor:
        """The paper's influence function from ``(δ_o I + H)⁻¹ gradient``."""
        return self.sign * solved_gradient


class TaskGradient(ItemGradient):
    """A whole task, for task-IF (Thm 4.3): the gradient is c_i g_i."""

    item_name = "task"

    def count(self, solved: SolvedBatch) -> int:
        return 1

    def gradient(self, solved: SolvedBatch, j: int) -> Tensor:
        return solved.weighted_gradient()

    def with_own_loss(self, solved: SolvedBatch, j: int) -> SolvedBatch:
        return solved

    def losses(self, solved: SolvedBatch) -> Tensor:
        return solved.outer_loss().unsqueeze(-1)

    def gradients_along(self, solved: SolvedBatch, v: Tensor) -> Tensor:
        return (solved.batch.weight.unsqueeze(-1) * (solved.total_gradient @ v.T)).unsqueeze(1)


class QueryGradient(ItemGradient):
    """A query sample, for the instance-IF of validation data (Thm 4.5, with the total derivative as Alg. 5 has it): the
    gradient is c_i D_λ w_j ℓ_j."""

    item_name = "query sample"

    def count(self, solved: SolvedBatch) -> int:
        return solved.batch.query.rows

    def gradient(self, solved: SolvedBatch, j: int) -> Tensor:
        query = solved.batch.query
        return solved.with_query(query._replace(w=query.w * _indicator(query.w, j))).weighted_gradient()

    def with_own_loss(self, solved: SolvedBatch, j: int) -> SolvedBatch:
        return solved.with_query(_only(solved.batch.query, j))

    def losses(self, solved: SolvedBatch) -> Tensor:
        return solved.query_losses()

    def gradients_along(self, solved: SolvedBatch, v: Tensor) -> Tensor:
        """One forward-mode derivative per row of ``v`` gives the products for all samples."""
        slopes = torch.stack([solved.query_slopes(row) for row in v], dim=2)
        return solved.batch.weight.view(-1, 1, 1) * slopes


class SupportGradient(ItemGradient):
    """A support sample, for the instance-IF of training data (Thm 4.6–4.8, Alg. 6): the gradient is c_i w_j ∂g_i/∂w_j.

    It equals −c_i D_λ P, where P is the first-order change of the task's outer loss without the sample. The paper's
    influence function has the sign of P, so removal adds it.
    """

    item_name = "support sample"
    sign = 1.0

    def count(self, solved: SolvedBatch) -> int:
        return solved.batch.support.rows

    def gradient(self, solved: SolvedBatch, j: int) -> Tensor:
        return solved.batch.weight.unsqueeze(-1) * solved.gradient_by_support(_indicator(solved.batch.support.w, j))

    def with_own_loss(self, solved: SolvedBatch, j: int) -> SolvedBatch:
        return solved.with_query(_only(solved.batch.support, j))

    def losses(self, solved: SolvedBatch) -> Tensor:
        return solved.support_losses()

    def gradients_along(self, solved: SolvedBatch, v: Tensor) -> Tensor:
        """One second derivative per row of ``v`` gives the products for all samples."""
        slopes = torch.stack([solved.support_slopes(row.expand(len(solved.batch.weight), -1)) for row in v], dim=2)
        return solved.batch.weight.view(-1, 1, 1) * slopes


class ResolvedSupportGradient(SupportGradient):
    """A support sample whose effect is a difference: c_i g_i minus the c_i g_i of the task adapted again without the
    sample.

    This takes one more inner solve per sample. On small support sets it predicts removal much better than the
    derivative.
    """

    def gradient(self, solved: SolvedBatch, j: int) -> Tensor:
        support = solved.batch.support
        without = support._replace(w=support.w * (1 - _indicator(support.w, j)))
        return solved.weighted_gradient() - solved.with_support(without).weighted_gradient()

    def gradients_along(self, solved: SolvedBatch, v: Tensor) -> Tensor:
        return ItemGradient.gradients_along(self, solved, v)


def _only(samples: Samples, j: int) -> Samples:
    """Sample ``j`` with weight 1, the others with weight 0."""
    return samples._replace(w=_indicator(samples.w, j))


def _indicator(like: Tensor, j: int) -> Tensor:
    """1 at sample ``j`` of each task, 0 at the other weights, shaped ``like`` ``[B, n + r]``."""
    chosen = torch.zeros_like(like)
    chosen[:, j] = 1
    return chosen
