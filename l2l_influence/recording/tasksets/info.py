"""`TasksetInfo`: the number of a taskset, and the keys of the draws that it gives no index to."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from learn2learn.data import Taskset

from ..directory import directory
from ..failures import Failures


@dataclass(eq=False)
class TasksetInfo:
    """Names of one taskset and of its tasks, the same for all recordings.

    Attributes:
        number: of the taskset in this process.
        fresh_keys: keys that no task has yet.
        infinite: whether each draw is a task of its own.
        failures: of the recorder, with batches of this taskset. They concern only learners that were fed these.
        served: the batches that its `TaskDataset` has recorded; None for a taskset that has none.
    """

    number: int
    fresh_keys: itertools.count[int]
    infinite: bool = False
    failures: Failures = field(default_factory=Failures)
    served: Any = None
    _keys_by_content: dict[bytes, int] = field(default_factory=dict)

    @classmethod
    def new(cls, fresh_keys: itertools.count[int], infinite: bool = False) -> TasksetInfo:
        """An info with a new number."""
        return cls(next(directory.numbers), fresh_keys, infinite)

    def fresh_key(self, fingerprint: bytes) -> int:
        """The key of a task that came without an index; in a finite taskset equal data have equal keys."""
        if self.infinite:
            return next(self.fresh_keys)
        if fingerprint not in self._keys_by_content:
            self._keys_by_content[fingerprint] = next(self.fresh_keys)
        return self._keys_by_content[fingerprint]


def info_of(taskset: Taskset, deleted: Callable[[int], object]) -> TasksetInfo:
    """The info of a taskset without a wrapper; ``deleted`` is called with its number when it is."""
    info: TasksetInfo | None = directory.tasksets.get(taskset)
    if info is None:
        with directory.lock:
            info = _entered(taskset, deleted)
    return info


def _entered(taskset: Taskset, deleted: Callable[[int], object]) -> TasksetInfo:
    info: TasksetInfo | None = directory.tasksets.get(taskset)
    if info is None:
        fresh_keys = itertools.count(max(taskset.num_tasks, 0))
        info = directory.tasksets[taskset] = TasksetInfo.new(fresh_keys, infinite=taskset.num_tasks == -1)
        weakref.finalize(taskset, deleted, info.number).atexit = False
    return info
