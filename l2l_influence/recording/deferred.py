"""Deferred calls: what was served and fed is copied at once, and examined later.

Between two steps of a training loop the recorder's code and data are in no cache of the processor, and everything it
does takes about ten times as long as the second time in a row. So the loop waits only for a copy and an entry in a
queue. The queues are emptied, many calls at once, when one has enough calls or memory, or when a result is read.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from .directory import directory
from .failures import Failures
from .options import MIB

MAX_CALLS = 512
MAX_BYTES = 16 * MIB

Kind = TypeVar("Kind")


class DeferredCalls:
    """The calls that one recorder, learner or taskset has deferred, oldest first, with their time and arguments."""

    def __init__(self) -> None:
        self._calls: deque[tuple[int, Failures, Callable[..., object], tuple[Any, ...]]] = deque()
        self._bytes = 0
        with directory.lock:
            directory.queues.add(self)

    def __len__(self) -> int:
        return len(self._calls)

    def note(self, nbytes: int, failures: Failures, function: Callable[..., object], *arguments: Any) -> None:
        """Defer a call; until it is made, ``nbytes`` of memory are held. Its failure is kept in ``failures``."""
        if len(self._calls) >= MAX_CALLS or self._bytes > MAX_BYTES:
            catch_up()
        self.append(failures, function, *arguments)
        self.hold(nbytes)

    def append(self, failures: Failures, function: Callable[..., object], *arguments: Any) -> None:
        """Defer a call from where nothing else may run, such as a finalizer."""
        self._calls.append((time.perf_counter_ns(), failures, function, arguments))

    def hold(self, nbytes: int) -> None:
        """Count memory that is held until the calls have been made."""
        self._bytes += nbytes

    def waiting(self, kind: type[Kind]) -> list[Kind]:
        """The arguments of this kind in calls that have not been made yet."""
        return [each for *_, arguments in list(self._calls) for each in arguments if isinstance(each, kind)]

    @property
    def oldest(self) -> int:
        """Time of the next call."""
        return self._calls[0][0]

    def make_next(self) -> None:
        """Make the oldest call."""
        _, failures, function, arguments = self._calls.popleft()
        with failures.kept():
            function(*arguments)

    def released(self) -> None:
        """Forget how much memory was held."""
        self._bytes = 0


def catch_up() -> None:
    """Make all deferred calls of all queues, in the order in which they were noted.

    The order holds across queues, because what a clone was fed is looked for in what was served before.
    """
    # One thread at a time. A finalizer may come in between, but it only appends.
    with directory.lock:
        queues = list(directory.queues)
        for queue in queues:
            queue.released()
        while waiting := [queue for queue in queues if queue]:
            _make_in_order(waiting)


def _make_in_order(queues: list[DeferredCalls]) -> None:
    heap = [(queue.oldest, number) for number, queue in enumerate(queues)]
    heapq.heapify(heap)
    while heap:
        _, number = heapq.heappop(heap)
        if queues[number]:  # else a call that was made has asked for this itself
            queues[number].make_next()
        if queues[number]:
            heapq.heappush(heap, (queues[number].oldest, number))
