"""Two processes, as ``processes`` has them: time on the clock of the first, by what it does for both."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist

from ..journal import Row
from ..markdown import Table
from ..processes import job, joined, launched
from .size import Size
from .stopwatch import innermost, shares, spent

STEPS = {
    "waiting": [("parallel.ranks", "DistributedRanks._meet"), ("parallel.ranks", "DistributedRanks._gathered")],
    "exchanging": [
        ("parallel.ranks", f"DistributedRanks.{name}")
        for name in ("sum", "joined", "columns", "maximum", "first", "require_same")
    ]
    + [("parallel.ranks", "Ranks.gather")],
    "for itself": [
        ("bilevel.memory", "allocated_bytes"),
        ("parallel.ranks", "_digest"),
        ("bilevel.solvers.gram", "_shifted_factor"),
        ("analysis.run", "Run.present"),
        ("analysis.inner_notes", "_inner_notes"),
        ("analysis.run", "RunAt.test_tasks"),
    ],
}
"""Each without what is inside it: whether all have come, then what they tell each other, and what is not shared out.
The rest is."""

FEW = 2
"""Tasks that first calls are looked at with: what they take beyond the same again."""


def rows(model: str, size: Size) -> Iterator[Row]:
    """One a kind of Hessian."""
    yield from launched(__name__, 2, model, json.dumps(size.shared))


def _worker(model: str, counts: dict[str, int], out: Path) -> None:
    """Under torchrun."""
    with joined() as group:
        found = [_profiled(model, kind, count, group) for kind, count in counts.items()]
        if dist.get_rank() == 0:
            out.write_text(json.dumps(found), encoding="utf-8")


def _profiled(model: str, kind: str, count: int, group: dist.ProcessGroup) -> Row:
    """Shares of the seconds on the clock, first calls included."""
    first, again = (_seconds(model, kind, FEW, group) for _ in range(2))
    ask = job(model, kind, count, group)
    dist.barrier()
    whole = shares(spent(ask, STEPS, time.perf_counter), STEPS, innermost)
    extra, seconds = max(0.0, first - again), whole.pop("seconds")
    found = {step: share * seconds / (seconds + extra) for step, share in whole.items()}
    found["first calls"] = extra / (seconds + extra)
    return {"model": model, "what": kind, "tasks": count, **found, "seconds": seconds + extra}


def _seconds(model: str, kind: str, count: int, group: dist.ProcessGroup) -> float:
    ask = job(model, kind, count, group)
    dist.barrier()
    return sum(spent(ask, {}, time.perf_counter).values())


def table(rows: list[Row]) -> Table:
    lines: Table = [["network", "tasks", "Hessian", "shared out", *STEPS, "first calls"]]
    for row in rows:
        numbers = [f"{100 * row[step]:.0f} %" for step in ("rest", *STEPS, "first calls")]
        lines.append([row["model"], f"{row['tasks']:,}", row["what"], *numbers])
    return lines


if __name__ == "__main__":
    _worker(sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]))
