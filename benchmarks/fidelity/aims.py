"""What was aimed at, and what was reached: the aims were set before anything was measured."""

from __future__ import annotations

from collections.abc import Iterator

from ..journal import Row
from ..markdown import Table, number
from .estimators import ALL, DEFAULT, ESTIMATORS
from .rows import Rows

BASELINES = tuple(each.name for each in ESTIMATORS if each.baseline)
OWN = 1.0


def aims(rows: Rows) -> Table:
    """A line for each aim that the measured worlds can speak of; figures are those at the hooks' own damping."""
    lines = [*_convex(rows), *_digits(rows), *_stochastic(rows), *_omniglot(rows)]
    for world in rows.worlds:
        for level in ALL:
            lines += _against_baselines(rows, world, level)
        lines += _detection(rows, world)
    return [["learner", "aim", "reached", ""], *lines]


def _convex(rows: Rows) -> Iterator[list[str]]:
    for level, estimator in (("task", "exact, left out"), ("query", "exact"), ("support", "exact")):
        row = rows.one(world="convex", level=level, estimator=estimator, damping=0.0) or rows.one(
            world="convex", level=level, estimator=estimator, damping=OWN
        )
        if row:
            cosine, r, error = row["moved"]["cosine"], row["singles"]["warm"]["pearson"], row["moved"]["error"]
            shown = f"{estimator}: {cosine:.3f} / {r:.3f} / {error:.2f}"
            met = cosine >= 0.99 and r >= 0.99 and error <= 0.1
            yield ["convex head", f"{level}: cosine ≥ .99 / Pearson ≥ .99 / error ≤ .1", shown, _word(met)]


def _digits(rows: Rows) -> Iterator[list[str]]:
    title = "MLP, digits"
    for level, aim in (("task", 0.85), ("query", 0.75), ("support", 0.75)):
        row = rows.one(world="digits", level=level, estimator=DEFAULT, damping=OWN)
        if row:
            yield _reached(title, f"{level}: LDS, warm", _lds(row, "warm"), aim)
    row = rows.one(world="digits", level="task", estimator=DEFAULT, damping=OWN)
    if row:
        agreement = rows.world("digits")["noise"]["agreement"]
        yield _reached(
            "MLP, digits", "task: LDS, scratch, against that of warm retraining", _lds(row, "scratch"), agreement
        )


def _stochastic(rows: Rows) -> Iterator[list[str]]:
    row = rows.one(world="digits-sgd", level="task", estimator=DEFAULT, damping=OWN)
    if row:
        for truth, (ceiling, *_) in rows.world("digits-sgd")["noise"]["ceiling"].items():
            what = f"task: LDS, {truth}, against .9 × ceiling of {number(ceiling)}"
            yield _reached("MLP, digits, stochastic", what, _lds(row, truth), 0.9 * ceiling)


def _omniglot(rows: Rows) -> Iterator[list[str]]:
    for world in ("omniglot-fc", "omniglot-cnn"):
        row = rows.one(world=world, level="task", estimator=DEFAULT, damping=OWN)
        if row:
            yield _reached(rows.title(world), "task: LDS, warm", _lds(row, "warm"), 0.6)


def _against_baselines(rows: Rows, world: str, level: str) -> Iterator[list[str]]:
    own = rows.one(world=world, level=level, estimator=DEFAULT, damping=OWN)
    others = [row for name in BASELINES if (row := rows.one(world=world, level=level, estimator=name))]
    if own and others:
        top = max(others, key=lambda row: _lds(row, "warm"))
        *_, high = top["halves"]["warm"]["behind"]
        shown = f"{number(_lds(own, 'warm'))}; {top['estimator']} {number(_lds(top, 'warm'))}"
        aim = f"{level}: default's LDS at least that of each baseline, within its interval"
        yield [rows.title(world), aim, shown, _word(high >= 0)]


def _detection(rows: Rows, world: str) -> Iterator[list[str]]:
    own = rows.one(world=world, level="task", estimator=DEFAULT, damping=OWN)
    if own and "retraining" in rows.world(world):
        truth = rows.world(world)["retraining"]["found"]
        aim = min(0.95, truth - 0.05)
        yield _reached(rows.title(world), f"wrong tasks found, true ranking {number(truth)}", own["found"], aim)


def _reached(world: str, aim: str, value: float, least: float) -> list[str]:
    met = value >= least
    return [world, f"{aim} ≥ {number(least)}", number(value), "met" if met else f"missed by {number(least - value)}"]


def _word(met: bool) -> str:
    return "met" if met else "missed"


def _lds(row: Row, truth: str) -> float:
    value: float = row["halves"][truth]["lds"][0]
    return value
