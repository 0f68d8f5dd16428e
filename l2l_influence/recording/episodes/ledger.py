"""The sum of all draws: one record for each task, and what could not be attributed to any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from learn2learn.data.transforms import LoadData
from torch import Tensor, nn

from ..options import RecordingOptions
from ..tasksets.board import Identity, Served
from ..tasksets.reading import Source
from .episode import Forward, Track
from .losses import Loss
from .matching import Ambiguity, Match, foreign, match
from .normalisation import BatchNorm
from .reservoir import Reservoir
from .task import Labels, Rule

ENOUGH_REPEATS = 16
"""A taskset that augments at random may give a task's data twice by chance, but not so often and never others."""


@dataclass(eq=False, slots=True)
class TaskRecord:
    """What the draws of one task amount to. All else is of the last draw (that trained, if any)."""

    source: Source
    first: int
    taskset: int
    key: int
    indices: tuple[int, ...] | None
    classes: tuple[Hashable, ...] | None
    times_seen: int = 0
    times_trained: int = 0
    support_rows: tuple[int, ...] = ()
    query_rows: tuple[int, ...] = ()
    labels: Labels = "unseen"
    seen_labels: Tensor | None = None
    seen_query_labels: Tensor | None = None
    loss: Loss | None = None
    query_loss: Loss | None = None
    lr: float = float("nan")
    steps: int = 0
    first_order: bool = False
    rule: Rule = "sgd"
    bodies: tuple[nn.Module, ...] = ()
    together: bool = False
    batch_norm: BatchNorm | None = None

    @classmethod
    def of(cls, served: Served) -> TaskRecord:
        """A record without draws."""
        source = Source.of(served)
        classes = _classes(source.taskset, served.indices, served.content.labels)
        return cls(source, served.first, served.taskset_number, served.key, served.indices, classes)

    def add(self, track: Track, found: Match) -> bool:
        """Count one draw; says whether it is now the one that the record is of."""
        self.first = min(self.first, found.served.first)
        self.times_seen += 1
        self.times_trained += track.trained
        latest = track.trained or not self.times_trained
        if latest:
            self._take(track, found)
        return latest

    def _take(self, track: Track, found: Match) -> None:
        if self.source.fingerprint != found.served.content.fingerprint:
            self.source = replace(self.source, fingerprint=found.served.content.fingerprint)
        self.support_rows, self.query_rows = found.support_rows, found.query_rows
        self.labels = found.labels
        self.seen_labels, self.seen_query_labels = found.seen_labels, found.seen_query_labels
        self.loss, self.query_loss = found.loss, found.query_loss
        self.bodies, self.together, self.batch_norm = found.bodies, found.together, found.batch_norm
        self.lr, self.steps, self.first_order, self.rule = track.lr, track.steps, track.first_order, track.rule


