"""What a call costs: processor time, and memory at its peak."""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from .journal import Row

Result = TypeVar("Result")

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


def measured(function: Callable[[], Result]) -> tuple[Result, Row]:
    """What it returns, with processor seconds and, on Linux, the most memory above what was in use before, in MiB."""
    gc.collect()
    before = _reset_peak()
    start = time.process_time()
    result = function()
    seconds = time.process_time() - start
    peak = _status("VmHWM")
    return result, {"seconds": seconds, "mebibytes": None if before is None or peak is None else peak - before}


def _reset_peak() -> float | None:
    """Memory in use now, in MiB, from which the kernel counts its peak anew; None where it can't be told."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5", encoding="ascii")
    except (OSError, AttributeError):
        return None
    return _status("VmRSS")


def _status(name: str) -> float | None:
    try:
        found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text(encoding="ascii"))
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None
