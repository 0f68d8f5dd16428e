"""What can be taken away from a bilevel problem: a whole task, a query sample, a support sample.

All that an influence function needs to know of an item is its *pull*: the derivative of D_λ L_Total by the item's
relative weight 1 + ε. Then dλ*/dε = −(δ_o I + H)⁻¹ pull, and removal (ε = −1) moves λ* by +(δ_o I + H)⁻¹ pull to first
order, whatever the item. A new kind of item is a new :class:`Level`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from .solved_tasks import SolvedBatch
from .task import Samples


class ItemGradient(ABC):
    """Items of one kind; task i has ``count`` of them, numbered j.

    Attributes:
        what: an item's name, in messages.
        sign: the paper's influence function is ``sign · (δ_o I + H)⁻¹ pull``: −1, but +1 for support samples.
    """

    item_name: ClassVar[str]
    sign: ClassVar[float] = -1.0

    @abstractmethod
    def count(self, solved: SolvedBatch) -> int:
        """How many items each task of the batch has."""

    @abstractmethod
    def gradient(self, solved: SolvedBatch, j: int) -> Tensor:
        """D_λ ∂L_Total/∂ε of item ``j`` of each task, ``[B, P]``."""

    @abstractmethod
    def with_own_loss(self, solved: SolvedBatch, j: int) -> SolvedBatch:
        """The batch with item ``j``'s own loss as the outer loss; a sample's without its weight."""

    @abstractmethod
    def losses(self, solved: SolvedBatch) -> Tensor:
        """Each item's own loss after adaptation, ``[B, count]``; a sample's without its weight."""

    def gradients_along(self, solved: SolvedBatch, v: Tensor) -> Tensor:
        """⟨pull, v⟩ of all items for each row of ``v``: ``[R, P] -> [B, count, R]``."""
        return torch.stack([self.gradient(solved, j) @ v.T for j in range(self.count(solved))], dim=1)

    def influence(self, solved_gradient: Tensor) -> Tensor:
        """The paper's influence function from ``(δ_o I + H)⁻¹ pull``."""
        return self.sign * solved_gradient


class TaskGradient(ItemGradient):
    """task-IF (Thm 4.3): the pull is c_i g_i."""

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
    """instance-IF of validation data (Thm 4.5, with the total derivative as Alg. 5 has it): c_i D_λ w_j ℓ_j."""

    item_name = "query sample"

    def count(self, solved: SolvedBatch) -> int:
        return solved.batch.query.w.shape[1]

    def gradient(self, solved: SolvedBatch, j: int) -> Tensor:
        query = solved.batch.query
        return solved.with_query(query._replace(w=query.w * _indicator(query.w, j))).weighted_gradient()

    def with_own_loss(self, solved: SolvedBatch, j: int) -> SolvedBatch:
        return solved.with_query(_only(solved.batch.query, j))

    def losses(self, solved: SolvedBatch) -> Tensor:
        return solved.query_losses()

    def gradients_along(self, solved: SolvedBatch, v: Tensor) -> Tensor:
        """One forward derivative a row, for all samples at once."""
        slopes = torch.stack([solved.query_slopes(row) for row in v], dim=2)
        return solved.batch.weight.view(-1, 1, 1) * slopes


class SupportGradient(ItemGradient):
    """instance-IF of training data (Thm 4.6–4.8, Alg. 6): c_i w_j ∂g_i/∂w_j = −c_i D_λ P, P being the first-order
    change of the task's outer loss without the sample. The paper's sign is that of P, so removal adds it."""

    item_name = "support sample"
    sign = 1.0

    def count(self, solved: SolvedBatch) -> int:
        return solved.batch.support.w.shape[1]

    def gradient(self, solved: SolvedBatch, j: int) -> Tensor:
        return solved.batch.weight.unsqueeze(-1) * solved.gradient_by_support(_indicator(solved.batch.support.w, j))

    def with_own_loss(self, solved: SolvedBatch, j: int) -> SolvedBatch:
        return solved.with_query(_only(solved.batch.support, j))

    def losses(self, solved: SolvedBatch) -> Tensor:
        return solved.support_losses()

    def gradients_along(self, solved: SolvedBatch, v: Tensor) -> Tensor:
        """One second derivative a row, for all samples at once."""
        slopes = torch.stack([solved.support_slopes(row.expand(len(solved.batch.weight), -1)) for row in v], dim=2)
        return solved.batch.weight.view(-1, 1, 1) * slopes


class ResolvedSupportGradient(SupportGradient):
    """The same by difference: the change of c_i g_i when the task is adapted anew without the sample, sign reversed.

    One more inner solve a sample; on small support sets much closer to what removal does.
    """

    def gradient(self, solved: SolvedBatch, j: int) -> Tensor:
        support = solved.batch.support
        without = support._replace(w=support.w * (1 - _indicator(support.w, j)))
        return solved.weighted_gradient() - solved.with_support(without).weighted_gradient()

    def gradients_along(self, solved: SolvedBatch, v: Tensor) -> Tensor:
        return ItemGradient.gradients_along(self, solved, v)


def _only(samples: Samples, j: int) -> Samples:
    """Sample ``j`` at weight 1, the others at 0."""
    return samples._replace(w=_indicator(samples.w, j))


def _indicator(like: Tensor, j: int) -> Tensor:
    """1 at sample ``j`` of each task, 0 at the others, shaped ``like`` ``[B, n]``."""
    chosen = torch.zeros_like(like)
    chosen[:, j] = 1
    return chosen
