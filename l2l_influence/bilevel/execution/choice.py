"""The execution of a problem: given by the user, or found by a probe when the first task is at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .base import Execution
from .mapped import Mapped
from .one_by_one import OneByOne

CHOICES = ("auto", "mapped", "one-by-one")


class Found(NamedTuple):
    """An execution, and a sentence for readers of results: why it was chosen; empty for the usual one."""

    execution: Execution
    note: str = ""


class ExecutionChoice:
    """The execution that all objectives of a problem share.

    Args:
        name: ``"mapped"``: all tasks of a batch at once. ``"one-by-one"``: in a loop. ``"auto"``: mapped if that works
            for the first task, which is decided once, by :meth:`settle`; until then, mapped.

    Raises:
        ValueError: there is no execution of this name.
    """

    def __init__(self, name: str = "mapped") -> None:
        if name not in CHOICES:
            raise ValueError(f"execution must be one of {list(CHOICES)}, got {name!r}")
        self.settled = name != "auto"
        self._found = Found(OneByOne() if name == "one-by-one" else Mapped())

    @property
    def execution(self) -> Execution:
        """The present choice."""
        return self._found.execution

    @property
    def note(self) -> str:
        """Why tasks are computed one by one, if a probe decided that; else empty."""
        return self._found.note

    def settle(self, probe: Callable[[], Found | None]) -> None:
        """Decide by a probe, unless that was done before or the user has decided. None leaves it undecided."""
        found = None if self.settled else probe()
        if found is not None:
            self._found, self.settled = found, True
