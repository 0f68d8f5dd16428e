"""A cache of one value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Latest(Generic[Key, Value]):
    """Keeps the value that was computed last, for as long as its key stays the same.

    >>> squares = Latest(lambda a, b: a == b)
    >>> squares.get(3, lambda: 3**2), squares.get(3, lambda: "not computed again")
    (9, 9)

    Args:
        same: whether two keys are the same.
    """

    def __init__(self, same: Callable[[Key, Key], bool]) -> None:
        self._same = same
        self._kept: tuple[Key, Value] | None = None

    def get(self, key: Key, compute: Callable[[], Value]) -> Value:
        """The value for ``key``, computed unless it is kept."""
        if self._kept is None or not self._same(self._kept[0], key):
            self._kept = None  # frees the memory of the old value before the new one is computed
            self._kept = key, compute()
        return self._kept[1]

    def put(self, key: Key, value: Value) -> None:
        """Keep a value that was found on the way to something else."""
        self._kept = key, value
