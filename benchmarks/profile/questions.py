"""Scores and removals, as ``scale`` asks for them: processor time, by functions that are never inside one another."""

from __future__ import annotations

import time
from collections.abc import Iterator

from l2l_influence import QueryInfluence

from ..journal import Row
from ..markdown import Table
from ..scale import Question, Trained, each, mean
from .size import Size
from .stopwatch import Steps, outermost, shares, spent

STEPS = {
    "test gradients": [
        ("analysis.passes.targets", "each_test_gradient"),
        ("analysis.passes.targets", "mean_test_gradient"),
    ],
    "rows of the sketch": [("bilevel.hessians.sketch", "Sketch.weighted_rows")],
    "Gram matrix, its eigenvalues and factor": [
        ("bilevel.solvers.gram", "LowRankPlusIdentity.__init__"),
        ("bilevel.solvers.gram", "LowRankOperator.largest_eigenvalue"),
        ("bilevel.hessians.sketch", "SampledRows.effective_damping"),
    ],
    "outer solves": [("bilevel.solvers.base", "LinearSolver.solve")],
    "scores": [("analysis.passes.passes", "walk")],
}

PRODUCTS: Steps = {"products": [("bilevel.hessians.base", "OverTasks.matvec")]}
"""With all tasks' parts of the Hessian: inside the outer solves."""


def questions(size: Size) -> dict[str, tuple[int, Question]]:
    """N, and what is asked, by what the table calls it."""
    few, many = size.tests
    return {
        f"sketch, each of {few:,}": (size.tasks, each("sketch", few)),
        f"sketch, each of {many:,}": (size.tasks, each("sketch", many)),
        "sketch, removal of a query sample": (size.tasks, lambda make: make(QueryInfluence).remove([(0, 0)])),
        f"gauss-newton, mean of {few:,}": (size.iterative, mean("gauss-newton", few)),
    }


def rows(model: str, size: Size) -> Iterator[Row]:
    """One a question."""
    for what, (count, question) in questions(size).items():
        yield {"model": model, "what": what, "tasks": count, **profiled(Trained(model, count), question)}


def profiled(trained: Trained, question: Question) -> Row:
    """Shares of each step, of the rest, and, inside the outer solves, of products with the Hessian."""
    found = spent(lambda: question(trained.hook), {**STEPS, **PRODUCTS}, time.process_time)
    whole = shares(found, STEPS, outermost)
    products = sum(seconds for path, seconds in found.items() if "products" in path)
    return {**whole, "products": products / whole["seconds"]}


def table(rows: list[Row]) -> Table:
    lines: Table = [["network", "tasks", "question", *STEPS, "rest", "products with the Hessian"]]
    for row in rows:
        numbers = [f"{100 * row[step]:.0f} %" for step in (*STEPS, "rest", "products")]
        lines.append([row["model"], f"{row['tasks']:,}", row["what"], *numbers])
    return lines
