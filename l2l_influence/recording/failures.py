"""Failures of the recorder itself: the user's loop continues, and the failure is kept for the report."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Failures:
    """Counts failures and keeps the text of the first (an exception object would keep the user's frames alive)."""

    count: int = 0
    first: str = ""

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Run a piece of the recorder; an exception in it is kept here and does not reach the user's loop."""
        try:
            yield
        except Exception:
            self.keep()

    def keep(self) -> None:
        """Keep the exception that is being handled."""
        self.count += 1
        self.first = self.first or traceback.format_exc()

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        summary = self.first.strip().splitlines()[-1] if self.first else ""
        return f"{self.count} internal failure(s) of the recorder, the first: {summary}"
