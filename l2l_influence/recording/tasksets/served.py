"""Served batches: a memory of the batches that a recorder or a `TaskDataset` saw last, searched by their rows."""

from __future__ import annotations

import time
import weakref
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from learn2learn.data import DataDescription, Taskset

from ..deferred import DeferredCalls
from ..directory import alive, directory
from .content import Content, Tensors, read_batch
from .info import TasksetInfo, info_of

MAX_BATCHES = 4096
MAX_TENSOR_BYTES = 128 * 2**20

Identity = tuple[int, int, "tuple[int, ...] | None"]
"""Two draws with the same identity are draws of one task: number of the taskset, key, and the samples in it."""


@dataclass(eq=False, slots=True)
class Served:
    """One batch that a taskset served: which task it is, and its content.

    Attributes:
        taskset: the taskset, without a wrapper.
        taskset_number, key: of the task.
        description: learn2learn's description of the task, where it is known.
        content: the batch.
        by_index: whether ``taskset[key]`` gives the same batch again, and the description does not.
        latest: time when the batch was served last, on a clock that all tasksets share.
        first: time when it was served first, as far as is remembered.
        identity: equal for two draws of one task, even if augmentation changed its data.
    """

    taskset: weakref.ref[Any]
    taskset_number: int
    key: int
    description: Any
    content: Content
    by_index: bool = False
    latest: int = field(default_factory=time.perf_counter_ns)
    first: int = field(init=False)
    identity: Identity = field(init=False)

    def __post_init__(self) -> None:
        self.first = self.latest
        self.identity = self.taskset_number, self.key, _indices(self.description, self.content.length)

    @property
    def indices(self) -> tuple[int, ...] | None:
        """The data set's sample index of each row; None if the taskset does not give it."""
        return self.identity[2]

    def same_task(self, other: Served) -> bool:
        """True if the two are one task, or have the same data."""
        return self.identity == other.identity or self.content.fingerprint == other.content.fingerprint

    def __str__(self) -> str:
        return f"task {self.key} of taskset {self.taskset_number}"


def _indices(description: Any, rows: int) -> tuple[int, ...] | None:
    """The data set's sample index of each row, if the description has one entry for each."""
    try:
        indices = tuple(int(entry.index) for entry in description)
    except (TypeError, AttributeError):
        return None
    return indices if len(indices) == rows else None


def without_transforms(description: Any) -> list[DataDescription] | None:
    """A description with the samples' indices only; its transforms would keep the data set alive."""
    try:
        return [DataDescription(entry.index) for entry in description]
    except (TypeError, AttributeError):
        return None


@dataclass(eq=False, slots=True)
class Posting:
    """A batch that was served and is not in any `ServedBatches` yet; several may get it, under one key.

    Attributes:
        tensors: copies of ``(inputs, labels)``.
        key: None if the taskset gave none.
    """

    tensors: Tensors
    taskset: weakref.ref[Taskset]
    info: TasksetInfo
    key: int | None
    description: Any
    by_index: bool
    time: int = field(default_factory=time.perf_counter_ns)
    _served: Served | None = None

    @property
    def nbytes(self) -> int:
        """Memory that the tensors take."""
        return sum([tensor.nbytes for tensor in self.tensors])

    def served(self) -> Served | None:
        """The batch under its key; None if it has no rows that a learner could be fed."""
        content = read_batch(self.tensors) if self._served is None else None
        if content is not None:
            key = self.info.fresh_key(content.fingerprint) if self.key is None else self.key
            self._served = Served(
                self.taskset, self.info.number, key, self.description, content, self.by_index, self.time
            )
        return self._served

    def drop_transforms(self) -> None:
        """Drop the transforms, which keep the data set of a deleted taskset alive."""
        self.description = without_transforms(self.description)


