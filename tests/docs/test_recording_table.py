"""The table of what can be recorded names tests; each of them is there, and so is each file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECTION = re.search(
    r"## What can be recorded\n(.*?)\n## ", (ROOT / "docs/pages/recording.md").read_text(encoding="utf-8"), re.DOTALL
)
assert SECTION is not None
TESTS = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("name", sorted(set(re.findall(r"(?<!\*)\*([^*\n]+)\*(?!\*)", SECTION[1]))))
def test_each_test_that_is_named_exists(name: str) -> None:
    assert f"def test_{name.replace(' ', '_')}(" in TESTS


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(tests/[^`]+)`", SECTION[1]))))
def test_each_file_that_is_named_exists(path: str) -> None:
    assert (ROOT / path).is_file()


def test_every_cell_says_something() -> None:
    rows = [line.strip("| \n").split(" | ") for line in SECTION[1].splitlines() if line.startswith("| ")]
    assert len(rows) > 20
    assert all(len(row) == 3 and all(cell.strip() for cell in row) for row in rows)
