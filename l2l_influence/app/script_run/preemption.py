"""What is done when the process is told to end, as schedulers do before they take a machine away."""

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
"""Seconds that the recorder has to come to the end of what it is at, and between two looks."""

_RECORDER = __name__.rpartition(".app.")[0] + ".recording."


@contextmanager
def before_sigterm(last: Callable[[], object]) -> Iterator[None]:
    """Inside, SIGTERM has ``last`` called, and then ends the process as it would have.

    Where there is a handler already, or the script sets one, that one stays alone.
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
        if os.getpid() != self.process:  # forked by the script
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
    """Whether the signal came in the middle of something that the recorder does."""
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(_RECORDER):
            return True
        frame = frame.f_back
    return False
