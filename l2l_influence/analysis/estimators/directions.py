"""Estimators whose score is −⟨feature of the item, direction of the target⟩."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...bilevel.solved_tasks import SolvedBatch
from ..items import Items
from ..passes import Pass, Targets, Walk, walk
from ..run import RunAt
from .base import EstimatorType, FittedEstimator


@dataclass(frozen=True)
class Directions:
    """The directions that items' features are multiplied with.

    Attributes:
        vectors: one per target, ``[R, K]``.
        losses: of the targets at λ, ``[R]``, float64.
        note: how the directions were computed.
    """

    vectors: Tensor
    losses: Tensor
    note: str


class DirectionalFit(FittedEstimator[EstimatorType]):
    """An estimator whose scores are products with one direction per target.

    Directions are computed once; then each task is scored by itself. So a score matrix can be written in shards, by a
    process that may be killed at any time. An estimator may have several parts, each at a λ of its own; scores add up
    over parts.

    Attributes:
        finds_stationarity: whether scoring computes the total gradients at λ, and so its stationarity.
    """

    finds_stationarity = True

    @property
    def parts(self) -> Sequence[RunAt]:
        """The runs whose tasks are scored, one per part."""
        return [self.run]

    @abstractmethod
    def directions(self, items: Items, targets: Targets, part: int = 0) -> Directions:
        """The directions of a part. The losses are read from the first part."""

    @abstractmethod
    def along(self, items: Items, solved: SolvedBatch, positions: Sequence[int], vectors: Tensor) -> Tensor:
        """Scores ``[B, count, R]`` of the tasks at ``positions``, solved at a part's λ, for its vectors ``[R, K]``."""

    def scores(self, items: Items, targets: Targets) -> Pass:
        found = self.directions(items, targets)
        return Pass.of(self.walked(items, found.vectors), found.losses, found.note)

    def walked(self, items: Items, vectors: Tensor, part: int = 0) -> Walk:
        """One pass over the tasks of a part."""

        def measure(solved: SolvedBatch) -> Tensor:
            return self.along(items, solved, solved.batch.index, vectors)

        run = self.parts[part]
        return walk(run, items.gradient, measure, alone=self.solves_for_items, total_gradients=self.finds_stationarity)

    @property
    def solves_for_items(self) -> bool:
        """Whether scoring a task solves outer systems, which processes can only do together."""
        return False


class GradientFit(DirectionalFit[EstimatorType]):
    """Scores −⟨g_item, A g_target⟩, g being derivatives of outer losses by λ. By default A is the identity."""

    def linearised(self, solved: SolvedBatch) -> SolvedBatch:
        """The tasks as the estimator differentiates them."""
        return solved

    def inverted(self, items: Items, rows: Tensor) -> tuple[Tensor, str]:
        """A times each row, ``[R, P]``, and how that was computed."""
        return rows, f"estimator: {self.estimator.name}"

    def inverted_of_items(self, items: Items, rows: Tensor, solved: SolvedBatch) -> tuple[Tensor, str]:
        """As :meth:`inverted`, for one item of each solved task."""
        return self.inverted(items, rows)

    def directions(self, items: Items, targets: Targets, part: int = 0) -> Directions:
        gradients, losses = targets.at(self.run).gradients()
        vectors, note = self.inverted(items, self.features(gradients))
        return Directions(vectors, losses, note)

    def along(self, items: Items, solved: SolvedBatch, positions: Sequence[int], vectors: Tensor) -> Tensor:
        return -items.gradient.gradients_along(self.linearised(solved), vectors)

    def features(self, gradients: Tensor) -> Tensor:
        """φ: the features of gradients, of items as of targets, ``[B, P] -> [B, K]``."""
        return gradients

    def self_scores(self, items: Items) -> Pass:
        gradient, notes = items.gradient, [""]

        def measure(solved: SolvedBatch) -> Tensor:
            seen, each = self.linearised(solved), []
            for j in range(gradient.count(seen)):
                rows, notes[0] = self.inverted_of_items(items, self.features(gradient.gradient(seen, j)), solved)
                each.append(rows * self.features(gradient.with_own_loss(seen, j).total_gradient))
            return -torch.stack(each, dim=1).sum(-1, keepdim=True)

        walked = walk(self.run, gradient, measure, alone=True)
        return Pass.of(walked, torch.cat(walked.losses).mean(0, keepdim=True), *notes)


class FeatureFit(GradientFit[EstimatorType]):
    """Scores −⟨φ(g_item), A φ(g_target)⟩ for a function φ of gradients, :meth:`features`."""

    def along(self, items: Items, solved: SolvedBatch, positions: Sequence[int], vectors: Tensor) -> Tensor:
        gradient = items.gradient
        each = [self.features(gradient.gradient(solved, j)) for j in range(gradient.count(solved))]
        features = torch.stack(each, dim=1)
        return -features @ vectors.T.to(features)
