"""Where time goes: shares that are whole, of functions that exist, as the page has them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import profile as profiling
from benchmarks.profile import STEPS, profile, table

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Of a run over one network."""
    patch, out = pytest.MonkeyPatch(), tmp_path_factory.mktemp("profile") / "profile.json"
    patch.setattr(profiling, "MODELS", {"OmniglotCNN": profiling.MODELS["OmniglotCNN"]})
    profile(True, out)
    patch.undo()
    return json.loads(out.read_text(encoding="utf-8"))["rows"]


def test_shares_are_of_the_whole(rows):
    for row in rows:
        assert sum(row[step] for step in (*STEPS, "rest")) == pytest.approx(1, abs=1e-3)
        assert -1e-3 <= row["rest"] < 0.5 and row["products"] <= row["outer solves"] + 1e-3


def test_every_step_takes_time_somewhere(rows):
    assert all(any(row[step] > 0 for row in rows) for step in (*STEPS, "products"))


def test_the_page_shows_what_was_measured():
    measured = json.loads((DOCS / "measured" / "profile.json").read_text(encoding="utf-8"))["rows"]
    assert table(measured) in (DOCS / "pages" / "scale.md").read_text(encoding="utf-8")
