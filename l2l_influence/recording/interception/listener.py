"""`Listener`: the part of a recorder that the wrappers of learn2learn's methods call, and its list per context."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextvars import ContextVar

from torch import nn

from ..directory import directory
from ..episodes.features import Features, Lookup
from ..failures import Failures
from ..tasksets.served import ServedBatches
from .module_calls import ModuleCalls


class Listener(ABC):
    """A recorder whose block is open, as the wrappers see it.

    Attributes:
        active: whether its block is open.
        served: the batches that tasksets served.
        features: the features that were computed from these.
        module_calls: hears of the modules that the loop calls.
        failures: of this recorder, outside any learner or taskset.
    """

    active: bool
    served: ServedBatches
    features: Features
    module_calls: ModuleCalls
    failures: Failures

    @abstractmethod
    def meet(self, learner: nn.Module) -> None:
        """A clone of ``learner`` is about to be made."""

    @abstractmethod
    def remark(self, text: str) -> None:
        """Count an event that belongs to no learner's recording."""


_opened: ContextVar[tuple[Listener, ...]] = ContextVar("opened", default=())


def listening() -> list[Listener]:
    """The recorders that hear what happens here.

    These are the ones whose blocks were opened in this context (a thread, or an asyncio task) and are still open. A
    thread that has opened no block, such as one of DataParallel or of a DataLoader, is heard by all open recorders.
    """
    own = [listener for listener in _opened.get() if listener.active]
    return own or [listener for listener in directory.listeners if listener.active]


def open_here(listener: Listener) -> None:
    """Have a recorder hear what happens in this context."""
    directory.add_listener(listener)
    _opened.set((*(known for known in _opened.get() if known.active), listener))


def close_here(listener: Listener) -> None:
    """Stop reporting to a recorder. The block may end in another context than it began in."""
    directory.remove_listener(listener)
    _opened.set(tuple(known for known in _opened.get() if known is not listener))


def lookup(listeners: Iterable[Listener]) -> Lookup:
    """The lookup for rows that a clone was fed while these listened."""
    known = tuple(listeners)
    return Lookup(tuple([each.served for each in known]), tuple([each.features for each in known]))
