"""The whole measurement: ``python -m benchmarks fidelity --quick | --full [--only NAME …] [--out FOLDER]``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from ..journal import Journal, as_json, settings
from .causes import CAUSES, row_of
from .estimators import ESTIMATORS
from .figures import default_scores, described, rows_of
from .plot import cost_plot
from .recipes import WORLDS
from .rows import Rows
from .tables import page_tables
from .tasks import MissingDataError
from .truths import truths
from .worlds import FULL, QUICK, Size, World

COMMAND = "python -m benchmarks fidelity"
NAMES = (*WORLDS, "causes")
"""What can be measured: worlds, and what keeps the figures of one of them down."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--quick", action="store_true", help="a few tasks and steps, to see that it runs")
    size.add_argument("--full", action="store_true", help="what the documentation shows; tens of minutes a world")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--out", type=Path, default=Path("benchmarks-fidelity"))
    options = parser.parse_args(arguments)
    run(options.quick, options.out, options.only or list(NAMES))


def run(quick: bool, out: Path, names: Sequence[str]) -> None:
    """Measure what ``out`` does not hold yet of these worlds, and write ``fidelity.json``, ``fidelity.md`` and
    ``fidelity.png`` there after each."""
    torch.set_num_threads(1)  # side by side, and as retraining does it
    size = QUICK if quick else FULL
    out.mkdir(parents=True, exist_ok=True)
    command = f"{COMMAND} {'--quick' if quick else '--full'}"
    journal = Journal(out / "rows.jsonl", settings(command, asdict(size)), ("world", "level", "estimator"))
    for name in names:
        try:
            if name == "causes":
                causes(size, journal, out / "retrained")
            else:
                study(WORLDS[name](name, size), size, journal, out / "retrained")
        except MissingDataError as missing:
            print(f"{name} is left out: {missing}")
        _write(journal, out)
    print(f"written to {out}")


def study(world: World, size: Size, journal: Journal, cache: Path) -> None:
    """Add all rows of a world that are not there, a level at a time, what is dear last."""
    for level in world.levels:
        found = truths(world, size, level, cache)
        if level == "task" and not journal.has(world.name, None, None):
            journal.add([described(world, found)])
        asked = sorted((each for each in ESTIMATORS if each.asked(world, level)), key=lambda each: each.dear)
        missing = [each for each in asked if not journal.has(world.name, level, each.name)]
        own = default_scores(world, level) if missing else None
        for estimator in tqdm(missing, desc=f"{world.name}, {level}", unit="estimator", disable=None):
            journal.add(list(rows_of(world, level, estimator, found, own)))


def causes(size: Size, journal: Journal, cache: Path) -> None:
    """Add what is not there of the table of causes."""
    for cause in tqdm(CAUSES, desc="causes", unit="cause", disable=None):
        if not journal.has("causes", cause.level, cause.what):
            journal.add([row_of(cause, size, cache)])


def _write(journal: Journal, out: Path) -> None:
    rows = sorted(journal.rows, key=lambda row: NAMES.index(row["world"]))  # runs side by side add to one folder
    measured = {**journal.settings, "rows": rows}
    (out / "fidelity.json").write_text(as_json(measured), encoding="utf-8")
    (out / "fidelity.md").write_text("\n\n".join(page_tables(measured).values()) + "\n", encoding="utf-8")
    cost_plot(Rows(rows)).savefig(out / "fidelity.png")
