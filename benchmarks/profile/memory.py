"""What the peak of memory is made of while a sketch scores tasks: what it keeps, and what its work takes alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from l2l_influence.bilevel import Sketch
from l2l_influence.bilevel.solved_tasks import SolvedTasks
from l2l_influence.bilevel.solvers import LowRank

from ..journal import Row
from ..markdown import Table
from ..metering import measured
from ..scale import Trained, mean
from .size import Size

KEPT = ("rows", "solutions")
WORK = ("gram", "batch")
"""Done one after the other: only the larger counts at the peak."""


def rows(model: str, size: Size) -> Iterator[Row]:
    """One a number of tasks."""
    for count in size.memory:
        yield {"model": model, "what": "sketch", "tasks": count, **composed(Trained(model, count), size.tests[0])}


def composed(trained: Trained, tests: int) -> Row:
    """MiB at the peak of scores on the mean of so many test tasks, and of what they are made of."""
    asked: list[Any] = []

    def make(kind: Any, **options: Any) -> Any:
        asked.append(trained.hook(kind, **options))
        return asked[-1]

    question = mean("sketch", tests)
    peak = measured(lambda: question(make))[1]["mebibytes"]
    system = asked[0].fitted().system
    operator, solved_tasks = system.hessian.operator, system.run.solved_tasks
    at_once = len(next(solved_tasks.microbatches()).batch.index)
    return {
        "peak": peak,
        "drawn": len(operator.rows),
        "at once": at_once,
        "rows": operator.rows.nbytes / 2**20,
        "solutions": solved_tasks._kept_bytes / 2**20,
        "gram": measured(lambda: LowRank(operator.rows).plus_identity(system.damping))[1]["mebibytes"],
        "batch": _drawing(
            solved_tasks.subset(list(range(at_once))), max(1, len(operator.rows) // len(solved_tasks.tasks))
        ),
    }


def _drawing(batch: SolvedTasks, draws: int) -> float | None:
    """What it takes to make a batch's rows, beside these and the inner solutions that are kept."""
    made, cost = measured(lambda: Sketch(draws).weighted_rows(batch))
    if cost["mebibytes"] is None:
        return None
    return max(0.0, float(cost["mebibytes"]) - (made.nbytes + batch._kept_bytes) / 2**20)


def table(rows: list[Row]) -> Table:
    lines: Table = [
        ["network", "tasks", "peak memory", "rows of the sketch", "kept inner solutions"]
        + ["Gram matrix and factor, while made", "a batch of tasks, while its rows are made", "rest of the peak"]
    ]
    for row in rows:
        drawn, batch = f" ({row['drawn']:,})", f" ({row['at once']:,})"
        kept = [_told(row["rows"]) + drawn, _told(row["solutions"])]
        work = [_told(row["gram"]), _told(row["batch"]) + batch, _told(_rest(row))]
        lines.append([row["model"], f"{row['tasks']:,}", _told(row["peak"]), *kept, *work])
    return lines


def _rest(row: Row) -> float | None:
    if None in (row["peak"], *(row[name] for name in WORK)):
        return None
    rest: float = row["peak"] - sum(row[name] for name in KEPT) - max(row[name] for name in WORK)
    return rest


def _told(mebibytes: float | None) -> str:
    return "not told" if mebibytes is None else f"{mebibytes:.0f} MiB"
