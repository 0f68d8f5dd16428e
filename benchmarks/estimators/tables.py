"""Measured rows as Markdown tables: means over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from ..journal import Row
from ..markdown import Table, captioned, number
from .fidelity import DAMPINGS, ESTIMATORS
from .inverses import INVERSES

DEFAULT = 2
"""Position of the hooks' damping in ``DAMPINGS``."""

TITLES = {"convex": "convex", "anil": "ANIL", "maml": "MAML"}

DAMPING_NAMES = ("0", "1e-3", "1e-2", "1e-1")

CAPTIONS = {
    "task": "Single tasks",
    "query": "Single query samples",
    "support": "Single support samples, closed form",
    "support, resolved": 'Single support samples, `removal="resolve"`',
    "half": "Random halves of the tasks",
}
ONE_BY_ONE, AS_GROUPS = ("cosine", "pearson", "spearman", "error"), ("lds", "spearman", "error")
NO_SIZE = "identity"
"""Its Δλ has no unit, so that a relative error would say nothing."""


def page_tables(measured: Mapping[str, Any]) -> dict[str, str]:
    """Captioned tables by name, in the page's order."""
    rows = Rows(measured["rows"])
    tables = {"worlds": ("The problems", _worlds(rows))}
    tables |= {question: (caption, _fidelity(rows, question)) for question, caption in CAPTIONS.items()}
    tables["damping"] = ("Damping: r of single tasks, then of single query samples", _damping(rows))
    tables["seconds"] = ("Processor seconds for the scores of all tasks on one test gradient", _seconds(rows))
    tables["inverses"] = ("Inverses of the inner Hessian, on proximal inner problems", _inverses(rows))
    source = _source(measured)
    return {
        name: captioned(at, caption, source, table)
        for at, (name, (caption, table)) in enumerate(tables.items(), start=1)
    }


class Rows:
    """Rows by what they are of; ``worlds`` in the order measured, ``titles`` as tables call them."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = list(rows)
        self.worlds = list(dict.fromkeys(row["world"] for row in self._rows))
        self.titles = [TITLES[world] for world in self.worlds]

    def of(self, **wanted: Any) -> list[Row]:
        """One row a seed."""
        return [row for row in self._rows if all(row.get(key) == value for key, value in wanted.items())]


# ---- tables -------------------------------------------------------------------------------------------------------


DESCRIPTION: dict[str, Callable[[list[Row]], str]] = {
    "parameters P": lambda found: str(found[0]["parameters"]),
    "training tasks": lambda found: str(found[0]["tasks"]),
    "‖D_λ L_Total‖ at λ*, in average tasks' gradients": lambda found: f"{_most(found, 'stationarity'):.0e}",
    "left by re-optimisation, of what a removal put there": lambda found: f"{_most(found, 'left'):.0e}",
    "smallest eigenvalue of δ_o I + H": lambda found: f"{min(row['smallest'] for row in found):.2g}",
    "largest": lambda found: f"{_most(found, 'largest'):.3g}",
    "`exact` against finite differences": lambda found: f"{_most(found, 'exact'):.0e}",
    **{
        f"‖Δλ‖ / ‖λ*‖ by removing a {level}": lambda found, level=level: f"{mean(r['moved'][level] for r in found):.2g}"
        for level in ("task", "query", "support", "half")
    },
    "mean query loss of training tasks": lambda found: number(mean(row["train"] for row in found)),
    "of test tasks": lambda found: number(mean(row["test"] for row in found)),
    "of test tasks before training": lambda found: number(mean(row["untrained"] for row in found)),
}
"""What is said of a problem, from its rows, one a seed; the worst of them where one figure could mislead."""


def _worlds(rows: Rows) -> Table:
    by_world = [rows.of(table="worlds", world=world) for world in rows.worlds]
    lines = [[name, *(describe(found) for found in by_world)] for name, describe in DESCRIPTION.items()]
    return [["", *rows.titles], *lines]


def _most(found: list[Row], name: str) -> float:
    return max(row[name] for row in found)


def _fidelity(rows: Rows, question: str) -> Table:
    names = AS_GROUPS if question == "half" else ONE_BY_ONE
    table = [["estimator", *rows.titles]]
    for estimator in ESTIMATORS:
        if estimator.answers(question):
            per_world = [rows.of(question=question, estimator=estimator.name, world=world) for world in rows.worlds]
            shown = names[:-1] if estimator.name == NO_SIZE else names
            table.append([estimator.name, *(_default_and_best(found, shown) for found in per_world)])
    return [*table, ["spread over seeds", *(_spread(rows, question, world, names[:-1]) for world in rows.worlds)]]


def _spread(rows: Rows, question: str, world: str, names: Sequence[str]) -> str:
    """Highest less lowest figure of an estimator at the hooks' damping, at most."""
    widest = dict.fromkeys(names, 0.0)
    for estimator in ESTIMATORS:
        found = rows.of(question=question, estimator=estimator.name, world=world)
        if found and all(row["verdict"][DEFAULT] == "measured" for row in found):
            for name in names:
                values = [row[name][DEFAULT] for row in found]
                widest[name] = max(widest[name], max(values) - min(values))
    return " / ".join(number(width) for width in widest.values())


