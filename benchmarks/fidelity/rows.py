"""Rows by what they are of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..journal import Row


class Rows:
    """Rows; ``worlds`` in the order measured, ``titles`` as tables call them."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = list(rows)
        self._described = {row["world"]: row for row in self._rows if row["table"] == "worlds"}
        self.worlds = list(self._described)
        self.titles = [self.title(world) for world in self.worlds]

    def world(self, name: str) -> Row:
        """What is said of a world."""
        return self._described[name]

    def title(self, name: str) -> str:
        title: str = self._described[name]["title"]
        return title

    def of(self, **wanted: Any) -> list[Row]:
        """Rows of estimators."""
        found = [row for row in self._rows if row["table"] == "fidelity"]
        return [row for row in found if all(row.get(key) == value for key, value in wanted.items())]

    def one(self, **wanted: Any) -> Row | None:
        """The row that was measured, or None."""
        return next((row for row in self.of(**wanted) if row["verdict"] == "measured"), None)
