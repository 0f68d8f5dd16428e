"""The board: which batches the recorded tasksets of this process served lately, found by the rows in them."""

from __future__ import annotations

import itertools
import weakref
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from learn2learn.data import DataDescription

from ..interception.failures import Failures
from .content import Content

MAX_BATCHES = 4096
MAX_TENSOR_BYTES = 128 * 2**20

Identity = tuple[int, int, "tuple[int, ...] | None"]
"""What makes two draws the same task: taskset number, key, and the samples in it."""


@dataclass(eq=False, slots=True)
class Served:
    """One batch that a taskset served: which task it is, and what was in it.

    ``identity`` is equal for two draws of one task, even if augmentation changed its data. ``serial`` counts what was
    posted; ``first`` is that of the same task's first batch, as far as is remembered.
    ``by_index`` says that the same batch is had again as ``taskset[key]`` and not from the description.
    """

    taskset: weakref.ref[Any]
    taskset_number: int
    key: int
    description: Any
    content: Content
    by_index: bool = False
    serial: int = -1
    first: int = -1
    identity: Identity = field(init=False)

    def __post_init__(self) -> None:
        self.identity = self.taskset_number, self.key, _indices(self.description, self.content.length)

    @property
    def indices(self) -> tuple[int, ...] | None:
        """The data set's sample index for each row, where the taskset says."""
        return self.identity[2]

    def same_task(self, other: Served) -> bool:
        """Whether nothing that matters tells the two apart."""
        return self.identity == other.identity or self.content.fingerprint == other.content.fingerprint

    def __str__(self) -> str:
        return f"task {self.key} of taskset {self.taskset_number}"


def _indices(description: Any, rows: int) -> tuple[int, ...] | None:
    """The data set's sample index for each row, where the description has one entry a row."""
    try:
        indices = tuple(int(entry.index) for entry in description)
    except (TypeError, AttributeError):
        return None
    return indices if len(indices) == rows else None


def without_transforms(description: Any) -> list[DataDescription] | None:
    """A description with the samples' indices only: its transforms hold the data set that they read."""
    try:
        return [DataDescription(entry.index) for entry in description]
    except (TypeError, AttributeError):
        return None


@dataclass
class Board:
    """A bounded memory of served batches, newest last.

    A task served again with the same data takes the place of its former entry, so that a finite taskset never fills
    the board with copies. When the tensors grow too large the oldest are let go; their digests stay.
    """

    max_batches: int = MAX_BATCHES
    max_tensor_bytes: int = MAX_TENSOR_BYTES
    failures: Failures = field(default_factory=Failures)
    _entries: OrderedDict[tuple[Identity, bytes], Served] = field(default_factory=OrderedDict)
    _with_tensors: OrderedDict[Served, None] = field(default_factory=OrderedDict)
    _by_serial: dict[int, Served] = field(default_factory=dict)
    # Arrays of serials, not lists of batches: there are many, and the garbage collector would go through them all.
    _by_row: dict[bytes, array[int]] = field(default_factory=dict)
    _bytes: int = 0
    _serials: itertools.count[int] = field(default_factory=itertools.count)

    def __len__(self) -> int:
        return len(self._entries)

    def post(self, served: Served) -> None:
        """Remember ``served`` as the newest."""
        name = served.identity, served.content.fingerprint
        former = self._entries.get(name)
        if former is not None:
            self._remove(name)
        self.number(served)
        if former is not None:
            served.first = former.first
        self._entries[name] = self._by_serial[served.serial] = served
        self._with_tensors[served] = None
        self._bytes += served.content.nbytes
        for digest in served.content.rows:
            if digest in self._by_row:
                self._by_row[digest].append(served.serial)
            else:
                self._by_row[digest] = array("q", (served.serial,))
        self._shrink()

    def number(self, served: Served) -> None:
        """Give ``served`` its place in the order of all that was served."""
        served.serial = served.first = next(self._serials)

    def holding(self, digests: Sequence[bytes]) -> list[Served]:
        """The remembered batches that contain all these rows, oldest first."""
        holders = [self._by_serial[serial] for serial in self._by_row.get(digests[0], ())]
        return [served for served in holders if served.content.contains(digests)]

    def drop_transforms(self, taskset_number: int) -> None:
        """Do not keep the data set of a taskset that is gone."""
        for served in list(self._entries.values()):
            if served.taskset_number == taskset_number:
                served.description = without_transforms(served.description)

    def forget(self, taskset_number: int) -> None:
        """Drop what a taskset served, because it is gone."""
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
        del self._by_serial[served.serial]
        self._release(served)
        for digest in served.content.rows:
            holders = self._by_row[digest]
            holders.remove(served.serial)
            if not holders:
                del self._by_row[digest]

    def _release(self, served: Served) -> None:
        if served in self._with_tensors:
            del self._with_tensors[served]
            self._bytes -= served.content.nbytes


board = Board()
"""The one board of this process. Learners and tasksets do not know each other; they meet here."""
