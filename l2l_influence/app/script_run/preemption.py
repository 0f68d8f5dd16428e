"""Save the study on SIGTERM, which schedulers send before they take a machine away."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

PATIENCE, AGAIN = 5.0, 0.02
"""Seconds that the recorder has to finish its current operation, and seconds between two checks."""

_RECORDER = __name__.rpartition(".app.")[0] + ".recording."


@contextmanager
def before_sigterm(last: Callable[[], object]) -> Iterator[None]:
    """Inside the block, SIGTERM calls ``last`` and then ends the process as it normally does.

    A handler that exists already, or that the script sets, takes precedence; ``last`` is then not called.
    """
    free = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not free:
        yield
        return
    handler = _Handler(last)
    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is handler:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@dataclass(eq=False)
class _Handler:
    last: Callable[[], object]
    process: int = field(default_factory=os.getpid)
    deadline: float | None = None

    def __call__(self, _number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a child process that the script forked
            _end()
        if self.deadline is None:
            self.deadline = time.monotonic() + PATIENCE
        if _recorder_at_work(frame) and time.monotonic() < self.deadline:
            threading.Timer(AGAIN, os.kill, (self.process, signal.SIGTERM)).start()
            return
        try:
            self.last()
        finally:
            _end()


def _end() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def _recorder_at_work(frame: FrameType | None) -> bool:
    """True if the signal interrupted code of the recorder."""
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(_RECORDER):
            return True
        frame = frame.f_back
    return False
