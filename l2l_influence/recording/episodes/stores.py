"""Stores with a memory limit, for adapted parameters and for the data of tasks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)
Value = TypeVar("Value")


@dataclass
class CompleteStore(Generic[Name, Value]):
    """Keeps all values as long as they fit within the limit, and drops all of them once they do not."""

    bytes: int = 0
    open: bool = True
    _values: dict[Name, tuple[Value, int]] = field(default_factory=dict)

    def get(self, name: Name) -> Value | None:
        """The value under ``name``; None if there is none."""
        entry = self._values.get(name)
        return None if entry is None else entry[0]

    def put(self, name: Name, value: Value, size: int, limit: int) -> None:
        """Keep ``value``, if all values fit. Sizes are in bytes."""
        self.discard(name)
        self.open = self.open and self.bytes + size <= limit
        if self.open:
            self._values[name] = value, size
            self.bytes += size
        else:
            self._values.clear()
            self.bytes = 0

    def discard(self, name: Name) -> None:
        """Drop the value under ``name``."""
        self.bytes -= self._values.pop(name, (None, 0))[1]


@dataclass
class BoundedStore(Generic[Name, Value]):
    """Keeps the latest values within the limit; the oldest are dropped first, expendable ones before others."""

    bytes: int = 0
    _values: OrderedDict[Name, tuple[Value, int]] = field(default_factory=OrderedDict)
    _expendable: OrderedDict[Name, None] = field(default_factory=OrderedDict)

    def get(self, name: Name) -> Value | None:
        """The value under ``name``; None if it was dropped."""
        entry = self._values.get(name)
        return None if entry is None else entry[0]

    def put(self, name: Name, value: Value, size: int, limit: int, expendable: bool = False) -> None:
        """Keep ``value``, unless it alone exceeds the limit. Sizes are in bytes."""
        self.discard(name)
        if size > limit:
            return
        self._values[name] = value, size
        self.bytes += size
        if expendable:
            self._expendable[name] = None
        while self.bytes > limit:
            self.discard(next(iter(self._expendable or self._values)))

    def discard(self, name: Name) -> None:
        """Drop the value under ``name``."""
        self._expendable.pop(name, None)
        self.bytes -= self._values.pop(name, (None, 0))[1]
