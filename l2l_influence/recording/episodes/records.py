"""Task records: the sum of all episodes, with one record for each task and counts of what fits no task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from learn2learn.data.transforms import LoadData
from torch import Tensor, nn

from ..options import RecordingOptions
from ..tasksets.reading import Source
from ..tasksets.served import Identity
from .clone_log import CloneLog, Forward
from .matching import Ambiguity, Match, foreign, match
from .reservoir import Reservoir
from .task import EpisodeFacts, TaskName

ENOUGH_REPEATS = 16
"""A taskset that augments at random may repeat a task's data by chance, but not so often and without exception."""


@dataclass(eq=False, slots=True)
class TaskRecord:
    """The episodes of one task.

    Attributes:
        source: where the data can be read again.
        first: time when the task was first served.
        name: which task it is.
        facts, bodies: of the last episode (of the last that trained, if any did).
        times_seen, times_trained: numbers of episodes.
    """

    source: Source
    first: int
    name: TaskName
    facts: EpisodeFacts
    bodies: tuple[nn.Module, ...]
    times_seen: int = 0
    times_trained: int = 0

    @classmethod
    def of(cls, found: Match) -> TaskRecord:
        """A record without episodes."""
        served, source = found.served, Source.of(found.served)
        classes = _classes(source.taskset, served.indices, served.content.labels)
        name = TaskName(taskset=served.taskset_number, key=served.key, indices=served.indices, classes=classes)
        return cls(source, served.first, name, found.facts, found.bodies)

    def add(self, log: CloneLog, found: Match) -> bool:
        """Count one episode; returns whether the record now describes it."""
        self.first = min(self.first, found.served.first)
        self.times_seen += 1
        self.times_trained += log.trained
        latest = log.trained or not self.times_trained
        if latest:
            self._take(found)
        return latest

    def _take(self, found: Match) -> None:
        if self.source.fingerprint != found.served.content.fingerprint:
            self.source = replace(self.source, fingerprint=found.served.content.fingerprint)
        self.facts, self.bodies = found.facts, found.bodies


