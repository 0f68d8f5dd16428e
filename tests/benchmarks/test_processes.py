"""One process against two: medians over turns, a model that adds up, and tables as they were measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import processes as program
from benchmarks.journal import Row
from benchmarks.processes import BANDWIDTH, BYTES, FULL, ROWS, compared, measured_table, model, model_table, processes

DOCS = Path(__file__).parents[2] / "docs"


def turns(one: list[float], two: list[float], kind: str = "gamma", tasks: int = 10) -> list[Row]:
    pairs = enumerate(zip(one, two, strict=True))
    return [{"model": "OmniglotFC", "turn": n, "kind": kind, "tasks": tasks, "one": a, "two": b} for n, (a, b) in pairs]


def test_ratios_are_of_the_same_turn() -> None:
    (row,) = compared(turns([4.0, 9.0, 2.0], [2.0, 3.0, 2.0]))
    assert (row["seconds"], row["ratio"], row["lowest"], row["highest"]) == (4.0, 2.0, 1.0, 3.0)


def test_the_model_charges_a_sketch_for_the_rows_that_it_has() -> None:
    rows = [
        {"model": "OmniglotFC", "tasks": 10, "kind": kind, "seconds": s}
        for kind, s in zip(FULL, (10, 30, 50), strict=True)
    ]
    found = {(row["kind"], row["tasks"], row["parameters"], row["ranks"]): row["seconds"] for row in model(rows)}
    share = 121_000 / sum(value.numel() for value in program.MODELS["OmniglotFC"]().parameters())
    assert found["gamma", 10_000, 121_000, 1] == pytest.approx(10_000 * share)
    assert found["sketch", 10_000, 121_000, 1] == pytest.approx((10_000 + 2 * ROWS) * share)
    moved = 2 * 121_000 * BYTES * 7 / 8 / BANDWIDTH
    assert found["gamma", 10_000, 121_000, 8] == pytest.approx(10_000 * share / 8 + moved)


def test_turns_that_were_measured_are_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def measured(name: str, counts: dict[str, int], ranks: int) -> dict[str, float]:
        asked.append(ranks)
        return dict.fromkeys(counts, 2.0 / ranks)

    monkeypatch.setattr(program, "measured", measured)
    for _ in range(2):
        processes(True, tmp_path / "processes.json")
    assert asked == [1, 2] * len(program.MODELS)
    rows = json.loads((tmp_path / "processes.json").read_text(encoding="utf-8"))["rows"]
    assert measured_table(rows) in capsys.readouterr().out and all(row["ratio"] == 2 for row in rows)


def test_the_page_shows_what_was_measured() -> None:
    measured = json.loads((DOCS / "measured" / "processes.json").read_text(encoding="utf-8"))
    page = (DOCS / "pages" / "distributed.md").read_text(encoding="utf-8")
    assert measured_table(measured["rows"]) in page and model_table(measured["model"]) in page
    assert measured["model"] == model(measured["rows"])
