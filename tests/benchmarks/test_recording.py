"""What recording costs is measured, and shown as it was measured."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import recording

DOCS = Path(__file__).parents[2] / "docs"


def test_each_way_in_is_timed_beside_the_plain_loop() -> None:
    rows = recording.times("OmniglotFC", count=3, turns=2)
    assert [row["way in"] for row in rows] == ["drop-ins", "record()"]
    for row in rows:
        assert row["lowest"] <= row["ratio"] <= row["highest"] and row["milliseconds a plain step"] > 0


def test_memory_is_that_of_a_process_of_its_own() -> None:
    (row,) = [row for row in recording.memory([3]) if row["taskset"] == "finite"]
    assert min(row["plain"], row["recorded"]) > 50


def test_the_page_shows_what_was_measured() -> None:
    rows = json.loads((DOCS / "measured" / "recording.json").read_text(encoding="utf-8"))["rows"]
    page = (DOCS / "pages" / "recording.md").read_text(encoding="utf-8")
    for table in recording.tables(rows).split("\n\n"):
        assert table in page
