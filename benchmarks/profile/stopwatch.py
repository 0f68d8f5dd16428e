"""Time of a call by steps: functions of the package, and which of them are inside which.

Only these functions are timed, by a wrapper that takes their place for the while. A profiler that follows every call
makes what consists of many small ones look several times as long as it is.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, wraps
from importlib import import_module
from typing import Any
from unittest.mock import patch

from ..journal import Row

PACKAGE = "l2l_influence"

Steps = Mapping[str, Sequence[tuple[str, str]]]
"""Functions by module and name, under what a table calls them."""

Path = tuple[str, ...]
"""Steps that are inside one another, the outermost first; none of them is the rest."""


class Stopwatch:
    """Adds up the time since the last change of step.

    Attributes:
        spent: by the steps that it was spent in, without those that were inside them in turn.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.spent: defaultdict[Path, float] = defaultdict(float)
        self._now, self._at, self._since = now, (), now()

    def turn(self, at: Path) -> None:
        """From now on it is in these steps."""
        now = self._now()
        self.spent[self._at] += now - self._since
        self._at, self._since = at, now

    def timed(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            outside = self._at
            self.turn((*outside, step))
            try:
                return function(*args, **kwargs)
            finally:
                self.turn(outside)

        return timed


def spent(function: Callable[[], object], steps: Steps, now: Callable[[], float]) -> dict[Path, float]:
    """Seconds of a call, on the clock ``now``.

    Raises:
        LookupError: there is no function of that name.
    """
    with ExitStack() as replaced:
        watch = Stopwatch(now)
        for step, functions in steps.items():
            for module, name in functions:
                replaced.enter_context(_replaced(watch, step, module, name))
        watch.turn(())
        watch.spent.clear()
        function()
        watch.turn(())
    return dict(watch.spent)


def shares(spent: Mapping[Path, float], steps: Steps, step_of: Callable[[Path], str]) -> Row:
    """Of each step, which ``step_of`` tells from those that the time was spent in; of the rest; and the seconds."""
    total = sum(spent.values())
    found = dict.fromkeys((*steps, "rest"), 0.0)
    for path, seconds in spent.items():
        found[step_of(path) if path else "rest"] += seconds / total
    return {**found, "seconds": total}


def outermost(path: Path) -> str:
    return path[0]


def innermost(path: Path) -> str:
    return path[-1]


@contextmanager
def _replaced(watch: Stopwatch, step: str, module: str, name: str) -> Iterator[None]:
    with ExitStack() as patches:
        for owner, attribute in places(module, name):
            patches.enter_context(patch.object(owner, attribute, watch.timed(step, getattr(owner, attribute))))
        yield


def places(module: str, name: str) -> list[tuple[Any, str]]:
    """The objects, and their attributes, by which a function is found when it is called.

    Raises:
        LookupError: there is no function of that name.
    """
    owner = import_module(f"{PACKAGE}.{module}")
    *classes, last = name.split(".")
    for each in classes:
        owner = vars(owner)[each]
    found = vars(owner)[last]
    if isinstance(found, cached_property):
        return [(found, "func")]
    if classes:
        return [(owner, last)]
    modules = [each for key, each in sys.modules.items() if key.split(".")[0] == PACKAGE]
    return [(each, key) for each in modules for key, value in vars(each).items() if value is found]
