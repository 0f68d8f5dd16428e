"""The port of learn2learn's MAML on Omniglot: five lines added, bit-identical training, a ranking at the end."""

from __future__ import annotations

import csv
import difflib
import math
import runpy
import sys
from pathlib import Path

import pytest

from .side_by_side import EXAMPLES, run_both

PORT = EXAMPLES / "maml_omniglot.py"
ORIGINAL = EXAMPLES / "learn2learn" / "maml_omniglot.py"
PAGE = EXAMPLES.parent / "docs" / "pages" / "port.md"
MARK = "  # influence\n"
SETTINGS = ["--iterations", "2", "--meta-batch-size", "4", "--num-tasks", "6"]


def test_five_lines_record_and_rank() -> None:
    marked = [line for line in PORT.read_text().splitlines(keepends=True) if line.endswith(MARK)]
    assert len(marked) == 5
    assert "TaskInfluence" not in plain_script() and "TaskDataset" not in plain_script()


def test_the_documentation_shows_the_difference_as_it_is() -> None:
    assert f"```diff\n{difference()}```" in PAGE.read_text(), f"docs/pages/port.md should hold\n{difference()}"


def test_without_data_it_says_what_is_missing_and_exits_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("L2L_INFLUENCE_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(PORT)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(PORT), run_name="__main__")
    assert stopped.value.code == 2
    assert "L2L_INFLUENCE_DATA" in capsys.readouterr().err


def test_it_ranks_real_tasks_and_trains_as_without_recording(omniglot_root: Path, tmp_path: Path) -> None:
    without = tmp_path / "without.py"
    without.write_text(plain_script())
    recorded, plain = run_both(
        tmp_path, *([str(script), *SETTINGS, "--out", str(tmp_path)] for script in (PORT, without))
    )
    assert plain.count("Meta Train Error") == 2 and plain.count("Meta Test Error") == 1
    assert recorded.startswith(plain)
    table = recorded.removeprefix(plain)
    assert "positive = harmful" in table
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["score"]) for row in rows]
    assert 2 <= len(rows) <= 6 and sum(int(row["times_trained"]) for row in rows) == 8
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
    assert all(map(math.isfinite, scores))
    for row in rows:
        assert row["classes"] in table and row["classes"].count("/") == 5  # five characters, as alphabet/number


def plain_script() -> str:
    """The port without the five lines that record and rank."""
    text = PORT.read_text().replace(
        f"    maml = MAML(model, lr=fast_lr, first_order=False){MARK}",
        "    maml = l2l.algorithms.MAML(model, lr=fast_lr, first_order=False)\n",
    )
    return "".join(line for line in text.splitlines(keepends=True) if not line.endswith(MARK))


def difference() -> str:
    lines = (path.read_text().splitlines(keepends=True) for path in (ORIGINAL, PORT))
    names = "learn2learn/examples/vision/maml_omniglot.py", "examples/maml_omniglot.py"
    return "".join(difflib.unified_diff(*lines, *names, n=1))
