"""Groups of tasks or samples: classes, samples of the data set, tasksets, or any other labelling."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import is_
from typing import Any

import torch
from torch import Tensor

from ...errors import ItemsError, RecordingError
from ...recording import RecordedTask
from ..edits import Edit, Place
from ..latest import Latest
from ..results.result import GroupScore, GroupScores, SampleScore, TaskScore
from ..run import RunAt
from .base import Items, Ranked, SingleItems, names_of
from .samples import QuerySamples, SetSamples, SupportSamples
from .tasks import Tasks

Grouping = Callable[[RecordedTask, "int | None"], Hashable]
"""``(task, sample) -> group``; the sample is None where tasks are grouped."""

By = str | Grouping
"""``"class"``, ``"index"``, ``"taskset"``, a column of the result's rows, or a function."""

Grouped = dict[Hashable, list[int]]
"""By group, the positions of its members among all members."""

MEMBERS: Mapping[str, Callable[[], SingleItems]] = {"task": Tasks, "query": QuerySamples, "support": SupportSamples}

NOT_GROUPS = {"rank", "loss", "score"}
"""Columns that are results."""


@dataclass(frozen=True)
class Groups(Items):
    """Groups of items. A group's score is the sum of its members' scores; removing it removes all of them.

    Attributes:
        single: the items that are grouped.
        by: the group of each: ``"class"`` and ``"index"`` (of a sample in the data set, over all tasks it occurs in),
            ``"taskset"``, a column of the members' rows, or a function ``(task, sample) -> group``.

    Raises:
        ValueError: ``by`` has another value.
    """

    single: SingleItems
    by: By
    _last: Latest[list[RecordedTask], Grouped] = field(
        default_factory=lambda: Latest(is_), init=False, repr=False, compare=False
    )

    what = "group"

    @classmethod
    def of(cls, members: str, by: By) -> Groups:
        """Groups of ``"task"``, ``"query"`` or ``"support"`` items."""
        if members not in MEMBERS:
            raise ValueError(f"of must be one of {sorted(MEMBERS)}, not {members!r}")
        return cls(MEMBERS[members](), by)

    def __post_init__(self) -> None:
        if not callable(self.by) and self.by not in self._words:
            raise ValueError(
                f"by must be one of {sorted(self._words)} or a function (task, sample) -> group, not {self.by!r}"
            )

    @property
    def _words(self) -> set[str]:
        columns = SampleScore if isinstance(self.members, SetSamples) else TaskScore
        own = {"class"} if isinstance(self.members, SetSamples) else set()
        return ({"taskset"} | own | set(columns.__dataclass_fields__)) - NOT_GROUPS

    @property
    def members(self) -> SingleItems:
        return self.single

    def resolved(self) -> Groups:
        return replace(self, single=self.members.resolved().members)

    # ---- labels ---------------------------------------------------------------------------------------------------

    def labels(self, run: RunAt) -> list[Hashable]:
        """The group of each member, in the order of the members' names.

        Raises:
            RecordingError: the recording does not say what is grouped by.
        """
        if callable(self.by):
            return [self.by(task, j) for task, j in self._each(run)]
        if self.by == "taskset":
            return [task.taskset for task, _ in self._each(run)]
        columns = self.members.columns(run)
        if self.by == "class":
            return [_class(task, about) for (task, _), about in zip(self._each(run), columns, strict=True)]
        return [_known(about[self.by], self.by) for about in columns]

    def _each(self, run: RunAt) -> Iterator[tuple[RecordedTask, int | None]]:
        single = isinstance(self.members, Tasks)
        for task in run.recorded:
            for j in range(self.members.count(task)):
                yield task, None if single else j

    def _grouped(self, run: RunAt) -> Grouped:
        return self._last.get(run.recorded, lambda: self._group(run))

    def _group(self, run: RunAt) -> Grouped:
        groups: dict[Hashable, list[int]] = {}
        for at, label in enumerate(self.labels(run)):
            groups.setdefault(label, []).append(at)
        return groups

    # ---- names ----------------------------------------------------------------------------------------------------

    def names(self, run: RunAt) -> list[Hashable]:
        return list(self._grouped(run))

    def places(self, run: RunAt, items: Hashable | Iterable[Hashable]) -> list[Place]:
        groups, places = self._grouped(run), self._all_places(run)
        names = names_of(items)
        single = isinstance(names, str) or not isinstance(names, Iterable)
        refs = [names] if single or (isinstance(names, Hashable) and names in groups) else list(names)
        found = [place for ref in refs for place in self._located(groups, places, ref)]
        if not found or len(set(refs)) < len(refs):
            raise ItemsError(f"name at least one {self.what}, each once, got {refs}")
        return found

    def _all_places(self, run: RunAt) -> list[Place]:
        counts = [self.members.count(task) for task in run.recorded]
        return [(position, j) for position, count in enumerate(counts) for j in range(count)]

    def _located(self, groups: Grouped, places: list[Place], ref: Hashable) -> list[Place]:
        if ref not in groups:
            known = ", ".join(map(repr, list(groups)[:8])) + (", …" if len(groups) > 8 else "")
            raise ItemsError(f"there is no group {ref!r}; the {len(groups)} groups are {known}")
        return [places[at] for at in groups[ref]]

    # ---- results --------------------------------------------------------------------------------------------------

    def scores(self, run: RunAt, by_task: Sequence[Tensor]) -> Tensor:
        return self._summed(run, torch.cat(list(by_task)))

    def losses(self, run: RunAt, by_task: Sequence[Tensor]) -> Tensor:
        sizes = torch.tensor([len(members) for members in self._grouped(run).values()])
        return self._summed(run, torch.cat(list(by_task)).unsqueeze(1))[:, 0] / sizes

    def _summed(self, run: RunAt, rows: Tensor) -> Tensor:
        """Rows of the members added up by group, ``[members, R] -> [groups, R]``."""
        return torch.stack([rows[members].sum(0) for members in self._grouped(run).values()])

    def columns(self, run: RunAt) -> list[dict[str, Any]]:
        return [{"group": group, "members": len(members)} for group, members in self._grouped(run).items()]

    def result(self, run: RunAt, ranked: Ranked) -> GroupScores:
        about = self.columns(run)
        rows = [
            GroupScore(rank=rank, loss=ranked.losses[at], score=ranked.scores[at], **about[at])
            for rank, at in enumerate(ranked.order, start=1)
        ]
        by = self.by if isinstance(self.by, str) else getattr(self.by, "__name__", "function")
        what = f"groups of {self.members.what}s by {by}"
        return GroupScores(what, rows, ranked.test_loss, ranked.notes, ranked.reading)

    def relabelling(self, run: RunAt, labels: Mapping[Any, Any]) -> Edit:
        raise ItemsError("groups have no labels: relabel single samples with QueryInfluence or SupportInfluence")


def _class(task: RecordedTask, about: Mapping[str, Any]) -> Hashable:
    """The data set's own label of a sample: a task numbers its classes in their order."""
    label = about["label"]
    if task.classes is None or not isinstance(label, int) or not 0 <= label < len(task.classes):
        raise RecordingError(
            f"the class of sample {about['sample']} of task {task.id} is unknown: its taskset does not say which of "
            "the data set's labels it served. Group by a function (task, sample) -> class"
        )
    return task.classes[label]


def _known(value: Hashable, column: str) -> Hashable:
    if value is None:
        raise RecordingError(f"the taskset does not say the {column} of what it served: group by something else")
    return value