@dataclass
class Ledger:
    """Records by task, in order of arrival, and counts of what has no place in them.

    ``foreign``: shapes of unknown input that was trained on. ``partial``: shapes of input of which the loss saw some
    rows, unknown which. ``ambiguous``: pairs of tasks that a draw that trained
    could not be told from. ``surplus``: draws that trained, of tasks that had to go. ``reservoir``: which ones have to,
    once there are too many. ``repeats``: by taskset, how often it served a task's data again; -1 for one that served
    others. ``remarks``: what a reader of the recording should know.
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

    def copy(self) -> Ledger:
        """A ledger that can be added to without changing this one."""
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
        """Whether tasks that trained had to go, and those recorded are a uniform sample of them."""
        return self.surplus > 0 and self.reservoir is not None and self.reservoir.uniform

    @property
    def stands_for(self) -> float:
        """How many draws that trained there were for each one recorded."""
        recorded = sum([record.times_trained for record in self.records.values()])
        return (recorded + self.surplus) / recorded if self.surplus else 1.0

    def gives_back(self, identity: Identity) -> bool:
        """Whether a task's data can be had again: its taskset can be asked, and has often enough served the same."""
        record = self.records[identity]
        return record.source.readable and self.repeats.get(record.taskset, 0) >= ENOUGH_REPEATS

    def add(self, tracks: Sequence[Track]) -> list[tuple[Track, Match]]:
        """Count an episode that is over, by the tracks in it; returns the draws that records are now of."""
        self.episodes += 1
        found: dict[Identity, tuple[Track, Match]] = {}
        for track in tracks:
            self._note(track)
            verdict = match(track)
            if isinstance(verdict, Ambiguity) and track.trained:
                self.ambiguous.append((str(verdict.one), str(verdict.other)))
            if isinstance(verdict, Match) and (track.trained or not _trained(found, verdict)):
                found[verdict.served.identity] = track, verdict
        return [draw for draw in found.values() if self._count(*draw)]

    def shrink(self, options: RecordingOptions) -> list[Identity]:
        """Let tasks go until there are no more than ``max_tasks``; returns them."""
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

    def _count(self, track: Track, found: Match) -> bool:
        identity = found.served.identity
        record = self.records.get(identity)
        new = record is None or (track.trained and not record.times_trained)
        if record is None:
            record = self.records[identity] = TaskRecord.of(found.served)
        else:
            self._compare(record, track, found)
        latest = record.add(track, found)
        if new and self.reservoir is not None:
            self.reservoir.enter([(identity, track.trained)])
        return latest

    def _compare(self, record: TaskRecord, track: Track, found: Match) -> None:
        """Take note of how this draw of a task differs from the one before."""
        if record.source.fingerprint != found.served.content.fingerprint:
            self.repeats[record.taskset] = -1
        elif (repeats := self.repeats.get(record.taskset, 0)) >= 0:
            self.repeats[record.taskset] = repeats + 1
        if record.times_trained and track.trained and _split(record) != _split(found):
            self._remark("draws of a task split otherwise into support and query than the draw before", 1)

    def _note(self, track: Track) -> None:
        if track.trained:
            self.foreign.update([_shape(forward) for forward in foreign(track)])
            self.partial.update([_shape(forward) for forward in track.forwards if forward.partial])
        unmatched = sum(not forward.matched for forward in track.forwards)
        early = any(forward.used and not forward.consumed and forward.step < track.steps for forward in track.forwards)
        self._remark("forwards of input that no recorded taskset had served", unmatched)
        self._remark("adapt calls with a loss that came from no forward of the learner", track.unseen_losses)
        self._remark("draws with a query loss before the last adapt step", int(early))

    def _remark(self, text: str, count: int) -> None:
        if count:
            self.remarks[text] += count


def _reservoir(options: RecordingOptions) -> Reservoir:
    if options.overflow == "raise":
        return Reservoir.first_come(options.max_tasks)
    return Reservoir.sampling(options.max_tasks, options.seed)


def _trained(found: dict[Identity, tuple[Track, Match]], verdict: Match) -> bool:
    draw = found.get(verdict.served.identity)
    return draw is not None and draw[0].trained


def _shape(forward: Forward) -> str:
    return "none" if forward.shape is None else str(tuple(forward.shape))


def _split(rows: TaskRecord | Match) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return rows.support_rows, rows.query_rows


def _classes(taskset: Any, indices: tuple[int, ...] | None, labels: Tensor | None) -> tuple[Hashable, ...] | None:
    """The data set's labels of the samples, in the order of the labels that the task gave them.

    A class goes by the label of its first row: rows that a task labels wrongly do not hide what it is made of. None
    where the classes are not known, or two of them begin with one label.
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
    """The data set that a task description's indices refer to: the one that its rows are loaded from.

    learn2learn's benchmarks give the taskset a filtered data set, and load from the whole.
    """
    transforms = getattr(taskset, "task_transforms", None)
    for transform in transforms if isinstance(transforms, (list, tuple)) else ():
        if isinstance(transform, LoadData):
            return transform.dataset
    return getattr(taskset, "dataset", None)
