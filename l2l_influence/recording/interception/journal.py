"""What was served and fed, written down to be looked into later.

Between two steps of a training loop the recorder's code and data are in no cache of the processor, and whatever it does
takes ten times as long as the second time in a row. So the loop waits for a copy and a note only. The notes are read in
order, many at once: when there are enough, when they hold much memory, or when somebody asks.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..options import MIB
from .failures import Failures

MAX_ENTRIES = 512
MAX_BYTES = 16 * MIB

Kind = TypeVar("Kind")


@dataclass
class Journal:
    """Calls that wait, oldest first, each with the place where its failure is kept and its arguments."""

    _entries: deque[tuple[Any, ...]] = field(default_factory=deque)
    _bytes: int = 0
    # Of replicas that run in threads, one at a time catches up; a finaliser may come in between, but only appends.
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def note(self, nbytes: int, failures: Failures, function: Callable[..., object], *arguments: Any) -> None:
        """Have ``function`` called later; until then ``nbytes`` of memory are held."""
        if len(self._entries) >= MAX_ENTRIES or self._bytes > MAX_BYTES:
            self.catch_up()
        self.append(failures, function, *arguments)
        self.hold(nbytes)

    def append(self, failures: Failures, function: Callable[..., object], *arguments: Any) -> None:
        """The same from where nothing else may run now, such as a finaliser."""
        self._entries.append((failures, function, *arguments))

    def hold(self, nbytes: int) -> None:
        """Count memory that is held until the journal has caught up."""
        self._bytes += nbytes

    def waiting(self, kind: type[Kind]) -> list[Kind]:
        """The functions of a kind that wait."""
        return [function for _, function, *_ in list(self._entries) if isinstance(function, kind)]

    def catch_up(self) -> None:
        """Make all calls that wait."""
        with self._lock:
            self._bytes = 0
            while self._entries:
                failures, function, *arguments = self._entries.popleft()
                with failures.kept():
                    function(*arguments)


journal = Journal()
"""The one journal of this process: what a learner was fed is found among what was served before."""
