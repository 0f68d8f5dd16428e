"""One process against two, one thread each; and a model of what more of them would take.

``python -m benchmarks processes [--quick] [--out FILE]`` starts both in turns; and two that do the same at the same
time and share nothing, which is what the machine has for two. The model is arithmetic on what was measured for one
task, not a measurement, and says so.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from l2l_influence import MAML, TaskDataset, TaskInfluence

from .journal import Journal, Row, as_json, settings
from .markdown import Table, markdown
from .plain import MODELS, epoch, taskset
from .scale import KINDS

COMMAND = "python -m benchmarks processes"

FULL, QUICK = (dict.fromkeys(KINDS, tasks) for tasks in (1000, 10))
"""Tasks, by kind of Hessian."""

ROWS, BYTES, ITERATIONS = 4096, 4, 20
"""Of a sketch, of a number, and of conjugate gradients, in the model."""

MODELLED = "OmniglotFC"
"""The network whose time a task the model starts from."""

BANDWIDTH = 1.25e9
"""Bytes a second from rank to rank in the model: 10 Gbit/s."""

SIZES = [
    (10**4, 121_000, 1),
    (10**4, 121_000, 8),
    (10**6, 121_000, 64),
    (10**7, 121_000, 512),
    (10**7, 12_400_000, 512),
]
"""Tasks, parameters, ranks."""


@contextmanager
def joined() -> Iterator[dist.ProcessGroup]:
    """All processes that were launched together, which draw the same tasks and λ."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    yield dist.group.WORLD
    dist.destroy_process_group()


def job(name: str, kind: str, count: int, group: dist.ProcessGroup | None) -> Callable[[], object]:
    """Scores of so many tasks, to be asked of a hook that has computed nothing."""
    tasks, maml = TaskDataset(taskset(count)), MAML(MODELS[name](), lr=0.5)
    pairs = [((x[::2], y[::2]), (x[1::2], y[1::2])) for x, y in (tasks[i] for i in range(20))]
    epoch(maml, tasks)
    hook = TaskInfluence(maml, tasks, nn.CrossEntropyLoss(), hessian=kind, progress=False, process_group=group)
    return lambda: hook.scores(pairs)


def _worker(name: str, counts: dict[str, int], apart: bool, out: Path) -> None:
    """Under torchrun: seconds of the slowest for the scores of so many tasks, by each kind; ``apart``, each process
    scores all of them."""
    found = {}
    with joined() as group:
        for kind, count in counts.items():
            ask = job(name, kind, count, None if apart else group)
            dist.barrier()
            start = time.perf_counter()
            ask()
            seconds = torch.tensor(time.perf_counter() - start)
            dist.all_reduce(seconds, dist.ReduceOp.MAX)
            found[kind] = float(seconds)
        if dist.get_rank() == 0:
            out.write_text(json.dumps(found), encoding="utf-8")


