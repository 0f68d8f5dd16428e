"""What recording costs is measured, and shown as it was measured."""

from __future__ import annotations

import pytest

from benchmarks import recording

pytestmark = pytest.mark.benchmarks


def test_each_way_in_is_timed_beside_the_plain_loop() -> None:
    rows = recording.times("OmniglotFC", count=3, turns=2)
    assert [row["way in"] for row in rows] == ["drop-ins", "record()"]
    for row in rows:
        assert row["lowest"] <= row["ratio"] <= row["highest"] and row["milliseconds a plain step"] > 0


def test_memory_is_that_of_a_process_of_its_own() -> None:
    (row,) = [row for row in recording.memory([3]) if row["taskset"] == "finite"]
    assert min(row["plain"], row["recorded"]) > 50