def _default_and_best(found: Sequence[Row], names: Sequence[str]) -> str:
    """The hooks' damping, and below it the one of ``DAMPINGS`` that turned out best."""
    best = _best(found, "lds" if names[0] == "lds" else "pearson")
    first = _figures(found, DEFAULT, names)
    if best is None:
        return first
    second = _figures(found, best, names)
    return f"{first}<br>same" if second == first else f"{first}<br>{second} at {DAMPING_NAMES[best]}"


def _best(found: Sequence[Row], name: str) -> int | None:
    """Position of the damping with the highest mean figure, of those that answered for every seed."""
    answered = [at for at in range(len(DAMPINGS)) if all(row["verdict"][at] == "measured" for row in found)]
    return max(answered, key=lambda at: mean(row[name][at] for row in found), default=None)


def _damping(rows: Rows) -> Table:
    table = [["estimator", *rows.titles]]
    for estimator in ESTIMATORS:
        cells = []
        for world in rows.worlds:
            lines = []
            for question in filter(estimator.answers, ("task", "query")):
                found = rows.of(question=question, estimator=estimator.name, world=world)
                lines.append(" · ".join(_figures(found, at, ("pearson",)) for at in range(len(DAMPINGS))))
            cells.append("<br>".join(lines))
        table.append([f"`{estimator.name}`" if estimator.name == estimator.kind else estimator.name, *cells])
    return table


def _seconds(rows: Rows) -> Table:
    table = [["estimator", *rows.titles]]
    for estimator in ESTIMATORS:
        cells = []
        for world in rows.worlds:
            found = rows.of(table="seconds", estimator=estimator.name, world=world)
            refused = sum(row["verdict"] == "indefinite" for row in found)
            cells.append(_refused(refused, len(found)) or f"{mean(row['seconds'] for row in found):.2f}")
        table.append([f"`{estimator.name}`" if estimator.name == estimator.kind else estimator.name, *cells])
    return table


def _inverses(rows: Rows) -> Table:
    table = [["`inner_solver`", *rows.titles]]
    for inverse in INVERSES:
        cells = []
        for world in rows.worlds:
            found = rows.of(table="inverses", inverse=inverse, world=world)
            numbers = [number(mean(row[name] for row in found)) for name in ("cosine", "error", "pearson")]
            cells.append(" / ".join([*numbers, f"{mean(row['seconds'] for row in found):.2f} s"]))
        table.append([inverse, *cells])
    return table


# ---- cells --------------------------------------------------------------------------------------------------------


def _figures(found: Sequence[Row], at: int, names: Sequence[str]) -> str:
    """Means over seeds at one damping, or why there are none."""
    verdicts = [row["verdict"][at] for row in found]
    if "zero" in verdicts:
        return "zero"
    refused = _refused(verdicts.count("indefinite"), len(found))
    return refused or " / ".join(number(mean(row[name][at] for row in found)) for name in names)


def _refused(count: int, of: int) -> str:
    if not count:
        return ""
    return "indefinite" if count == of else f"indefinite ({count} of {of} seeds)"


def _source(measured: Mapping[str, Any]) -> str:
    seeds = measured["size"]["seeds"]
    which = "seed 0" if seeds == 1 else f"means over seeds 0 to {seeds - 1}"
    versions = ", ".join(f"{name} {measured['versions'][name]}" for name in ("l2l_influence", "torch"))
    return f"`{measured['command']}`, {which}; {versions}."