def launched(module: str, ranks: int, *arguments: str) -> Any:
    """What a module writes as JSON, run by so many processes with these arguments and a path."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = [*launch, "-m", module, *arguments, str(out)]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
        return json.loads(out.read_text(encoding="utf-8"))


def measured(name: str, counts: dict[str, int], ranks: int, apart: bool = False) -> dict[str, float]:
    """Seconds by kind."""
    found: dict[str, float] = launched(__name__, ranks, name, json.dumps(counts), json.dumps(apart))
    return found


def turn(name: str, counts: dict[str, int]) -> list[Row]:
    """One process, then two, then two that share nothing: a row a kind."""
    alone, shared, apart = measured(name, counts, 1), measured(name, counts, 2), measured(name, counts, 2, apart=True)
    return [
        {"kind": kind, "tasks": count, "one": alone[kind], "two": shared[kind], "apart": apart[kind]}
        for kind, count in counts.items()
    ]


def compared(rows: list[Row]) -> list[Row]:
    """Medians over turns, of each network and kind."""
    found = []
    for name, kind in dict.fromkeys((row["model"], row["kind"]) for row in rows):
        own = [row for row in rows if (row["model"], row["kind"]) == (name, kind)]
        ratios = [row["one"] / row["two"] for row in own]
        found.append(
            {"model": name, "tasks": own[0]["tasks"], "kind": kind}
            | {"seconds": statistics.median(row["one"] for row in own), "ratio": statistics.median(ratios)}
            | {"lowest": min(ratios), "highest": max(ratios)}
            | {"apart": statistics.median(2 * row["one"] / row["apart"] for row in own)}
        )
    return found


def modelled(kind: str, tasks: int, parameters: int, ranks: int, per_task: float) -> Row:
    """Seconds ``per_task`` fall with the ranks; what they send each other comes on top."""
    share = (ranks - 1) / ranks
    vector = 2 * parameters * BYTES * share
    sketch = ROWS * parameters * BYTES * share / ranks + 2 * ROWS**2 * 8 * share
    moved = vector + {"gamma": 0.0, "sketch": sketch, "gauss-newton": ITERATIONS * vector}[kind]
    seconds = per_task * tasks / ranks + moved / BANDWIDTH
    found = {"kind": kind, "tasks": tasks, "parameters": parameters, "ranks": ranks}
    return {**found, "bytes": moved, "seconds": seconds}


def per_task(rows: list[Row], kind: str, tasks: int, parameters: int) -> float:
    """Seconds, in proportion to the parameters, of one of so many tasks: from OmniglotFC's with one process.

    A sketch takes what Γ takes, and a draw of each of as many tasks as it has rows.
    """
    own = sum(value.numel() for value in MODELS[MODELLED]().parameters())
    alone = {row["kind"]: row["seconds"] / row["tasks"] for row in rows if row["model"] == MODELLED}
    drawn = alone["sketch"] - alone["gamma"]
    seconds = alone["gamma"] + drawn * min(1, ROWS / tasks) if kind == "sketch" else alone[kind]
    return seconds * parameters / own


def measured_table(rows: list[Row]) -> str:
    lines: Table = [
        ["network", "tasks", "Hessian", "1 process", "1 process / 2", "lowest to highest turn"]
        + ["two that share nothing, of 2"]
    ]
    for row in rows:
        ratios = [f"{row['ratio']:.2f}", f"{row['lowest']:.2f} to {row['highest']:.2f}", f"{row['apart']:.2f}"]
        lines.append([row["model"], f"{row['tasks']:,}", row["kind"], f"{row['seconds']:.1f} s", *ratios])
    return markdown(lines)


def model_table(rows: list[Row]) -> str:
    lines: Table = [["Hessian", "tasks", "parameters", "ranks", "bytes moved a rank", "expected seconds"]]
    for row in rows:
        sizes = [f"{row[name]:,}" for name in ("tasks", "parameters", "ranks")]
        lines.append([row["kind"], *sizes, f"{row['bytes']:.2g}", f"{row['seconds']:.2g}"])
    return markdown(lines)


def model(rows: list[Row]) -> list[Row]:
    """All kinds and sizes."""
    return [
        modelled(kind, tasks, parameters, ranks, per_task(rows, kind, tasks, parameters))
        for kind in FULL
        for tasks, parameters, ranks in SIZES
    ]


def processes(quick: bool, out: Path) -> None:
    """Measure the turns that are not in ``out`` with another ending, ``.jsonl``, yet; print tables, write rows."""
    torch.set_num_threads(1)
    counts, repeats = (QUICK, 1) if quick else (FULL, 2)
    size = {"tasks": counts, "turns": repeats}
    journal = Journal(out.with_suffix(".jsonl"), settings(COMMAND, size), ("model", "turn"))
    for name in MODELS:
        for number in tqdm(range(repeats), desc=name, unit="turn", disable=None):
            if not journal.has(name, number):
                journal.add([{"model": name, "turn": number, **row} for row in turn(name, counts)])
    rows = compared(journal.rows)
    beyond = model(rows)
    out.write_text(as_json({**journal.settings, "model": beyond, "rows": rows}), encoding="utf-8")
    print(f"{measured_table(rows)}\n\nMODEL, not measured:\n\n{model_table(beyond)}\n")


if __name__ == "__main__":
    _worker(sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]), Path(sys.argv[4]))
