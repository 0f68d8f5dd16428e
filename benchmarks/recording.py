"""What recording costs: processor time in units of plain training, and memory for more and more tasks."""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import learn2learn as l2l
import torch
from torch import nn
from tqdm import tqdm

from l2l_influence import MAML, TaskDataset, record
from l2l_influence.recording import RecordingOptions

from .markdown import Table, markdown
from .plain import MODELS, WAYS, epoch, taskset, write_rows

Row = dict[str, Any]


class WayIn(NamedTuple):
    """How a loop is recorded."""

    learner: Callable[..., Any]
    tasks: Callable[[Any], Any]
    block: Callable[[], AbstractContextManager[Any]]


def as_it_is(tasks: Any) -> Any:
    return tasks


PLAIN = WayIn(l2l.algorithms.MAML, as_it_is, nullcontext)
WAYS_IN = {"drop-ins": WayIn(MAML, TaskDataset, nullcontext), "record()": WayIn(l2l.algorithms.MAML, as_it_is, record)}

MAX_TASKS = 1000
"""For how many tasks there is room in the memory of an infinite taskset's recording."""


def seconds(way: WayIn, model: str, count: int) -> float:
    """Processor time of an epoch over new tasks; what other processes do does not count."""
    learner, tasks = way.learner(MODELS[model](), lr=0.5), way.tasks(taskset(count))
    with way.block():
        start = time.process_time()
        epoch(learner, tasks)
        return time.process_time() - start


def times(model: str, count: int, turns: int) -> list[Row]:
    """Each turn runs the plain loop, each way in, and the plain loop again."""
    ratios: dict[str, list[float]] = {name: [] for name in WAYS_IN}
    plain = []
    for _ in tqdm(range(turns), desc=model, unit="turn", disable=None):
        before = seconds(PLAIN, model, count)
        recorded = {name: seconds(way, model, count) for name, way in WAYS_IN.items()}
        plain.append((before + seconds(PLAIN, model, count)) / 2)
        for name, took in recorded.items():
            ratios[name].append(took / plain[-1])
    return [
        {
            "what": "time",
            "model": model,
            "way in": name,
            "tasks": count,
            "turns": turns,
            "milliseconds a plain step": 1e3 * statistics.median(plain) / count,
            "ratio": statistics.median(found),
            "lowest": min(found),
            "highest": max(found),
        }
        for name, found in ratios.items()
    ]


def held(infinite: bool, count: int, recorded: bool) -> float:
    """MiB of memory that a process holds after ``count`` steps of a small model. Called in a process of its own."""
    tasks = taskset(-1 if infinite else count)
    learner = l2l.algorithms.MAML(nn.Sequential(nn.Flatten(), nn.Linear(784, WAYS)), lr=0.5)
    options = RecordingOptions(keep_adapted=False, max_tasks=MAX_TASKS if infinite else 10**6, data_bytes=32 * 2**20)
    with record(options) if recorded else nullcontext():
        for i in range(count):
            x, y = tasks.sample() if infinite else tasks[i]
            clone = learner.clone()
            clone.adapt(nn.functional.cross_entropy(clone(x[::2]), y[::2]))
            nn.functional.cross_entropy(clone(x[1::2]), y[1::2]).backward()
        gc.collect()
        pages = int(
            Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        )  # Linux's; others have no such file
    return pages * resource.getpagesize() / 2**20


def _apart(infinite: bool, count: int, recorded: bool) -> float:
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(held, infinite, count, recorded).result()


def memory(counts: list[int]) -> list[Row]:
    cases = [(infinite, count) for infinite in (False, True) for count in counts]
    rows = []
    for infinite, count in tqdm(cases, desc="memory", unit="run", disable=None):
        recorded, plain = (_apart(infinite, count, watched) for watched in (True, False))
        kind = "infinite" if infinite else "finite"
        rows.append({"what": "memory", "taskset": kind, "tasks": count, "plain": plain, "recorded": recorded})
    return rows


def tables(rows: list[Row]) -> str:
    """Both, as docs/pages/recording.md shows them."""
    time_table: Table = [["model", "plain step", "way in", "processor time / plain", "lowest to highest turn"]]
    for row in (row for row in rows if row["what"] == "time"):
        step, spread = f"{row['milliseconds a plain step']:.1f} ms", f"{row['lowest']:.2f} to {row['highest']:.2f}"
        time_table.append([row["model"], step, row["way in"], f"{row['ratio']:.3f}", spread])
    memory_table: Table = [["taskset", "tasks", "memory of the process, plain", "recorded", "difference"]]
    for row in (row for row in rows if row["what"] == "memory"):
        sizes = [row["plain"], row["recorded"], row["recorded"] - row["plain"]]
        memory_table.append([row["taskset"], f"{row['tasks']:,}", *(f"{size:.0f} MiB" for size in sizes)])
    return f"{markdown(time_table)}\n\n{markdown(memory_table)}"


def recording(quick: bool, out: Path) -> None:
    """Measure, print the tables and write the rows to ``out``."""
    torch.set_num_threads(1)
    count, turns, counts = (10, 1, [20]) if quick else (100, 15, [1000, 4000, 16000])
    rows = [row for name in MODELS for row in times(name, count, turns)] + memory(counts)
    print(tables(rows))
    write_rows(rows, out)