@dataclass
class TaskRecords:
    """Records by task, in order of arrival, and counts of what fits no task.

    Attributes:
        records: by identity of the task.
        foreign: shapes of unknown input that was trained on.
        partial: shapes of input of which the losses used some rows, unknown which.
        ambiguous: pairs of tasks that both fit an episode that trained.
        surplus: number of episodes that trained, of tasks that were removed.
        reservoir: chooses the tasks to remove, once there are too many.
        repeats: by taskset, how often it served a task's data again; -1 if it once served different data.
        episodes: number of episodes.
        remarks: what a reader of the recording should know, with counts.
    """

    records: dict[Identity, TaskRecord] = field(default_factory=dict)
    foreign: Counter[str] = field(default_factory=Counter)
    partial: Counter[str] = field(default_factory=Counter)
    ambiguous: list[tuple[str, str]] = field(default_factory=list)
    surplus: int = 0
    reservoir: Reservoir | None = None
    repeats: dict[int, int] = field(default_factory=dict)
    episodes: int = 0
    remarks: Counter[str] = field(default_factory=Counter)

    def copy(self) -> TaskRecords:
        """An independent copy."""
        records = {identity: replace(record) for identity, record in self.records.items()}
        return replace(
            self,
            records=records,
            foreign=self.foreign.copy(),
            partial=self.partial.copy(),
            ambiguous=list(self.ambiguous),
            reservoir=None if self.reservoir is None else self.reservoir.copy(),
            repeats=dict(self.repeats),
            remarks=self.remarks.copy(),
        )

    @property
    def sampled(self) -> bool:
        """True if tasks that trained were removed, and the recorded ones are a uniform sample."""
        return self.surplus > 0 and self.reservoir is not None and self.reservoir.uniform

    @property
    def stands_for(self) -> float:
        """Number of episodes that trained for each one that is recorded."""
        recorded = sum([record.times_trained for record in self.records.values()])
        return (recorded + self.surplus) / recorded if self.surplus else 1.0

    def gives_back(self, identity: Identity) -> bool:
        """True if the taskset can give a task's data again, and has proved often enough that they are the same."""
        record = self.records[identity]
        return record.source.readable and self.repeats.get(record.name.taskset, 0) >= ENOUGH_REPEATS

    def add(self, logs: Sequence[CloneLog]) -> list[tuple[CloneLog, Match]]:
        """Count an episode that is over; returns those of its logs that records now describe."""
        self.episodes += 1
        found: dict[Identity, tuple[CloneLog, Match]] = {}
        for log in logs:
            self._note(log)
            verdict = match(log)
            if isinstance(verdict, Ambiguity) and log.trained:
                self.ambiguous.append((str(verdict.one), str(verdict.other)))
            if isinstance(verdict, Match) and (log.trained or not _trained(found, verdict)):
                found[verdict.served.identity] = log, verdict
        return [draw for draw in found.values() if self._count(*draw)]

    def shrink(self, options: RecordingOptions) -> list[Identity]:
        """Remove tasks until there are at most ``max_tasks``; returns the removed ones."""
        if self.reservoir is None:
            if len(self.records) <= options.max_tasks:
                return []
            self.reservoir = _reservoir(options)
            self.reservoir.enter((identity, record.times_trained > 0) for identity, record in self.records.items())
        self.reservoir.limit = min(self.reservoir.limit, options.max_tasks)
        gone = []
        while len(self.records) > self.reservoir.limit:
            gone.append(self.reservoir.leave())
            self.surplus += self.records.pop(gone[-1]).times_trained
        return gone

    def _count(self, log: CloneLog, found: Match) -> bool:
        identity = found.served.identity
        record = self.records.get(identity)
        new = record is None or (log.trained and not record.times_trained)
        if record is None:
            record = self.records[identity] = TaskRecord.of(found)
        else:
            self._compare(record, log, found)
        latest = record.add(log, found)
        if new and self.reservoir is not None:
            self.reservoir.enter([(identity, log.trained)])
        return latest

    def _compare(self, record: TaskRecord, log: CloneLog, found: Match) -> None:
        """Note how this draw of a task differs from the one before."""
        if record.source.fingerprint != found.served.content.fingerprint:
            self.repeats[record.name.taskset] = -1
        elif (repeats := self.repeats.get(record.name.taskset, 0)) >= 0:
            self.repeats[record.name.taskset] = repeats + 1
        if record.times_trained and log.trained and _split(record.facts) != _split(found.facts):
            self._remark("draws of a task split otherwise into support and query than in the draw before", 1)

    def _note(self, log: CloneLog) -> None:
        if log.trained:
            self.foreign.update([_shape(forward) for forward in foreign(log)])
            self.partial.update([_shape(forward) for forward in log.forwards if forward.partial])
        unmatched = sum(not forward.matched for forward in log.forwards)
        early = any(forward.used and not forward.consumed and forward.step < log.steps for forward in log.forwards)
        self._remark("forwards of input that no recorded taskset had served", unmatched)
        self._remark("adapt calls with a loss that came from no forward of the learner", log.unseen_losses)
        self._remark("draws with a query loss before the last adapt step", int(early))

    def _remark(self, text: str, count: int) -> None:
        if count:
            self.remarks[text] += count


def _reservoir(options: RecordingOptions) -> Reservoir:
    if options.overflow == "raise":
        return Reservoir.first_come(options.max_tasks)
    return Reservoir.sampling(options.max_tasks, options.seed)


def _trained(found: dict[Identity, tuple[CloneLog, Match]], verdict: Match) -> bool:
    draw = found.get(verdict.served.identity)
    return draw is not None and draw[0].trained


def _shape(forward: Forward) -> str:
    return "none" if forward.shape is None else str(tuple(forward.shape))


def _split(rows: EpisodeFacts) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return rows.support_rows, rows.query_rows


def _classes(taskset: Any, indices: tuple[int, ...] | None, labels: Tensor | None) -> tuple[Hashable, ...] | None:
    """The data set's own labels of the samples, in the order of the labels that the task gave them.

    The first row of a class gives its label in the task, so rows with wrong labels do no harm. None if the classes are
    unknown, or if the first rows of two of them have the same label.
    """
    known = getattr(_indexed_by(taskset), "indices_to_labels", None)
    if indices is None or known is None or labels is None or labels.numel() != len(indices):
        return None
    if not all(index in known for index in indices):  # a lookup in a defaultdict would add to it
        return None
    first: dict[Hashable, float] = {}
    for index, label in zip(indices, labels.reshape(-1).tolist(), strict=True):
        first.setdefault(known[index], label)
    return tuple(sorted(first, key=first.__getitem__)) if len(set(first.values())) == len(first) else None


def _indexed_by(taskset: Any) -> Any:
    """The data set that a description's indices refer to: the one that its rows are loaded from.

    learn2learn's benchmarks give the taskset a filtered data set, and load rows from the whole one.
    """
    transforms = getattr(taskset, "task_transforms", None)
    for transform in transforms if isinstance(transforms, (list, tuple)) else ():
        if isinstance(transform, LoadData):
            return transform.dataset
    return getattr(taskset, "dataset", None)
