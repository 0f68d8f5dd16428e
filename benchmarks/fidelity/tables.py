"""Measured rows as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..journal import Row
from ..markdown import Table, captioned, number
from .aims import aims
from .estimators import ESTIMATORS
from .rows import Rows
from .truths import HALVES, TENTHS

ITEM_GRADIENTS = {"task": "tasks", "query": "query samples", "support": "support samples"}
SCALE_NAMES = {0.0: "0", 0.1: "a tenth", 1.0: "its own", 10.0: "ten times", 100.0: "a hundred times"}

Cell = Callable[[Row], str]


def page_tables(measured: Mapping[str, Any]) -> dict[str, str]:
    """Captioned tables by name, in the page's order."""
    rows = Rows(measured["rows"])
    if not rows.worlds:
        return {}
    tables = {
        "aims": ("Aims", aims(rows)),
        "worlds": ("The learners, and what their ground truths are worth", _worlds(rows)),
    }
    for level, name in ITEM_GRADIENTS.items():
        asked = [world for world in rows.worlds if rows.of(world=world, level=level)]
        if asked:
            table = _by_world(rows, asked, level, _lds("warm"), best=True)
            tables[level] = (f"Halves of the {name}: LDS", table)
        tenths = [world for world in asked if any("tenths" in row for row in rows.of(world=world, level=level))]
        if tenths:
            table = _by_world(rows, tenths, level, _lds("warm", TENTHS), best=True, design=TENTHS)
            tables[f"{level}, tenths"] = (f"Tenths of the {name}: LDS", table)
    anew = [world for world in rows.worlds if "scratch" in rows.world(world)["seeds"]]
    if anew:
        table = _by_world(rows, anew, "task", _lds("scratch"))
        tables["scratch"] = ("Halves of the tasks, retrained from scratch: LDS", table)
    tables["singles"] = ("Single items", _singles(rows))
    tables["found"] = ("Wrong tasks found", _found(rows))
    tables["cost"] = (
        "Seconds / MiB for the scores of all tasks on all test tasks",
        _by_world(rows, rows.worlds, "task", _cost),
    )
    tables["damping"] = ("Damping: LDS of halves of the tasks", _damping(rows))
    causes = [row for row in measured["rows"] if row["table"] == "causes"]
    if causes:
        tables["causes"] = ("What keeps the default's LDS down, one thing taken away at a time", _causes(causes))
    source = f"`{measured['command']}`; " + ", ".join(
        f"{name} {measured['versions'][name]}" for name in ("l2l_influence", "torch")
    )
    return {
        name: captioned(at, caption, f"{source}.", table)
        for at, (name, (caption, table)) in enumerate(tables.items(), start=1)
    }


# ---- tables -------------------------------------------------------------------------------------------------------


DESCRIPTION: dict[str, Cell] = {
    "parameters P": lambda row: str(row["parameters"]),
    "training tasks, of them wrong": lambda row: f"{row['tasks']}, {row['wrong']}",
    "‖D_λ L_Total‖ at λ*, in average tasks' gradients": lambda row: f"{row['stationarity']:.1g}",
    "mean test loss at λ*": lambda row: number(row["test"]),
    "seeds of retraining": lambda row: ", ".join(f"{name} {count}" for name, count in row["seeds"].items()),
    "ceiling of LDS, tasks": lambda row: _ceilings(row["noise"]),
    "LDS of warm against scratch retraining": lambda row: _or_dash(row["noise"].get("agreement")),
    "wrong tasks found by true leave-one-out": lambda row: _or_dash(row.get("retraining", {}).get("found")),
}


def _worlds(rows: Rows) -> Table:
    lines = [[name, *(describe(rows.world(world)) for world in rows.worlds)] for name, describe in DESCRIPTION.items()]
    return [["", *rows.titles], *lines]


def _ceilings(noise: Row) -> str:
    found = [f"{name} {_interval(ceiling)}" for name, ceiling in noise["ceiling"].items()]
    return ", ".join(found) or "—"


def _by_world(
    rows: Rows, worlds: Sequence[str], level: str, cell: Cell, best: bool = False, design: str = HALVES
) -> Table:
    """A line for each estimator that was asked, a column for each of these worlds."""
    table = [["estimator", *(rows.title(world) for world in worlds)]]
    for name in _names(rows, level):
        found = [rows.of(world=world, level=level, estimator=name) for world in worlds]
        table.append([name, *(_own_and_best(each, cell, best, design) for each in found)])
    return table


