"""Single samples of query and support sets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from operator import index
from typing import Any

from torch import Tensor

from ...bilevel.item_gradients import ItemGradient, QueryGradient
from ...bilevel.problem import REMOVALS
from ...bilevel.task import Pair
from ...errors import InfluenceError
from ...recording import RecordedTask
from ..edits import Edit, NewLabels, Relabelling
from ..labels import Labels
from ..results.result import SampleScore, SampleScores
from ..run import RunAt
from .base import Ranked, SingleItems

Sample = tuple[int, int]
"""(task's id, position in its query or support set)."""


class SetSamples(SingleItems):
    """Samples of one set of each task, named ``(task, sample)``: the task's id, and the position in the set."""

    @abstractmethod
    def rows(self, task: RecordedTask) -> tuple[int, ...]:
        """Rows of the set in the batch that the taskset served."""

    @abstractmethod
    def data(self, task: RecordedTask) -> Pair:
        """The set's ``(x, y)``."""

    @abstractmethod
    def new_labels(self, labels: Labels) -> NewLabels:
        """Labels by position in the set."""

    def count(self, task: RecordedTask) -> int:
        return len(self.rows(task))

    @staticmethod
    def refs(task: int, count: int) -> list[Sample]:
        return [(task, j) for j in range(count)]

    @staticmethod
    def parts(ref: Sample) -> Sample:
        try:
            task, j = (index(part) for part in ref)
        except (TypeError, ValueError):
            raise InfluenceError(f"a sample is named by a pair of whole numbers, (task, sample); got {ref!r}") from None
        return task, j

    def listed(self, items: Sample | Iterable[Sample]) -> list[Sample]:
        return [items] if _is_one(items) else list(items)  # type: ignore[list-item, arg-type]

    def columns(self, run: RunAt) -> list[dict[str, Any]]:
        return [column for task in run.recorded for column in self._columns(task)]

    def _columns(self, task: RecordedTask) -> list[dict[str, Any]]:
        labels = self.data(task)[1]
        return [
            {
                "task": task.id,
                "sample": j,
                "row": row,
                "index": None if task.indices is None else task.indices[row],
                "label": _label(labels[j]),
                "times_trained": task.times_trained,
            }
            for j, row in enumerate(self.rows(task))
        ]

    def result(self, run: RunAt, ranked: Ranked) -> SampleScores:
        about = self.columns(run)
        rows = [
            SampleScore(rank=rank, loss=ranked.losses[at], score=ranked.scores[at], **about[at])
            for rank, at in enumerate(ranked.order, start=1)
        ]
        return SampleScores(f"{self.what}s", rows, ranked.test_loss, ranked.notes, ranked.reading)

    def relabelling(self, run: RunAt, labels: Mapping[Sample, Any]) -> Edit:
        """``labels``: the new label of each ``(task, sample)``."""
        self.require_labels(labels)
        by_task: dict[int, dict[int, Any]] = {}
        for sample, label in labels.items():
            position, j = self.locate(run, sample)
            by_task.setdefault(position, {})[j] = label
        return Relabelling({position: self.new_labels(some) for position, some in by_task.items()})


@dataclass(frozen=True)
class QuerySamples(SetSamples):
    """Query samples: the paper's validation instances."""

    what = "query sample"

    @property
    def gradient(self) -> ItemGradient:
        return QueryGradient()

    def rows(self, task: RecordedTask) -> tuple[int, ...]:
        return task.query_rows

    def data(self, task: RecordedTask) -> Pair:
        return task.query

    def new_labels(self, labels: Labels) -> NewLabels:
        return NewLabels(query=labels)


@dataclass(frozen=True)
class SupportSamples(SetSamples):
    """Support samples: the paper's training instances.

    Attributes:
        removal: ``"closed-form"``, the paper's derivative by the sample's weight; or ``"resolve"``, the difference
            that adapting the task anew without the sample makes.
    """

    removal: str = "closed-form"

    what = "support sample"

    @property
    def gradient(self) -> ItemGradient:
        return REMOVALS[self.removal]

    def resolved(self) -> SupportSamples:
        return SupportSamples("resolve")

    def rows(self, task: RecordedTask) -> tuple[int, ...]:
        return task.support_rows

    def data(self, task: RecordedTask) -> Pair:
        return task.support

    def new_labels(self, labels: Labels) -> NewLabels:
        return NewLabels(support=labels)


def _is_one(items: Sample | Iterable[Sample]) -> bool:
    """Whether it names one sample. A list names several: ``[3, 17]`` are two tasks, and no sample."""
    return not isinstance(items, Iterable) or (isinstance(items, tuple) and isinstance(next(iter(items), ()), Integral))


def _label(y: Tensor) -> Any:
    return y.item() if y.numel() == 1 else tuple(y.flatten().tolist())
