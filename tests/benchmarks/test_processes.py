"""One process against two: medians over turns, a model that adds up, and tables as they were measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import processes as program
from benchmarks.journal import Row
from benchmarks.processes import BANDWIDTH, BYTES, FULL, ROWS, compared, measured_table, model, processes

pytestmark = pytest.mark.benchmarks


def turns(one: list[float], two: list[float], apart: list[float]) -> list[Row]:
    own = {"model": "OmniglotFC", "kind": "gamma", "tasks": 10}
    times = enumerate(zip(one, two, apart, strict=True))
    return [{**own, "turn": n, "one": a, "two": b, "apart": c} for n, (a, b, c) in times]


def test_ratios_are_of_the_same_turn() -> None:
    (row,) = compared(turns([4.0, 9.0, 2.0], [2.0, 3.0, 2.0], [4.0, 12.0, 4.0]))
    assert (row["seconds"], row["ratio"], row["lowest"], row["highest"]) == (4.0, 2.0, 1.0, 3.0)
    assert row["apart"] == 1.5  # of 2.0, 1.5 and 1.0


@pytest.mark.parametrize("apart", [False, True])
def test_processes_time_their_scores(group_of_one: None, tmp_path: Path, apart: bool) -> None:
    groups: list[object] = []

    def job(name: str, kind: str, count: int, group: object) -> Callable[[], object]:
        groups.append(group)
        return whole(name, kind, count, group)

    whole = program.job
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "job", job)
        program._worker("OmniglotFC", {"gamma": 2, "sketch": 2}, apart, tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert list(found) == ["gamma", "sketch"] and all(seconds > 0 for seconds in found.values())
    assert [group is None for group in groups] == [apart, apart]


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
    asked: list[tuple[int, bool]] = []

    def measured(name: str, counts: dict[str, int], ranks: int, apart: bool = False) -> dict[str, float]:
        asked.append((ranks, apart))
        return dict.fromkeys(counts, 2.0 if apart else 2.0 / ranks)

    monkeypatch.setattr(program, "measured", measured)
    for _ in range(2):
        processes(True, tmp_path / "processes.json")
    assert asked == [(1, False), (2, False), (2, True)] * len(program.MODELS)
    rows = json.loads((tmp_path / "processes.json").read_text(encoding="utf-8"))["rows"]
    assert measured_table(rows) in capsys.readouterr().out and all(row["ratio"] == row["apart"] == 2 for row in rows)
