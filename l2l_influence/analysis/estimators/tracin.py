"""TracIn: similarity of gradients, added up over checkpoints of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ...bilevel.solved_tasks import SolvedBatch
from ...errors import InfluenceError
from ...recording.outer_steps.checkpoints import Checkpoint
from ..edits import Edit
from ..items import Items
from ..passes import Pass, Targets, Walk, each_task
from ..run import RunAt
from .base import Estimator
from .directions import DirectionalFit, Directions
from .gradient_similarity import GradientSimilarity, GradientSimilarityFit


class TracInFit(DirectionalFit["TracIn"]):
    """One part per checkpoint."""

    finds_stationarity = False

    @cached_property
    def parts(self) -> Sequence[RunAt]:
        return [self.run.run.at(state) for state, _ in self.estimator.checkpoints]

    @property
    def _rates(self) -> list[float]:
        return [rate for _, rate in self.estimator.checkpoints]

    def directions(self, items: Items, targets: Targets, part: int = 0) -> Directions:
        gradients, _ = targets.at(self.parts[part]).gradients()
        losses = targets.losses() if part == 0 else torch.zeros(len(gradients), dtype=torch.float64)
        return Directions(self._rates[part] * gradients, losses, self._note)

    def along(self, items: Items, solved: SolvedBatch, positions: Sequence[int], vectors: Tensor) -> Tensor:
        return -items.gradient.gradients_along(solved, vectors)

    def scores(self, items: Items, targets: Targets) -> Pass:
        found = self.directions(items, targets)
        total = self.walked(items, found.vectors)
        for part in range(1, len(self.parts)):
            total = _added(total, self.walked(items, self.directions(items, targets, part).vectors, part))
        return Pass.of(replace(total, losses=self._losses(items)), found.losses, self._note)

    def self_scores(self, items: Items) -> Pass:
        similar = [GradientSimilarityFit(GradientSimilarity(), part).self_scores(items) for part in self.parts]
        weighted = [[rate * row for row in each.scores] for each, rate in zip(similar, self._rates, strict=True)]
        sums = [torch.stack(rows).sum(0) for rows in zip(*weighted, strict=True)]
        losses = self._losses(items)
        residual = max(each.residual for each in similar)
        return Pass.of(Walk(sums, losses, residual), torch.cat(losses).mean(0, keepdim=True), self._note)

    def change(self, edit: Edit, residual: Tensor | None = None) -> Tensor:
        """Each checkpoint's step of gradient descent, with the edit's change of the gradient."""
        if residual is not None:
            raise self.refusal("correct_residual=True", "takes_residual")
        changes = [rate * edit.gradient_change(run)[0] for run, rate in zip(self.parts, self._rates, strict=True)]
        return -torch.stack(changes).sum(0)

    def _losses(self, items: Items) -> list[Tensor]:
        """Items' losses at λ itself, which need not be a checkpoint."""
        return each_task(self.run.solved_tasks, items.gradient.losses)

    @property
    def _note(self) -> str:
        return f"estimator: {self.estimator.name}, {len(self.estimator.checkpoints)} checkpoints"


def _added(one: Walk, other: Walk) -> Walk:
    scores = [a + b for a, b in zip(one.scores, other.scores, strict=True)]
    return replace(one, scores=scores, residual=max(one.residual, other.residual))


@dataclass(frozen=True, eq=False)
class TracIn(Estimator):
    """−Σ_c η_c ⟨g_test(λ_c), g_item(λ_c)⟩ over checkpoints λ_c with learning rates η_c (TracInCP, Pruthi et al., 2020).

    Positive = harmful: steps on the item raised the test loss (the paper's sign is the opposite). Each checkpoint
    stands for one step of gradient descent on L_Total; to stand for all steps up to the next checkpoint, η_c has to be
    their sum. A common factor of all η_c does not change rankings. Unit: the loss. Removal undoes the item's share of
    these steps: Δλ = Σ_c η_c g_item(λ_c).

    Args:
        checkpoints: ``(maml.state_dict(), learning rate)`` pairs, collected in the loop or by
            :class:`~l2l_influence.recording.outer_steps.checkpoints.Checkpoints`. Adam has no step size in this sense:
            take its learning rate as a convention.

    Raises:
        InfluenceError: there is no checkpoint.
    """

    name = "tracin"
    fitted = TracInFit
    reads_test_gradients = True

    checkpoints: Sequence[Checkpoint] = ()

    def __post_init__(self) -> None:
        if len(self.checkpoints) == 0:
            raise InfluenceError("TracIn needs at least one checkpoint: (maml.state_dict(), learning rate)")

    def reading(self, what: str, test_loss: float) -> str:
        return (
            "score = −Σ over checkpoints of learning rate · ⟨test task's gradient, the item's gradient⟩; positive = "
            "harmful; unit: the loss"
        )
