"""Where the time goes in what ``scale`` measures: ``python -m benchmarks profile [--quick] [--out FILE]``.

Shares of the processor time of one call, by functions of this package that are never inside one another.
"""

from __future__ import annotations

import cProfile
import pstats
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from l2l_influence import QueryInfluence

from .journal import Journal, Row, as_json, settings
from .markdown import Table, markdown
from .plain import MODELS
from .scale import Question, Trained, each, mean

COMMAND = "python -m benchmarks profile"

STEPS = {
    "test gradients": [("influence/scoring.py", "each_test"), ("influence/scoring.py", "mean_test_gradient")],
    "rows of the sketch": [("bilevel/hessians/sketch.py", "weighted_rows")],
    "Gram matrix and factor": [("bilevel/solvers/gram.py", "__init__")],
    "largest eigenvalue": [("bilevel/solvers/neumann.py", "largest_eigenvalue")],
    "outer solves": [("bilevel/solvers/base.py", "solve")],
    "scores": [("influence/scoring.py", "_walk")],
}
"""Functions by file and name, under what a table calls them."""

PRODUCTS = ("bilevel/hessians/base.py", "matvec")
"""With all tasks' parts of the Hessian: inside the outer solves."""


@dataclass(frozen=True)
class Size:
    """Numbers of tasks that are profiled.

    Attributes:
        tasks: N with a sketch.
        tests: few and many.
        iterative: N with Gauss–Newton.
    """

    tasks: int
    tests: tuple[int, int]
    iterative: int


FULL = Size(1000, (100, 1000), 100)
QUICK = Size(6, (2, 3), 4)


def questions(size: Size) -> dict[str, tuple[int, Question]]:
    """N, and what is asked, by what the table calls it."""
    few, many = size.tests
    return {
        f"sketch, each of {few:,}": (size.tasks, each("sketch", few)),
        f"sketch, each of {many:,}": (size.tasks, each("sketch", many)),
        "sketch, removal of a query sample": (size.tasks, lambda make: make(QueryInfluence).remove([(0, 0)])),
        f"gauss-newton, mean of {few:,}": (size.iterative, mean("gauss-newton", few)),
    }


def profiled(trained: Trained, question: Question) -> Row:
    """Shares of the processor time of a question."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(question, trained.hook)
    return shares(pstats.Stats(profile))


def shares(stats: pstats.Stats) -> Row:
    """Of each step, of the rest, and, inside the outer solves, of products with the Hessian."""
    total: float = vars(stats)["total_tt"]
    found = {step: _spent(stats, functions) / total for step, functions in STEPS.items()}
    return {**found, "rest": 1 - sum(found.values()), "products": _spent(stats, [PRODUCTS]) / total, "seconds": total}


def _spent(stats: pstats.Stats, functions: list[tuple[str, str]]) -> float:
    """Seconds in these functions and in what they call."""
    calls: dict[tuple[str, int, str], tuple[int, int, float, float, object]] = vars(stats)["stats"]
    return sum(
        cumulative
        for (path, _, name), (_, _, _, cumulative, _) in calls.items()
        if any(Path(path).as_posix().endswith(f"l2l_influence/{end}") and name == own for end, own in functions)
    )


def table(rows: list[Row]) -> str:
    """As the page shows it."""
    lines: Table = [["network", "tasks", "question", *STEPS, "rest", "products with the Hessian"]]
    for row in rows:
        numbers = [f"{100 * row[step]:.0f} %" for step in (*STEPS, "rest", "products")]
        lines.append([row["model"], f"{row['tasks']:,}", row["what"], *numbers])
    return markdown(lines)


def profile(quick: bool, out: Path) -> None:
    """Profile what is not in ``out`` with another ending, ``.jsonl``, yet; print the table and write the rows."""
    torch.set_num_threads(1)
    size = QUICK if quick else FULL
    journal = Journal(out.with_suffix(".jsonl"), settings(COMMAND, vars(size)), ("model", "what"))
    for model in MODELS:
        for what, (count, question) in tqdm(questions(size).items(), desc=model, unit="question", disable=None):
            if not journal.has(model, what):
                found = profiled(Trained(model, count), question)
                journal.add([{"model": model, "what": what, "tasks": count, **found}])
    out.write_text(as_json({**journal.settings, "rows": journal.rows}), encoding="utf-8")
    print(table(journal.rows))
