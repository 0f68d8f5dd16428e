"""Whole training tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from torch import Tensor

from ...bilevel.item_gradients import ItemGradient, TaskGradient
from ...errors import InfluenceError, TaskShapeError
from ...recording import RecordedTask
from ..edits import Edit, NewLabels, Relabelling
from ..results.result import TaskScore, TaskScores
from ..run import RunAt
from .base import Ranked, SingleItems


@dataclass(frozen=True)
class Tasks(SingleItems):
    """Training tasks, named by their ids."""

    what = "task"

    @property
    def gradient(self) -> ItemGradient:
        return TaskGradient()

    def count(self, task: RecordedTask) -> int:
        return 1

    @staticmethod
    def refs(task: int, count: int) -> list[int]:
        return [task]

    @staticmethod
    def parts(ref: int) -> tuple[int, int]:
        return _id(ref), 0

    def listed(self, items: int | Iterable[int]) -> list[int]:
        return list(items) if isinstance(items, Iterable) else [items]

    def columns(self, run: RunAt) -> list[dict[str, Any]]:
        return [
            {"task": task.id, "key": task.key, "classes": task.classes, "times_trained": task.times_trained}
            for task in run.recorded
        ]

    def result(self, run: RunAt, ranked: Ranked) -> TaskScores:
        about = self.columns(run)
        rows = [
            TaskScore(rank=rank, loss=ranked.losses[at], score=ranked.scores[at], **about[at])
            for rank, at in enumerate(ranked.order, start=1)
        ]
        return TaskScores(rows, ranked.test_loss, ranked.notes, ranked.reading)

    def relabelling(self, run: RunAt, labels: Mapping[int, Tensor]) -> Edit:
        """``labels``: by task id, labels of all rows of the batch that the taskset served."""
        self.require_labels(labels)
        return Relabelling({run.position(task): _by_set(run, task, y) for task, y in labels.items()})


def _id(ref: Any) -> int:
    try:
        return index(ref)
    except TypeError:
        raise InfluenceError(f"a task is named by its id, a whole number; got {ref!r}") from None


def _by_set(run: RunAt, task: int, y: Tensor) -> NewLabels:
    recorded = run.recorded[run.position(task)]
    rows = _as_served(recorded, y)
    support, query = rows[list(recorded.support_rows)], rows[list(recorded.query_rows)]
    return NewLabels(dict(enumerate(support)), dict(enumerate(query)))


def _as_served(task: RecordedTask, y: Tensor) -> Tensor:
    """Labels for all rows that the taskset served."""
    count = len(task.read()[1])
    if len(y) != count:
        raise TaskShapeError(f"task {task.id} was served with {count} rows: it needs as many labels, got {len(y)}")
    return torch.as_tensor(y)
