"""Saving a study while its loop runs, so that a process that is killed leaves what was recorded until then."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

SHARE = 20
"""A save is followed by at least so many times its duration without one: one second in 21 at most."""

logger = logging.getLogger("l2l_influence")


@dataclass
class Saver:
    """Saves now and then, in the loop's own thread, between two of its steps. What goes wrong is logged, not raised.

    Attributes:
        save: writes the study.
        every: at least so many seconds lie between two saves; 0 for never.
        trouble: what went wrong in the last save, or nothing.
    """

    save: Callable[[], object]
    every: float
    trouble: str = ""
    _pause: float = field(init=False)
    _last: float = field(init=False)
    _process: int = field(default_factory=os.getpid)
    _busy: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if not self.every >= 0:
            raise ValueError(f"the time between two saves must be 0 (never) or more seconds, got {self.every}")
        self._pause, self._last = self.every or math.inf, time.monotonic()

    @property
    def foreign(self) -> bool:
        """Whether this is a process that the loop's forked, which is not to save what it inherited."""
        return os.getpid() != self._process

    def step(self) -> None:
        """Save if it is time. Called between two steps of the loop."""
        if time.monotonic() - self._last >= self._pause and not self.foreign:
            self.now()

    def now(self) -> None:
        """Save, unless another thread is at it."""
        if not self._busy.acquire(blocking=False):
            return
        begun = time.monotonic()
        try:
            self._save()
        finally:
            self._last = time.monotonic()
            self._pause = max(self.every or math.inf, SHARE * (self._last - begun))
            self._busy.release()

    def _save(self) -> None:
        before, self.trouble = self.trouble, ""
        try:
            self.save()
        except Exception as error:
            self.trouble = f"{type(error).__name__}: {error}"
            if self.trouble != before:
                logger.warning("the study was not saved as a whole while its loop runs: %s", self.trouble)
