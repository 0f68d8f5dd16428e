"""`Reservoir`: chooses which tasks stay in a recording that has more than ``max_tasks``."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from ...storage.fingerprints import combined
from ..tasksets.served import Identity

Rank = Callable[[Identity], int]


@dataclass
class Reservoir:
    """Orders tasks for removal: first those that did not train, then those that trained, from the highest rank down.

    If the rank is a hash, the tasks that stay are a uniform sample of those that trained (bottom-k sampling). No random
    numbers are drawn. A removed task cannot come back, so every draw of the tasks that stay has been counted.

    Attributes:
        limit: largest number of tasks; it cannot grow, because the removed tasks are lost.
        rank: of a task that trained; the highest is removed first.
        uniform: whether the tasks that stay are a uniform sample.
    """

    limit: int
    rank: Rank
    uniform: bool
    _trained: list[tuple[int, Identity]] = field(default_factory=list)
    _idle: dict[Identity, None] = field(default_factory=dict)

    @classmethod
    def sampling(cls, limit: int, seed: int) -> Reservoir:
        """A reservoir that keeps a uniform sample."""
        return cls(limit, lambda identity: _hashed(identity, seed), uniform=True)

    @classmethod
    def first_come(cls, limit: int) -> Reservoir:
        """A reservoir that keeps the tasks that trained first."""
        arrivals = itertools.count()
        return cls(limit, lambda _identity: next(arrivals), uniform=False)

    def copy(self) -> Reservoir:
        """An independent copy."""
        return replace(self, _trained=list(self._trained), _idle=dict(self._idle))

    def enter(self, tasks: Iterable[tuple[Identity, bool]]) -> None:
        """Add tasks that are new or trained for the first time, each with whether it trained."""
        for identity, trained in tasks:
            if trained:
                self._idle.pop(identity, None)
                heapq.heappush(self._trained, (-self.rank(identity), identity))
            else:
                self._idle[identity] = None

    def leave(self) -> Identity:
        """Remove and return the task that goes first."""
        return self._idle.popitem()[0] if self._idle else heapq.heappop(self._trained)[1]


def _hashed(identity: Identity, seed: int) -> int:
    return int.from_bytes(combined([f"{seed} {identity}".encode()])[:8], "big")
