"""Where time and memory go: shares that are whole, of functions that exist, as the pages have them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from itertools import count
from pathlib import Path

import pytest

from benchmarks.journal import Row
from benchmarks.profile import contests, questions, shared
from benchmarks.profile import run as profiling
from benchmarks.profile.memory import composed
from benchmarks.profile.memory import table as memory_table
from benchmarks.profile.run import PARTS, run, tables
from benchmarks.profile.size import Size
from benchmarks.profile.stopwatch import Steps, Stopwatch, innermost, outermost, places, shares, spent
from benchmarks.scale import Trained
from l2l_influence.bilevel import solved_tasks as solved_tasks
from l2l_influence.bilevel import task

pytestmark = pytest.mark.benchmarks

TINY = Size(3, (1, 2), 2, 2, 1, {"gamma": 2, "sketch": 3}, (2, 3))


@pytest.fixture(scope="module")
def patched(group_of_one: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One network, few tasks; and this process alone where there would be two."""
    written = tmp_path_factory.mktemp("shared") / "found.json"

    def launched(module: str, ranks: int, model: str, counts: str) -> list[Row]:
        shared._worker(model, json.loads(counts), written)
        found: list[Row] = json.loads(written.read_text(encoding="utf-8"))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiling, "MODELS", {"OmniglotFC": profiling.MODELS["OmniglotFC"]})
        patch.setattr(profiling, "QUICK", TINY)
        patch.setattr(shared, "launched", launched)
        yield


@pytest.fixture(scope="module")
def out(patched: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run wrote."""
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    run(True, path)
    return path


@pytest.fixture(scope="module")
def rows(out: Path) -> list[Row]:
    found: list[Row] = json.loads(out.read_text(encoding="utf-8"))["rows"]
    return found


def of(rows: list[Row], part: str) -> list[Row]:
    return [row for row in rows if row["part"] == part]


@pytest.mark.parametrize(
    ("part", "steps"),
    [
        ("questions", (*questions.STEPS, "rest")),
        ("contests", (*contests.STEPS, "rest")),
        ("shared", (*shared.STEPS, "rest", "first calls")),
    ],
)
def test_shares_are_of_the_whole(rows: list[Row], part: str, steps: tuple[str, ...]) -> None:
    assert of(rows, part)
    for row in of(rows, part):
        assert sum(row[step] for step in steps) == pytest.approx(1, abs=1e-2)
        assert all(0 <= row[step] <= 1 for step in steps) and row["seconds"] > 0


@pytest.mark.parametrize(
    ("part", "steps"),
    [
        ("questions", (*questions.STEPS, "products")),
        ("contests", tuple(contests.STEPS)),
        ("shared", tuple(shared.STEPS)),
    ],
)
def test_every_step_takes_time_somewhere(rows: list[Row], part: str, steps: tuple[str, ...]) -> None:
    assert all(any(row[step] > 0 for row in of(rows, part)) for step in steps)


def test_little_is_left_over(rows: list[Row]) -> None:
    assert all(row["rest"] < 0.5 for part in ("questions", "contests") for row in of(rows, part))
    assert all(row["products"] <= row["outer solves"] for row in of(rows, "questions"))


def test_all_of_ours_are_profiled(rows: list[Row]) -> None:
    found = {(row["what"], row["by"]) for row in of(rows, "contests")}
    assert len(found) == len(of(rows, "contests")) == 6
    assert all(by.startswith("l2l_influence") for _, by in found)
    assert all(row["cold"] > 0 and row["warm"] > 0 and 0 <= row["system"] <= 1 for row in of(rows, "contests"))


def test_both_sizes_of_a_sketch_are_taken_apart(rows: list[Row]) -> None:
    assert [row["tasks"] for row in of(rows, "memory")] == list(TINY.memory)
    for row in of(rows, "memory"):
        assert row["drawn"] == 16 * row["tasks"] and row["at once"] <= row["tasks"]
        assert row["solutions"] > 0
        assert row["peak"] is None or row["rows"] + row["solutions"] < row["peak"]


def test_where_memory_is_not_told_nothing_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.metering.CLEAR", Path("/no/such/file"))
    row = {"model": "OmniglotCNN", "tasks": 2, **composed(Trained("OmniglotCNN", 2), 1)}
    assert memory_table([row])[1].count("not told") == 3


def test_tables_show_every_row(rows: list[Row]) -> None:
    assert "".join(tables(rows).values()).count("| OmniglotFC |") == len(rows) == 4 + 6 + 2 + 2


def test_what_is_there_is_not_profiled_again(out: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "PARTS", dict.fromkeys(PARTS))  # cannot be called
    before = out.read_text(encoding="utf-8")
    run(True, out)
    assert out.read_text(encoding="utf-8") == before


# ---- the stopwatch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [questions.STEPS, questions.PRODUCTS, contests.STEPS, shared.STEPS])
def test_functions_that_are_named_exist(steps: Steps) -> None:
    for functions in steps.values():
        assert all(places(*function) for function in functions)


def test_a_function_that_is_gone_is_an_error() -> None:
    with pytest.raises(LookupError):
        spent(lambda: None, {"step": [("bilevel.solved_tasks", "SolvedTasks.no_such_method")]}, float)


def test_time_is_that_of_the_steps_that_it_is_inside_of() -> None:
    ticks = count()
    watch = Stopwatch(lambda: float(next(ticks)))  # each look at the clock takes a second
    inner = watch.timed("inner", lambda: None)
    outer = watch.timed("outer", lambda: (inner(), inner()))
    outer()
    assert watch.spent == {(): 1, ("outer",): 3, ("outer", "inner"): 2}
    steps: Steps = {"outer": [], "inner": []}
    assert shares(watch.spent, steps, innermost) == {"outer": 1 / 2, "inner": 1 / 3, "rest": 1 / 6, "seconds": 6}
    assert shares(watch.spent, steps, outermost)["outer"] == pytest.approx(5 / 6)


def test_what_is_raised_ends_its_step() -> None:
    watch = Stopwatch(lambda: 0.0)

    def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        watch.timed("step", fail)()
    watch.turn(())
    assert set(watch.spent) == {(), ("step",)}


class Kept:
    @cached_property
    def value(self) -> int:
        return 1


def test_functions_are_timed_wherever_they_are_called_by_name_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "Kept", Kept, raising=False)
    before, seen = task.stack, []
    found = spent(
        lambda: seen.extend((task.stack, solved_tasks.stack, Kept().value)),
        {"stack": [("bilevel.task", "stack")], "value": [("bilevel.task", "Kept.value")]},
        count().__next__,
    )
    assert seen[0].__wrapped__ is seen[1].__wrapped__ is before and task.stack is solved_tasks.stack is before
    assert found[("value",)] == 1 and Kept().value == 1
