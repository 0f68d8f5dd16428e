"""The directory: finds the recorder's data about a user's object, on which nothing may be stored.

``pickle``, ``deepcopy`` and ``state_dict`` of a learner, clone or taskset must not see the recorder, so what belongs to
one of them is found here, by weak reference. The directory is an index. It holds no recording state: everything that it
points to is owned by a recorder, a learner's recording or a taskset, and disappears with its owner. It is the only
mutable object of this package that belongs to a module.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from typing import Any, TypeVar

from learn2learn.data import Taskset
from torch import nn

Key = TypeVar("Key")


class Directory:
    """Weak references from the user's objects to what the recorder knows of them, and to all that is recording.

    Attributes:
        lock: held while patches are applied or undone and while deferred calls are made.
        recordings: by learner, and by clone of a learner.
        tasksets: the `TasksetInfo` of each taskset that anything was recorded of; never of its `TaskDataset` wrapper.
        queues: all queues of deferred calls.
        numbers: of tasksets, in the order in which they became known.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.recordings: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
        self.tasksets: weakref.WeakKeyDictionary[Taskset, Any] = weakref.WeakKeyDictionary()
        self.queues: weakref.WeakSet[Any] = weakref.WeakSet()
        self.numbers = itertools.count()
        self._listeners: tuple[weakref.ref[Any], ...] = ()

    @property
    def listeners(self) -> list[Any]:
        """The recorders of all ``record()`` blocks that are open, in order of opening."""
        return [listener for reference in self._listeners if (listener := reference()) is not None]

    def add_listener(self, listener: Any) -> None:
        """Enter a recorder whose block opens."""
        # A new tuple each time: other threads may be reading the old one.
        self._listeners = (*self._listeners, weakref.ref(listener))

    def remove_listener(self, listener: Any) -> None:
        """Take away a recorder whose block ends."""
        self._listeners = tuple(known for known in self._listeners if known() not in (None, listener))


def alive(index: weakref.WeakKeyDictionary[Key, Any]) -> list[Key]:
    """The keys of an index, also while other threads add to it."""
    return [key for reference in index.keyrefs() if (key := reference()) is not None]


directory = Directory()
