"""What baselines share: they read a recorded run as hooks do, and answer in the same form by simpler means."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from learn2learn.algorithms.base_learner import BaseLearner
from learn2learn.data import Taskset
from torch import Tensor

from ....bilevel.item_gradients import ItemGradient
from ....bilevel.solved_tasks import SolvedBatch, SolvedTasks
from ....hooks import QueryInfluence, SupportInfluence, TaskInfluence
from ....hooks.hook import Hook
from ....recording import Study
from ...items.items import ItemInfluence
from ...problem.data import Split
from ...problem.inner_notes import inner_notes
from ...problem.snapshot import Snapshot
from ...results.result import Scores
from ..collected import PackedTensors
from ..scoring import Found

LevelName = Literal["task", "query", "support"]

HOOKS: Mapping[str, type[ItemInfluence[Any, Any]]] = {
    "task": TaskInfluence,
    "query": QueryInfluence,
    "support": SupportInfluence,
}
"""Whose items are whose."""


def hook_class(level: str) -> type[ItemInfluence[Any, Any]]:
    """The hook that scores items of that level."""
    if level not in HOOKS:
        raise ValueError(f"level must be one of {sorted(HOOKS)}, not {level!r}")
    return HOOKS[level]


class Baseline(Hook, ABC):
    """Scores of training tasks or samples by something simpler than an influence function.

    Rows, names, signs and arguments are those of :class:`~l2l_influence.TaskInfluence`,
    :class:`~l2l_influence.QueryInfluence` and :class:`~l2l_influence.SupportInfluence`: positive = harmful. What a
    score is, and in which unit, is said by each baseline, and by ``reading`` of its results.

    Formulas are about a test task t with total gradient g_t = D_λ L_O^t, and about an item's *pull*, the derivative of
    D_λ L_Total by the item's relative weight: c_i g_i of a task, c_i D_λ w_j ℓ_j of a query sample,
    c_i w_j ∂g_i/∂w_j of a support sample.

    Args:
        maml, tasks, loss: see :class:`~l2l_influence.hooks.hook.Hook`.
        level: the items to score: ``"task"``, ``"query"`` samples or ``"support"`` samples.
        options: the other arguments of :class:`~l2l_influence.hooks.hook.Hook`.
    """

    reading: ClassVar[str]
    """What a score means, with its sign and unit."""

    def __init__(
        self,
        maml: BaseLearner | Study,
        tasks: Taskset | None = None,
        loss: Callable[..., Tensor] | None = None,
        *,
        level: LevelName = "task",
        **options: Any,
    ) -> None:
        super().__init__(maml, tasks, loss, **options)
        self._items = hook_class(level)(maml, tasks, loss)
        self._level = self._items._level

    # ---- what a subclass says ---------------------------------------------------------------------------------

    @abstractmethod
    def _measure(self, study: Snapshot, test: SolvedTasks) -> list[Tensor]:
        """Scores of each training task's items on each test task: ``[count, T]``, float64, on the CPU."""

    def _notes(self) -> list[str]:
        """What else a reader of the scores should know, a line each."""
        return []

    # ---- what a user asks -------------------------------------------------------------------------------------

    def scores(
        self,
        test_tasks: Taskset | Sequence[Any],
        num_tasks: int | None = None,
        *,
        split: Split | None = None,
        seed: int = 0,
    ) -> Scores[Any]:
        """The mean over test tasks of :meth:`score_matrix`, as ranked rows, most harmful first.

        The arguments are those of :meth:`l2l_influence.TaskInfluence.scores`.
        """
        study = self._study()
        test = study.test_problem(test_tasks, num_tasks, split, seed)
        means = [matrix.mean(1, keepdim=True) for matrix in self._measure(study, test)]
        found = Found(means, *self._losses_and_residual(study.solved_tasks))
        order = torch.cat(means)[:, 0].argsort(descending=True, stable=True).tolist()
        test_loss = float(outer_losses(test).mean())
        return self._items._result(study, found, order, test_loss, self._all_notes(study, test, found), self.reading)

    def score_matrix(
        self,
        test_tasks: Taskset | Sequence[Any],
        num_tasks: int | None = None,
        *,
        split: Split | None = None,
        seed: int = 0,
    ) -> tuple[list[Any], Tensor]:
        """Scores on each test task by itself: the items' names, and scores of shape ``(items, test)``, float64.

        The arguments are those of :meth:`scores`.
        """
        study = self._study()
        found = self._measure(study, study.test_problem(test_tasks, num_tasks, split, seed))
        names = [name for solved, part in enumerate(found) for name in self._items._refs(study, solved, len(part))]
        return names, torch.cat(found)

    def _losses_and_residual(self, solved_tasks: SolvedTasks) -> tuple[list[Tensor], float]:
        """Each task's items' own losses, ``[count]``, and the largest inner residual, by one pass."""

        def measure(solved: SolvedBatch) -> Tensor:
            return torch.cat([solved.solution.residual.unsqueeze(1), self._level.losses(solved)], dim=1)

        found = each_task(solved_tasks, measure)
        return [row[1:] for row in found], max(float(row[0]) for row in found)

    def _all_notes(self, study: Snapshot, test: SolvedTasks, found: Found) -> list[str]:
        return [
            f"baseline: {type(self).__name__}",
            *self._notes(),
            *inner_notes(study, found.residual),
            f"test tasks: {len(test.tasks)}",
            f"recording: {self._run.recording.describe()}",
        ]


def each_task(solved_tasks: SolvedTasks, measure: Callable[[SolvedBatch], Tensor]) -> list[Tensor]:
    """One pass: the rows of ``measure(batch)``, ``[B, ...]``, by the tasks' positions, float64 on the CPU."""
    found = PackedTensors(len(solved_tasks.tasks))
    for solved in solved_tasks.microbatches("baseline"):
        found.put(solved.batch.index, measure(solved).detach())
    return solved_tasks.settings.ranks.gather(found.each())


def outer_losses(test: SolvedTasks) -> Tensor:
    """L_O of each test task, ``[T]``, float64."""
    return torch.stack(each_task(test, lambda solved: solved.outer_loss()))


def each_gradient(level: ItemGradient, solved: SolvedBatch, of: Callable[[Tensor], Tensor]) -> Tensor:
    """``of(pull)``, ``[B, P] -> [B, ...]``, of all items: ``[B, count, ...]``."""
    return torch.stack([of(level.gradient(solved, j)) for j in range(level.count(solved))], dim=1)