def _own_and_best(found: Sequence[Row], cell: Cell, best: bool, design: str) -> str:
    """At the estimator's own damping, and below it at the one that turned out best."""
    if not found:
        return ""
    own, *others = [row for row in found if row["damping"] == 1.0] + [row for row in found if row["damping"] != 1.0]
    shown = _verdict(own, cell)
    measured = [row for row in [own, *others] if row["verdict"] == "measured"]
    top = max(measured, key=lambda row: _warm(row, design), default=own)
    return shown if not best or top is own else f"{shown}<br>{cell(top)} at {SCALE_NAMES[top['damping']]}"


def _warm(row: Row, design: str) -> float:
    value: float = row[design]["warm"]["lds"][0]
    return value


def _lds(truth: str, design: str = HALVES) -> Cell:
    return lambda row: _interval(row[design][truth]["lds"])


def _cost(row: Row) -> str:
    memory = "—" if row["mebibytes"] is None else f"{row['mebibytes']:.0f}"
    return f"{row['seconds']:.2f} / {memory}"


def _singles(rows: Rows) -> Table:
    table = [["items", "estimator", *rows.titles]]
    for level, what in ITEM_GRADIENTS.items():
        for name in _names(rows, level):
            cells = [_at_best(rows.of(world=world, level=level, estimator=name)) for world in rows.worlds]
            table.append([what, name, *cells])
    return table


def _at_best(found: Sequence[Row]) -> str:
    """At its own damping: cosine / Pearson's r / Spearman's ρ of means / relative error."""
    own = [row for row in found if row["damping"] == 1.0]
    return _verdict(own[0], _one_by_one) if own else ""


def _one_by_one(row: Row) -> str:
    single, moved = row["singles"]["warm"], row.get("moved", {})
    values = (moved.get("cosine"), single["pearson"], single["mean"], moved.get("error"))
    return " / ".join(_or_dash(value) for value in values)


def _found(rows: Rows) -> Table:
    """Precision at the number of wrong tasks, and the area under the ROC curve."""
    truth = [_detected(rows.world(world).get("retraining")) for world in rows.worlds]
    table = _by_world(rows, rows.worlds, "task", _detected)
    return [table[0], ["true leave-one-out", *truth], *table[1:]]


def _detected(row: Row | None) -> str:
    return "—" if row is None else f"{number(row['found'])} / {number(row['auc'])}"


def _damping(rows: Rows) -> Table:
    table = [["estimator", "damping", *rows.titles]]
    for estimator in ESTIMATORS:
        if len(estimator.dampings) > 1:
            for scale in sorted(estimator.dampings):
                found = [rows.of(world=w, level="task", estimator=estimator.name, damping=scale) for w in rows.worlds]
                cells = [_verdict(each[0], _lds("warm")) if each else "" for each in found]
                table.append([estimator.name, SCALE_NAMES[scale], *cells])
    return table


def _causes(rows: Sequence[Row]) -> Table:
    """LDS by damping; how far λ* is from rest; how much removal changes a test loss."""
    scales = {key: SCALE_NAMES[float(key)] for row in rows for key in row["lds"]}
    header = ["", *(f"LDS, damping {name}" for name in scales.values()), "ceiling"]
    table = [[*header, "gradient at λ*, in tasks", "mean test loss", "mean change of it"]]
    for row in rows:
        cells = [_interval(row["lds"][key]) if key in row["lds"] else "refused" for key in scales]
        ceiling = "—" if row["ceiling"] is None else _interval(row["ceiling"])
        shown = (f"{row['stationarity']:.1g}", number(row["test"]), f"{row['change']:.2g}")
        table.append([row["estimator"], *cells, ceiling, *shown])
    return table


def _names(rows: Rows, level: str) -> list[str]:
    """Estimators that have rows, in order."""
    return [each.name for each in ESTIMATORS if rows.of(level=level, estimator=each.name)]


# ---- cells --------------------------------------------------------------------------------------------------------


def _verdict(row: Row, cell: Cell) -> str:
    return cell(row) if row["verdict"] == "measured" else str(row["verdict"])


def _interval(values: Iterable[float]) -> str:
    value, low, high = values
    return f"{number(value)} ({number(low)} to {number(high)})"


def _or_dash(value: float | None) -> str:
    return "—" if value is None else number(value)
