"""All contests, their rows and their table."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..journal import Row, as_json, settings
from ..markdown import Table, markdown
from ..plain import MODELS
from . import gauss_newton, implicit, unrolled
from .contest import Contest
from .worlds import World, world

PEERS = {
    "torchopt": "TorchOpt",
    "higher": "higher",
    "curvlinops-for-pytorch": "curvlinops",
    "learn2learn": "learn2learn",
}
"""Distributions, and what they are called."""

STEPS = (1, 5)

COMMAND = "python -m benchmarks peers"


def contests(world: World) -> Iterable[Contest]:
    yield implicit.contest(world)
    yield from (unrolled.contest(world, steps) for steps in STEPS)
    yield gauss_newton.contest(world)


def measure(tasks: int, turns: int) -> list[Row]:
    """All networks, all contests."""
    rows = []
    for name in MODELS:
        at = world(name, tasks)
        for contest in contests(at):
            rows += contest.rows({"model": name, "tasks": tasks, "delta": at.delta}, turns)
    return rows


def table(rows: list[Row]) -> str:
    """As the page shows it."""
    lines: Table = [["network", "what", "by", "error (asked)", "time / ours", "lowest to highest turn", "peak memory"]]
    for row in rows:
        asked = f"({row['asked']:.0e})" if row["stops"] else "(does not stop there)"
        peak = "not told" if row["mebibytes"] is None else f"{row['mebibytes']:.0f} MiB"
        spread = f"{row['lowest']:.2f} to {row['highest']:.2f}"
        what = [row["model"], row["what"], row["by"], f"{row['error']:.1e} {asked}"]
        lines.append([*what, f"{row['ratio']:.2f}", spread, peak])
    return markdown(lines)


def installed() -> dict[str, str | None]:
    """Versions; None for what is missing, whose rows are left out."""
    return {title: _version(name) for name, title in PEERS.items()}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def run(quick: bool, out: Path) -> None:
    """Measure, print the table and write the rows to ``out``."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)  # peers', of what torch calls deprecated
    tasks, turns = (3, 1) if quick else (16, 3)
    peers = installed()
    for name in (name for name, found in peers.items() if found is None):
        print(f"{name} is not installed: its rows are left out")
    rows = measure(tasks, turns)
    print(table(rows))
    head = settings(COMMAND, {"tasks": tasks, "turns": turns}) | {"peers": peers}
    out.write_text(as_json(head | {"rows": rows}), encoding="utf-8")
    print(f"written to {out}")
