"""The table of costs, small: that it is whole, resumes, and says what it measured."""

from __future__ import annotations

import json

import pytest

from benchmarks import scale as scaling
from benchmarks.scale import Size, exponent, scale, tables

pytestmark = pytest.mark.benchmarks


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Of a run over one network."""
    patch, out = pytest.MonkeyPatch(), tmp_path_factory.mktemp("scale") / "scale.json"
    patch.setattr(scaling, "QUICK", Size(4, (2, 3), (3, 6), (2, 1)))
    patch.setattr(scaling, "MODELS", {"OmniglotCNN": scaling.MODELS["OmniglotCNN"]})
    patch.setattr(scaling, "WIDE", ("OmniglotCNN", "MiniImagenetCNN"))
    scale(True, out)
    yield out
    patch.undo()


def test_all_parts_are_measured(out):
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert {row["part"] for row in rows} == set(scaling.PARTS)
    assert len(rows) == 5 + 4 + 4 + 2 * 2
    assert all(row["seconds"] > 0 and row["ratio"] > 0 for row in rows)


def test_what_is_there_is_not_measured_again(out, monkeypatch):
    monkeypatch.setattr(scaling, "QUICK", Size(4, (2, 3), (3, 6), (2, 1)))
    monkeypatch.setattr(scaling, "MODELS", {"OmniglotCNN": scaling.MODELS["OmniglotCNN"]})
    monkeypatch.setattr(scaling, "WIDE", ("OmniglotCNN", "MiniImagenetCNN"))
    monkeypatch.setattr(scaling, "PARTS", dict.fromkeys(scaling.PARTS))  # cannot be called
    before = out.read_text(encoding="utf-8")
    scale(True, out)
    assert out.read_text(encoding="utf-8") == before


def test_tables_show_every_row(out):
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    lines = "".join(table for name, table in tables(rows).items() if name != "aims")
    assert lines.count("| OmniglotCNN |") + lines.count("| MiniImagenetCNN |") == len(rows)


def test_the_exponent_is_the_slope_in_log_log():
    assert exponent([{"tasks": n, "seconds": 3 * n**1.5} for n in (10, 100, 1000)]) == pytest.approx(1.5)


def test_aims_are_held_against_the_worst_of_what_they_are_about():
    def rows(part, **found):
        row = {"part": part, "model": "OmniglotFC", "tasks": 9, "mebibytes": 9}
        return [{**row, "what": what, "ratio": ratio} for what, ratio in found.items()]

    scores = {"gamma, mean": 3.9, "gauss-newton, mean": 10.1, "sketch, each of 3": 2.0, "sketch, each of 6": 2.1}
    removals = {"1 task": 0.01, "20 tasks": 0.03, "1 query sample": 0.004, "1 support sample": 0.005}
    told = tables(
        [
            *rows("scores", **scores),
            *rows("removals", **removals),
            *(
                {**rows("growth", **{kind: 1})[0], "tasks": n, "seconds": n**slope, "mebibytes": m}
                for kind, slope, most in (("gamma", 0.9, 100), ("sketch", 1.1, 120))
                for n, m in ((10, 50), (100, 100), (1000, most))
            ),
        ]
    )["aims"]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines()[2:]]
    assert [line[2] for line in lines] == [
        "3.9, met",
        "10, **missed**",
        "2, met",
        "1.1, met",
        "0.03, **missed**",
        "0.005, met",
        "1.1, **missed**",
        "1.2, **missed**",
    ]
