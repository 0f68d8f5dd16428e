"""Studies of one run in several processes, each with the tasks that it drew itself, as one study."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...errors import RanksDisagreeError
from ..episodes.task import RecordedTask
from .storage import Saved

ROUNDING = 1e-4
"""Largest difference of two processes' parameters, relative to the largest entry, that rounding may explain."""

SETTINGS = ("learner", "rule", "lr", "first_order", "adapt_transform")


def merged(parts: Sequence[Saved]) -> Saved:
    """The tasks of all parts, with the weights that they have in common; the first part is of rank 0.

    A task is known by its rank, taskset and key. Where several ranks drew the same one, of equal finite tasksets, with
    the same data and split, it is one task, and its draws are added up.

    Raises:
        RanksDisagreeError: the parts do not end in the same parameters, or have other learners.
    """
    first, *others = parts
    for rank, other in enumerate(others, start=1):
        _require_same(first, other, rank)
    return first if not others else Saved(_tasks(parts), first.weights, {**first.about, **_told(parts)})


# ---- tasks ------------------------------------------------------------------------------------------------------


def _tasks(parts: Sequence[Saved]) -> list[RecordedTask]:
    found: dict[Hashable, RecordedTask] = {}
    for use, task in _apart(parts):
        found[use] = _sum(found[use], task) if use in found else task
    return [replace(task, id=number) for number, task in enumerate(found.values())]


def _apart(parts: Sequence[Saved]) -> Iterator[tuple[Hashable, RecordedTask]]:
    """All tasks, with the numbers of tasksets counted on from rank to rank; and what is the same for equal tasks.

    Tasksets have no names that hold in other processes. Tasks of one rank stay apart even if they are equal.
    """
    tasksets = 0
    for rank, part in enumerate(parts):
        known: Counter[Hashable] = Counter()
        for task in part.tasks:
            use = _use(task)
            yield (use, known[use]), replace(task, rank=rank, taskset=tasksets + task.taskset)
            known[use] += 1
        tasksets += 1 + max((task.taskset for task in part.tasks), default=-1)


def _use(task: RecordedTask) -> Hashable:
    """Which task it is, and how it was used."""
    seen = [None if y is None else tuple(y.flatten().tolist()) for y in (task.seen_labels, task.seen_query_labels)]
    losses = [loss and (loss.function, loss.settings) for loss in (task.loss, task.query_loss)]
    rows = task.support_rows, task.query_rows, task.labels, *seen, *losses, task.together, task.batch_norm
    rule = repr(task.lr), task.steps, task.first_order, task.rule  # as text, because no two NaN are equal
    return task.key, task.indices, task.fingerprint, rows, rule


def _sum(one: RecordedTask, other: RecordedTask) -> RecordedTask:
    latest = one if one.times_trained or not other.times_trained else other
    return replace(
        latest,
        times_seen=one.times_seen + other.times_seen,
        times_trained=one.times_trained + other.times_trained,
        adapted=one.adapted if other.adapted is None else other.adapted,
    )


# ---- what is said of them ---------------------------------------------------------------------------------------


def _told(parts: Sequence[Saved]) -> dict[str, Any]:
    troubles = [f"Process {rank}: {part.about['trouble']}" for rank, part in enumerate(parts) if part.about["trouble"]]
    summaries = [f"Process {rank}: {part.about['summary']}" for rank, part in enumerate(parts)]
    recorded = [sum(task.times_trained for task in part.tasks) for part in parts]
    drawn = [count * float(part.about["stands_for"]) for count, part in zip(recorded, parts, strict=True)]
    return {
        "summary": "\n".join([f"{len(parts)} processes.", *summaries, *_differences(parts)]),
        "trouble": "\n".join(troubles),
        "stands_for": sum(drawn) / sum(recorded) if sum(recorded) else 1.0,
        "unmatched": sum(int(part.about.get("unmatched", 0)) for part in parts),
    }


def _differences(parts: Sequence[Saved]) -> Iterator[str]:
    first, *others = parts
    if any(_furthest(first, other, first.about["buffers"])[0] for other in others):
        yield "Buffers, such as running statistics, differ between the processes; those of process 0 are taken."
    if len({part.about["stands_for"] for part in parts}) > 1:
        yield "The processes' tasks are samples, and do not stand for equally many draws."


# ---- that they are of one run -----------------------------------------------------------------------------------


def _require_same(first: Saved, other: Saved, rank: int) -> None:
    for name in SETTINGS:
        if first.about.get(name) != other.about.get(name):
            raise RanksDisagreeError(
                f"the learner of process {rank} has {name}={other.about.get(name)}, that of process 0 "
                f"{first.about.get(name)}: these are no studies of one run"
            )
    if _shapes(first.weights) != _shapes(other.weights):
        raise RanksDisagreeError(f"the models of processes 0 and {rank} are different: these are no studies of one run")
    distance, name = _furthest(first, other, first.weights.keys() - set(first.about["buffers"]))
    if not distance <= ROUNDING:
        raise RanksDisagreeError(
            f"the parameters of processes 0 and {rank} are not the same ({name} by {distance:.1e} of its largest "
            "entry): their gradients were not averaged, or not to the end, or one of them was stopped at another "
            "step. Each process's study can still be loaded by itself"
        )


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: value.shape for name, value in weights.items()}


def _furthest(first: Saved, other: Saved, names: Any) -> tuple[float, str]:
    """The largest difference, relative to the largest entry, and where."""
    return max(((_distance(first.weights[name], other.weights[name]), name) for name in names), default=(0.0, ""))


def _distance(one: Tensor, other: Tensor) -> float:
    if one.numel() == 0 or one.equal(other):
        return 0.0
    difference = float((one.double() - other.double()).abs().max() / one.double().abs().max().clamp(min=1e-30))
    return math.inf if math.isnan(difference) else difference
