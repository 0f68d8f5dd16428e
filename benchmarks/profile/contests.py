"""This package's contestants in ``peers``: processor time of a call in memory that was used before, and of one that was
not, as ``peers`` has it."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator

from ..journal import Row
from ..markdown import Table
from ..metering import measured
from ..peers.contest import Contestant
from ..peers.run import contests
from ..peers.worlds import world
from .size import Size
from .stopwatch import Path, innermost, shares, spent

OURS = "l2l_influence"

PRODUCTS, CHECKS = "Hessian products", "residual checks"

STEPS = {
    "size of a batch": [("bilevel.memory", "allocated_bytes")],
    "tasks stacked": [("bilevel.task", "stack"), ("bilevel.solved_tasks", "SolvedTasks._start")],
    "wide layers": [("bilevel.inner.steps.factored", "wide_layers")],
    "linearising": [("bilevel.inner.inverses.inverse", "InnerHessian.for_many_products")],
    PRODUCTS: [
        ("bilevel.inner.inverses.inverse", "InnerHessian.matvec"),
        ("bilevel.inner.inverses.inverse", "_Linearised.matvec"),
    ],
    "vectors of CG": [("bilevel.solvers.cg", "CG._conjugate_gradients")],
    CHECKS: [("bilevel.solvers.base", "LinearSolver.solve")],
    "rows, EK-FAC": [("bilevel.inner.proximal", "ProximalMap.__init__")],
    "Gram matrix and factor": [("bilevel.solvers.gram", "LowRankPlusIdentity.__init__")],
    "closed form applied": [
        ("bilevel.solvers.gram", "LowRankPlusIdentity.inverse"),
        ("bilevel.inner.inverses.ekfac", "EKFACPlusIdentity.inverse"),
    ],
    "gradient": [("bilevel.inner.base", "InnerMap.total"), ("bilevel.inner.steps.steps", "StepsMap.total")],
}
"""Each without what is inside it. A product right inside a solve is that of its check: the others are inside CG."""


def rows(model: str, size: Size) -> Iterator[Row]:
    """One a contestant."""
    at = world(model, size.contest)
    for contest in contests(at):
        for ours in (each for each in contest.contestants if each.name.startswith(OURS)):
            found = {**profiled(ours), **starts(ours, size.calls)}
            yield {"model": model, "what": contest.what, "by": ours.name, "tasks": size.contest, **found}


def profiled(ours: Contestant) -> Row:
    """Shares of each step, and of the rest, in a call after another."""
    ours.run()
    return shares(spent(ours.run, STEPS, time.process_time), STEPS, _step)


def _step(path: Path) -> str:
    return CHECKS if path[-2:] == (CHECKS, PRODUCTS) else innermost(path)


def starts(ours: Contestant, calls: int) -> Row:
    """Seconds after memory was given back, and of calls in a row; and the system's share in these, which hands out
    memory."""
    cold = statistics.median(measured(ours.run)[1]["seconds"] for _ in range(calls))
    ours.run()
    warm = [_times(ours.run) for _ in range(calls)]
    seconds, system = sum(one for one, _ in warm), sum(other for _, other in warm)
    return {"cold": cold, "warm": statistics.median(one for one, _ in warm), "system": system / seconds}


def _times(function: Callable[[], object]) -> tuple[float, float]:
    """Processor seconds, and those of them in the system."""
    start, before = time.process_time(), os.times().system
    function()
    return time.process_time() - start, os.times().system - before


def table(rows: list[Row]) -> Table:
    lines: Table = [["network", "what", "by", *STEPS, "rest", "first call / next", "system, in the next"]]
    for row in rows:
        numbers = [f"{100 * row[step]:.0f} %" if row[step] else "" for step in (*STEPS, "rest")]
        starts = [f"{row['cold'] / row['warm']:.2f}", f"{100 * row['system']:.0f} %"]
        lines.append([row["model"], row["what"], row["by"].removeprefix(f"{OURS}, "), *numbers, *starts])
    return lines
