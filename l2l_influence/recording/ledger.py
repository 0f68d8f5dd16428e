"""The sum of all draws: one record for each task, and what could not be attributed to any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any

from learn2learn.data.transforms import LoadData
from torch import Tensor, nn

from .board import Identity, Served
from .episode import Episode, Track
from .matching import Ambiguity, Match, foreign, match
from .reading import Source
from .task import Labels, Rule


@dataclass(eq=False)
class TaskRecord:
    """What the draws of one task amount to. All else is of the last draw (that trained, if any)."""

    source: Source
    first: int
    taskset: int
    key: int
    indices: tuple[int, ...] | None
    classes: tuple[Hashable, ...] | None
    draws: int = 0
    trained: int = 0
    support_rows: tuple[int, ...] = ()
    query_rows: tuple[int, ...] = ()
    labels: Labels = "unseen"
    seen_labels: Tensor | None = None
    lr: float = float("nan")
    steps: int = 0
    first_order: bool = False
    rule: Rule = "sgd"
    bodies: tuple[nn.Module, ...] = ()
    together: bool = False

    @classmethod
    def of(cls, served: Served) -> TaskRecord:
        """A record without draws."""
        source = Source.of(served)
        classes = _classes(source.taskset, served.indices, served.content.labels)
        return cls(source, served.first, served.taskset_number, served.key, served.indices, classes)

    def add(self, track: Track, found: Match) -> bool:
        """Count one draw; says whether it is now the one that the record is of."""
        self.first = min(self.first, found.served.first)
        self.draws += 1
        self.trained += track.trained
        latest = track.trained or not self.trained
        if latest:
            self._take(track, found)
        return latest

    def _take(self, track: Track, found: Match) -> None:
        self.source = replace(self.source, fingerprint=found.served.content.fingerprint)
        self.support_rows, self.query_rows = found.support_rows, found.query_rows
        self.labels, self.seen_labels = found.labels, found.seen_labels
        self.bodies, self.together = found.bodies, found.together
        self.lr, self.steps, self.first_order, self.rule = track.lr, track.steps, track.first_order, track.rule


@dataclass
class Ledger:
    """Records by task, in order of arrival, and counts of what has no place in them.

    ``foreign``: shapes of unknown input that was trained on. ``ambiguous``: pairs of tasks that a draw that trained
    could not be told from. ``surplus``: draws that trained, of tasks beyond the limit. ``remarks``: what a reader
    of the recording should know.
    """

    records: dict[Identity, TaskRecord] = field(default_factory=dict)
    foreign: Counter[str] = field(default_factory=Counter)
    ambiguous: list[tuple[str, str]] = field(default_factory=list)
    surplus: int = 0
    episodes: int = 0
    remarks: Counter[str] = field(default_factory=Counter)

    def copy(self) -> Ledger:
        """A ledger that can be added to without changing this one."""
        records = {identity: replace(record) for identity, record in self.records.items()}
        return replace(
            self,
            records=records,
            foreign=self.foreign.copy(),
            ambiguous=list(self.ambiguous),
            remarks=self.remarks.copy(),
        )

    def add(self, episode: Episode, max_tasks: int) -> list[tuple[Track, Match]]:
        """Count an episode that is over; returns the draws in it that records are now of."""
        self.episodes += 1
        found: dict[Identity, tuple[Track, Match]] = {}
        for track in episode.tracks:
            self._note(track)
            verdict = match(track)
            if isinstance(verdict, Ambiguity) and track.trained:
                self.ambiguous.append((str(verdict.one), str(verdict.other)))
            if isinstance(verdict, Match) and (track.trained or not _trained(found, verdict)):
                found[verdict.served.identity] = track, verdict
        return [draw for draw in found.values() if self._count(*draw, max_tasks)]

    def _count(self, track: Track, found: Match, max_tasks: int) -> bool:
        identity = found.served.identity
        if identity not in self.records and len(self.records) >= max_tasks:
            self.surplus += track.trained
            return False
        if identity not in self.records:
            self.records[identity] = TaskRecord.of(found.served)
        record = self.records[identity]
        if record.trained and track.trained and _split(record) != _split(found):
            self.remarks["draws of a task split otherwise into support and query than the draw before"] += 1
        return record.add(track, found)

    def _note(self, track: Track) -> None:
        if track.trained:
            self.foreign.update(forward.shape for forward in foreign(track))
        unmatched = sum(not forward.matched for forward in track.forwards)
        early = any(forward.used and not forward.consumed and forward.step < track.steps for forward in track.forwards)
        self._remark("forwards of input that no recorded taskset had served", unmatched)
        self._remark("adapt calls with a loss that came from no forward of the learner", track.unseen_losses)
        self._remark("draws with a query loss before the last adapt step", int(early))

    def _remark(self, text: str, count: int) -> None:
        if count:
            self.remarks[text] += count


def _trained(found: dict[Identity, tuple[Track, Match]], verdict: Match) -> bool:
    draw = found.get(verdict.served.identity)
    return draw is not None and draw[0].trained


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