class ServedBatches:
    """A bounded memory of served batches, the newest last. Each owner (a recorder, a taskset) has a separate one.

    A task that is served again with the same data replaces its former entry, so that a finite taskset cannot fill the
    memory with copies. When the tensors grow too large the oldest are released; their digests stay.

    Attributes:
        calls: batches that are still to be entered.
    """

    def __init__(self, max_batches: int = MAX_BATCHES, max_tensor_bytes: int = MAX_TENSOR_BYTES) -> None:
        self.max_batches, self.max_tensor_bytes = max_batches, max_tensor_bytes
        self.calls = DeferredCalls()
        self._entries: OrderedDict[tuple[Identity, bytes], Served] = OrderedDict()
        self._with_tensors: OrderedDict[Served, None] = OrderedDict()
        self._by_time: dict[int, Served] = {}
        # Arrays of times, not lists of batches: there are many, and the garbage collector would visit them all.
        self._by_row: dict[bytes, array[int]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def note(self, posting: Posting) -> None:
        """Enter a batch later."""
        self.calls.note(posting.nbytes, posting.info.failures, _enter, weakref.ref(self), posting)

    def post(self, served: Served) -> None:
        """Remember ``served`` as the newest."""
        name = served.identity, served.content.fingerprint
        former = self._entries.get(name)
        if former is not None:
            self._remove(name)
            served.first = former.first
        self._entries[name] = self._by_time[served.latest] = served
        self._with_tensors[served] = None
        self._bytes += served.content.nbytes
        for digest in served.content.rows:
            if digest in self._by_row:
                self._by_row[digest].append(served.latest)
            else:
                self._by_row[digest] = array("q", (served.latest,))
        self._shrink()

    def holding(self, digests: Sequence[bytes]) -> list[Served]:
        """The remembered batches that contain all these rows, oldest first."""
        holders = [self._by_time[time] for time in self._by_row.get(digests[0], ())]
        return [served for served in holders if served.content.contains(digests)]

    def clear(self) -> None:
        """Forget all batches."""
        for name in list(self._entries):
            self._remove(name)

    def release(self, taskset_number: int) -> None:
        """Release the data set of a deleted taskset."""
        # This may run anywhere, in a finalizer.
        for posting in self.calls.waiting(Posting):
            if posting.info.number == taskset_number:
                posting.drop_transforms()
        for served in list(self._entries.values()):
            if served.taskset_number == taskset_number:
                served.description = without_transforms(served.description)

    def forget(self, taskset_number: int) -> None:
        """Drop what a taskset served."""
        for name, served in list(self._entries.items()):
            if served.taskset_number == taskset_number:
                self._remove(name)

    def _shrink(self) -> None:
        while len(self._entries) > self.max_batches:
            self._remove(next(iter(self._entries)))
        while self._bytes > self.max_tensor_bytes and len(self._with_tensors) > 1:
            oldest = next(iter(self._with_tensors))
            self._release(oldest)
            oldest.content.tensors = None

    def _remove(self, name: tuple[Identity, bytes]) -> None:
        served = self._entries.pop(name)
        del self._by_time[served.latest]
        self._release(served)
        for digest in served.content.rows:
            holders = self._by_row[digest]
            holders.remove(served.latest)
            if not holders:
                del self._by_row[digest]

    def _release(self, served: Served) -> None:
        if served in self._with_tensors:
            del self._with_tensors[served]
            self._bytes -= served.content.nbytes


def _enter(batches: weakref.ref[ServedBatches], posting: Posting) -> None:
    alive, served = batches(), posting.served()
    if alive is not None and served is not None:
        alive.post(served)


def taskset_info(taskset: Taskset) -> TasksetInfo:
    """The info of a taskset without a wrapper. A copy of a taskset gets a new one."""
    return info_of(taskset, _gone)


def own_batches(taskset: Taskset) -> ServedBatches:
    """The served batches of a taskset's wrappers, which share them."""
    info = taskset_info(taskset)
    if info.served is None:
        info.served = ServedBatches()
    batches: ServedBatches = info.served
    return batches


def all_own_batches() -> list[ServedBatches]:
    """The served batches of all wrapped tasksets that are alive."""
    return [info.served for _, info in known_tasksets() if info.served is not None]


def known_tasksets() -> list[tuple[Taskset, TasksetInfo]]:
    """All tasksets that are alive and have an info, with it."""
    return [(taskset, directory.tasksets[taskset]) for taskset in alive(directory.tasksets)]


def by_age(batches: Iterable[Served]) -> list[Served]:
    """Each once, oldest first."""
    return sorted(dict.fromkeys(batches), key=lambda served: served.latest)


def _gone(taskset_number: int) -> None:
    """A taskset was deleted: its batches must not keep its data set alive, and are forgotten later."""
    for listener in directory.listeners:
        listener.served.release(taskset_number)
        listener.served.calls.append(listener.failures, listener.served.forget, taskset_number)
