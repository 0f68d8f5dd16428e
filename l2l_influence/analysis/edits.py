"""Changes of the training data: items removed, samples relabelled, tasks added."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..bilevel import Task
from ..bilevel.item_gradients import ItemGradient, TaskGradient
from ..bilevel.solved_tasks import SolvedBatch
from .labels import Labels, with_labels
from .run import RunAt

Place = tuple[int, int]
"""An item by (position of its task among the training tasks, number of the item in the task)."""

Linearise = Callable[[SolvedBatch], SolvedBatch]
"""How an estimator differentiates tasks; see :meth:`~l2l_influence.bilevel.hessians.Curvature.linearised`."""


def unchanged(solved: SolvedBatch) -> SolvedBatch:
    """Differentiates tasks as they were solved."""
    return solved


class Edit(ABC):
    """A change of the training data, which changes D_λ L_Total at every λ."""

    @abstractmethod
    def gradient_change(self, run: RunAt, linearise: Linearise = unchanged) -> Tensor:
        """The change of D_λ L_Total at the λ of ``run``, ``[1, P]``."""

    @property
    def removed_tasks(self) -> list[int]:
        """Positions of the training tasks that are no longer trained on."""
        return []


@dataclass(frozen=True)
class Removal(Edit):
    """Items taken out of the training data.

    Attributes:
        gradient: of the items.
        places: of each item, the position of its task and the item's number in the task.
    """

    gradient: ItemGradient
    places: Sequence[Place]

    def gradient_change(self, run: RunAt, linearise: Linearise = unchanged) -> Tensor:
        return -self.gradient_sum(run, linearise)

    def gradient_sum(self, run: RunAt, linearise: Linearise = unchanged) -> Tensor:
        """The sum of the items' gradients, ``[1, P]``."""
        total, by_task = _zero(run), dict[int, list[int]]()
        for position, j in self.places:
            by_task.setdefault(position, []).append(j)
        for position, items in by_task.items():
            solved = linearise(run.solved_tasks.one(position))
            for j in items:
                total += self.gradient.gradient(solved, j)
        return total

    @property
    def removed_tasks(self) -> list[int]:
        return [position for position, _ in self.places] if isinstance(self.gradient, TaskGradient) else []


@dataclass(frozen=True)
class NewLabels:
    """New labels of one task, by position in its support and in its query set."""

    support: Labels = field(default_factory=dict)
    query: Labels = field(default_factory=dict)


@dataclass(frozen=True)
class Relabelling(Edit):
    """Samples with other labels: they are removed and added again, relabelled.

    Attributes:
        labels: by position of the task.
    """

    labels: Mapping[int, NewLabels]

    def gradient_change(self, run: RunAt, linearise: Linearise = unchanged) -> Tensor:
        total = _zero(run)
        for position, labels in self.labels.items():
            total += _relabelled(linearise(run.solved_tasks.one(position)), labels, run.output_shape)
        return total


@dataclass(frozen=True)
class Addition(Edit):
    """Further training tasks, each counting as much as the average one."""

    tasks: Sequence[Task]

    def gradient_change(self, run: RunAt, linearise: Linearise = unchanged) -> Tensor:
        total, added = _zero(run), run.with_tasks(self.tasks)
        for solved in added.microbatches("new tasks"):
            total += linearise(solved).weighted_gradient().sum(0)
        return added.settings.ranks.sum(total)


def _zero(run: RunAt) -> Tensor:
    return torch.zeros_like(run.solved_tasks.lam).unsqueeze(0)


def _relabelled(solved: SolvedBatch, labels: NewLabels, outputs: torch.Size) -> Tensor:
    """The change of c_i g_i of a task under new labels, ``[1, P]``."""
    anew = solved.with_query(with_labels(solved.batch.query, labels.query, outputs))
    if labels.support:
        anew = anew.with_support(with_labels(solved.batch.support, labels.support, outputs))
    return anew.weighted_gradient() - solved.weighted_gradient()
