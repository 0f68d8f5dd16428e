"""`Saver`: saves a study while its loop runs, so that a process that is killed leaves what was recorded until then."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

SHARE = 20
"""After a save there is none for at least this many times its duration: saving takes at most one second in 21."""

logger = logging.getLogger("l2l_influence")


@dataclass
class Saver:
    """Saves from time to time, in the loop's own thread, between two of its steps. Errors are logged and not raised.

    Attributes:
        save: writes the study.
        every: smallest number of seconds between two saves; 0 for never.
        trouble: the error of the last save, or an empty string.
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
            raise ValueError(f"the number of seconds between two saves must be 0 (never) or positive, got {self.every}")
        self._pause, self._last = self.every or math.inf, time.monotonic()

    @property
    def foreign(self) -> bool:
        """True if this is a fork of the loop's process, which must not save what it inherited."""
        return os.getpid() != self._process

    def step(self) -> None:
        """Save if it is time. Called between two steps of the loop."""
        if time.monotonic() - self._last >= self._pause and not self.foreign:
            self.now()

    def now(self) -> None:
        """Save, unless another thread is saving."""
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
                logger.warning("the study could not be saved completely while its loop runs: %s", self.trouble)
