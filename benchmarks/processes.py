"""One process against two, one thread each; and a model of what more of them would take.

``python -m benchmarks processes [--quick] [--out FILE]`` starts both in turns and writes JSON and, beside it, Markdown.
The model is arithmetic on what was measured for one task, not a measurement, and says so.
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
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from l2l_influence import MAML, TaskDataset, TaskInfluence

from .markdown import markdown
from .plain import MODELS, epoch, taskset

KINDS = ("gamma", "sketch", "gauss-newton")
ROWS, BYTES, ITERATIONS = 4096, 4, 20
"""Of a sketch, of a number, and of conjugate gradients, in the model."""

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


def _worker(name: str, count: int, out: Path) -> None:
    """Under torchrun: seconds for the scores of ``count`` tasks, by each kind."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    random.seed(0), np.random.seed(0), torch.manual_seed(0)  # the same tasks and λ on each
    tasks, maml = TaskDataset(taskset(count)), MAML(MODELS[name](), lr=0.5)
    pairs = [((x[::2], y[::2]), (x[1::2], y[1::2])) for x, y in (tasks[i] for i in range(20))]
    epoch(maml, tasks)
    found = {}
    for kind in KINDS:
        hook = TaskInfluence(maml, tasks, nn.CrossEntropyLoss(), hessian=kind, progress=False, group=dist.group.WORLD)
        dist.barrier()
        start = time.perf_counter()
        hook.scores(pairs)
        found[kind] = time.perf_counter() - start
    if dist.get_rank() == 0:
        out.write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def measured(name: str, count: int, ranks: int) -> dict[str, float]:
    """Seconds by kind."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = [*launch, "-m", "benchmarks.processes", name, str(count), str(out)]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
        found: dict[str, float] = json.loads(out.read_text(encoding="utf-8"))
        return found


def compared(name: str, count: int, repeats: int) -> list[dict[str, object]]:
    """Medians over turns, each running one process and two."""
    turns = [(measured(name, count, 1), measured(name, count, 2)) for _ in range(repeats)]
    rows = []
    for kind in KINDS:
        one = statistics.median(alone[kind] for alone, _ in turns)
        ratio = statistics.median(alone[kind] / shared[kind] for alone, shared in turns)
        rows.append(
            {"model": name, "tasks": count, "kind": kind, "seconds, 1 process": round(one, 3), "1 / 2": round(ratio, 2)}
        )
    return rows


def modelled(kind: str, tasks: int, parameters: int, ranks: int, per_task: float, own: int) -> dict[str, object]:
    """Seconds of ``per_task``, measured with ``own`` parameters, grow with the parameters and fall with the ranks."""
    share = (ranks - 1) / ranks
    vector = 2 * parameters * BYTES * share
    sketch = ROWS * parameters * BYTES * share / ranks + 2 * ROWS**2 * 8 * share
    moved = vector + {"gamma": 0.0, "sketch": sketch, "gauss-newton": ITERATIONS * vector}[kind]
    seconds = per_task * parameters / own * tasks / ranks + moved / BANDWIDTH
    found = {"kind": kind, "tasks": tasks, "parameters": parameters, "ranks": ranks}
    return {**found, "bytes moved a rank": f"{moved:.2g}", "expected seconds": f"{seconds:.2g}"}


def table(rows: list[dict[str, object]]) -> str:
    return markdown([list(rows[0]), *([str(cell) for cell in row.values()] for row in rows)])


def processes(quick: bool, out: Path) -> None:
    count, repeats = (10, 1) if quick else (1000, 3)
    rows = [row for name in ("OmniglotFC", "OmniglotCNN") for row in compared(name, count, repeats)]
    own = sum(value.numel() for value in MODELS["OmniglotFC"]().parameters())
    per_task = {str(row["kind"]): float(str(row["seconds, 1 process"])) / count for row in rows[: len(KINDS)]}
    model = [modelled(kind, *size, per_task[kind], own) for kind in KINDS for size in SIZES]
    about = f"MODEL, not measured: OmniglotFC's time a task, {BANDWIDTH:g} bytes/s, {ITERATIONS} products of CG"
    out.write_text(json.dumps({"measured": rows, "model": model, "about": about}, indent=1), encoding="utf-8")
    page = f"{table(rows)}\n\n{about}.\n\n{table(model)}\n"
    out.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    _worker(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
