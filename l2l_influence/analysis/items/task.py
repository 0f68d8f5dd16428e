"""The influence of whole training tasks (task-IF, Thm 4.3; scores, Def. 5.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from learn2learn.data import Taskset
from torch import Tensor

from ...bilevel.item_gradients import TaskGradient
from ...errors import TaskShapeError
from ...recording import RecordedTask
from ..estimators.scoring import Found, score, score_leaving_out
from ..problem.data import Split
from ..problem.snapshot import Snapshot
from ..results.result import TaskScore, TaskScores
from .items import ItemInfluence


class TaskInfluence(ItemInfluence[int, TaskScores]):
    """Which training tasks made the meta-parameters what they are, and which of them hurt (the paper's task-IF).

    Tasks are named by their ids. See :class:`~l2l_influence.hooks.hook.Hook` and
    :class:`~l2l_influence.analysis.estimators.curved.CurvedHook` for the arguments.
    """

    _level = TaskGradient()

    def scores(
        self,
        test_tasks: Taskset | Sequence[Any],
        num_tasks: int | None = None,
        *,
        split: Split | None = None,
        seed: int = 0,
        exact: bool = True,
        leave_one_out: bool = False,
    ) -> TaskScores:
        """IS_k = −⟨(δ_o I + H)⁻¹ g_test, c_k g_k⟩ of every training task (Def. 5.2), by one outer solve in all.

        Positive = harmful: the mean test loss is predicted to fall by the score if the task is removed and λ retrained.

        Args:
            test_tasks: a learn2learn taskset (read without using random numbers of yours), or a sequence of ``(x, y)``
                batches or ``((x, y), (x, y))`` support and query pairs.
            num_tasks: how many of them; all of a sequence, 100 of a taskset unless given.
            split: ``split(x, y) -> ((x, y), (x, y))`` for a taskset's batches; as in training unless given.
            seed: of the tasks drawn from a taskset that has not sampled them yet.
            exact: take the test tasks' total gradient; False for ∂_θ L_O alone, as the paper prints the score.
            leave_one_out: solve with each task's own part of the Hessian left out, δ_o I + H − c_k H_k: closer to
                removal where the problem is convex, at the cost of a solve a task; an error where that is indefinite.
        """
        find = score_leaving_out if leave_one_out else score
        return self._scores(find, self._level, test_tasks, num_tasks, split, seed, exact)

    def remove(
        self, items: int | Iterable[int], *, correct_residual: bool = False, leave_one_out: bool = False
    ) -> dict[str, Tensor]:
        """The learner's state_dict with λ* − Σ IF_k: where training without these tasks is predicted to end.

        ``maml.load_state_dict(edited)`` applies it; ``maml`` itself is left as it is.

        Args:
            items: ids, each once.
            correct_residual: also take the step to the minimum that λ* has not reached, −(δ_o I + H)⁻¹ D_λ L_Total
                (see :meth:`stationarity`); the edit is then to be compared with training to the end.
            leave_one_out: solve with the removed tasks' part of the Hessian left out.
        """
        outer = self._outer()
        located = self._located(outer.study, items)
        without = [[position for position, _ in located]] if leave_one_out else None
        return self._moved(outer, -outer.gradient(self._level, located), correct_residual, without)

    def add(
        self, tasks: Taskset | Sequence[Any], num_tasks: int | None = None, *, split: Split | None = None, seed: int = 0
    ) -> dict[str, Tensor]:
        """The learner's state_dict with λ* + Σ IF_new: where training with these tasks as well is predicted to end.

        Each counts as much as the average training task. The arguments are those of :meth:`scores`.
        """
        outer = self._outer()
        new = outer.study.test_problem(tasks, num_tasks, split, seed)
        change = new.lam.new_zeros(1, new.lam.numel())
        for solved in new.microbatches("new tasks"):
            change += outer.hessian.curvature.linearised(solved).weighted_gradient().sum(0)
        return self._moved(outer, new.settings.ranks.sum(change))

    def relabel(self, labels: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """The learner's state_dict if these tasks had had other labels: remove them, add them relabelled.

        Args:
            labels: by task id, labels of all rows of the batch that the taskset served.

        Raises:
            TaskShapeError: labels are too few, of another kind than those served, or no classes of the model.
            ItemsError: there is no task.
        """
        self._require_labels(labels)
        outer = self._outer()
        change = torch.zeros_like(outer.study.solved_tasks.lam).unsqueeze(0)
        for task, y in labels.items():
            position = outer.study.position(task)
            recorded = outer.study.recorded[position]
            rows = _as_served(recorded, y)
            support, query = rows[list(recorded.support_rows)], rows[list(recorded.query_rows)]
            change += self._relabelled(outer, position, dict(enumerate(support)), dict(enumerate(query)))
        return self._moved(outer, change)

    def _refs(self, study: Snapshot, position: int, count: int) -> list[int]:
        return [study.recorded[position].id]

    def _count(self, task: RecordedTask) -> int:
        return 1

    def _locate(self, study: Snapshot, ref: int) -> tuple[int, int]:
        return study.position(ref), 0

    def _listed(self, items: int | Iterable[int]) -> list[int]:
        return list(items) if isinstance(items, Iterable) else [items]

    def _result(
        self, study: Snapshot, found: Found, order: list[int], loss: float, notes: list[str], reading: str | None = None
    ) -> TaskScores:
        rows = []
        for rank, at in enumerate(order, start=1):
            task = study.recorded[at]
            own, value = float(found.losses[at]), float(found.scores[at][0, 0])
            rows.append(TaskScore(rank, task.id, task.key, task.classes, task.times_trained, own, value))
        return TaskScores(rows, loss, notes, reading)


def _as_served(task: RecordedTask, y: Tensor) -> Tensor:
    """Labels for all rows that the taskset served."""
    count = len(task.read()[1])
    if len(y) != count:
        raise TaskShapeError(f"task {task.id} was served with {count} rows: it needs as many labels, got {len(y)}")
    return torch.as_tensor(y)
