"""What recording and scoring cost, in units of plain learn2learn training over the same tasks.

``python -m benchmarks [--quick] [--out FILE]`` prints a table and writes JSON. Every figure is a ratio of things that
are run side by side, in turns, in this process; images are random, since only time is measured.

``python -m benchmarks recording [--quick] [--out FILE]`` measures recording alone, in time and memory
(:mod:`benchmarks.recording`); ``python -m benchmarks peers [--quick] [--out FILE]`` this package beside other libraries
(:mod:`benchmarks.peers`); ``python -m benchmarks estimators [--quick] [--out FOLDER]`` how faithful the estimators are
(:mod:`benchmarks.estimators`); ``python -m benchmarks fidelity --quick | --full [--only NAME …] [--out FOLDER]`` the
same on real data, beside baselines (:mod:`benchmarks.fidelity`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import learn2learn as l2l
from torch import nn
from tqdm import tqdm

from l2l_influence import MAML, TaskDataset, TaskInfluence

from .plain import MODELS, epoch, taskset, write_rows
from .processes import processes
from .recording import recording

KINDS = ("gamma", "sketch")


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(name: str, count: int, repeats: int) -> list[dict[str, object]]:
    """Ratios to a plain epoch: the median over ``repeats`` turns, each turn running everything once."""
    ratios: dict[str, list[float]] = {}
    for _ in tqdm(range(repeats), desc=name, unit="turn", disable=None):
        plain_tasks, recorded_tasks = taskset(count), TaskDataset(taskset(count))
        plain, recorded = l2l.algorithms.MAML(MODELS[name](), lr=0.5), MAML(MODELS[name](), lr=0.5)
        base = seconds(lambda: epoch(plain, plain_tasks))  # noqa: B023
        ratios.setdefault("epoch with recording", []).append(seconds(lambda: epoch(recorded, recorded_tasks)) / base)  # noqa: B023
        for kind in KINDS:
            hook = TaskInfluence(recorded, recorded_tasks, nn.CrossEntropyLoss(), hessian=kind, progress=False)
            took = seconds(lambda: hook.scores(taskset(20)))  # noqa: B023
            ratios.setdefault(f"scores of all tasks, {kind}", []).append(took / base)
    return [
        {"model": name, "tasks": count, "what": what, "ratio to a plain epoch": round(statistics.median(found), 3)}
        for what, found in ratios.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["fidelity"]:
        from .fidelity.run import main as fidelity  # has options of its own, and needs scikit-learn

        fidelity(given[1:])
    else:
        _main(given)


def _main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    choices = ("cost", "recording", "estimators", "peers", "processes")
    parser.add_argument("what", nargs="?", choices=choices, default="cost")
    parser.add_argument("--quick", action="store_true", help="few tasks, one turn")
    parser.add_argument(
        "--out", type=Path, help="benchmarks.json, recording.json, peers.json or the folder benchmarks-estimators"
    )
    options = parser.parse_args(arguments)
    if options.what == "estimators":
        from .estimators.run import run  # needs scikit-learn and SciPy

        run(options.quick, options.out or Path("benchmarks-estimators"))
    elif options.what == "peers":
        from .peers.run import run as peers  # needs SciPy

        peers(options.quick, options.out or Path("peers.json"))
    elif options.what == "processes":
        processes(options.quick, options.out or Path("processes.json"))
    elif options.what == "recording":
        recording(options.quick, options.out or Path("recording.json"))
    else:
        cost(options.quick, options.out or Path("benchmarks.json"))


def cost(quick: bool, out: Path) -> None:
    count, repeats = (20, 1) if quick else (200, 3)
    rows = [row for name in MODELS for row in measure(name, count, repeats)]
    for row in rows:
        print("  ".join(str(cell).ljust(28) for cell in row.values()))
    write_rows(rows, out)


if __name__ == "__main__":
    main()
