"""Which tasks stay in a recording that has no room for all of them."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from ...storage.fingerprints import combined
from ..tasksets.board import Identity

Rank = Callable[[Identity], int]


@dataclass
class Reservoir:
    """Tasks in the order in which they have to go: those that did not train, then those that trained, by rank.

    A hash for a rank keeps a uniform sample of the tasks that trained (bottom-k sampling): no random numbers are drawn,
    and a task that had to go does not come back, so that of those that stay every draw was counted.

    Attributes:
        limit: for how many tasks there is room; it cannot grow again, since those that went are not known any more.
        rank: of those that trained, the one with the highest rank goes first.
        uniform: whether those that stay are a uniform sample.
    """

    limit: int
    rank: Rank
    uniform: bool
    _trained: list[tuple[int, Identity]] = field(default_factory=list)
    _idle: dict[Identity, None] = field(default_factory=dict)

    @classmethod
    def sampling(cls, limit: int, seed: int) -> Reservoir:
        """Keeps a uniform sample."""
        return cls(limit, lambda identity: _hashed(identity, seed), uniform=True)

    @classmethod
    def first_come(cls, limit: int) -> Reservoir:
        """Keeps those that trained first."""
        arrivals = itertools.count()
        return cls(limit, lambda _identity: next(arrivals), uniform=False)

    def copy(self) -> Reservoir:
        """One that can be added to without changing this one."""
        return replace(self, _trained=list(self._trained), _idle=dict(self._idle))

    def enter(self, tasks: Iterable[tuple[Identity, bool]]) -> None:
        """Tasks that are new, or trained for the first time, each with whether it trained."""
        for identity, trained in tasks:
            if trained:
                self._idle.pop(identity, None)
                heapq.heappush(self._trained, (-self.rank(identity), identity))
            else:
                self._idle[identity] = None

    def leave(self) -> Identity:
        """The task that has to go first."""
        return self._idle.popitem()[0] if self._idle else heapq.heappop(self._trained)[1]


def _hashed(identity: Identity, seed: int) -> int:
    return int.from_bytes(combined([f"{seed} {identity}".encode()])[:8], "big")
