"""Merging the studies of one run in several processes, each of which has the tasks that it drew itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from ...errors import RanksDisagreeError
from ..episodes.losses import Loss
from ..episodes.task import EpisodeFacts, RecordedTask
from ..learners.registry import adapter_named
from .storage import Saved

ROUNDING = 1e-4
"""Largest difference of two processes' parameters, relative to the largest entry, that rounding may explain."""


def merged(parts: Sequence[Saved]) -> Saved:
    """The tasks of all parts, with their common weights; the first part is that of rank 0.

    A task is named by its rank, taskset and key. If several ranks drew the same task, from equal finite tasksets, with
    the same data and split, it becomes one task, and its counts are added.

    Raises:
        RanksDisagreeError: the parts have different parameters at the end, or different learners.
    """
    first, *others = parts
    for rank, other in enumerate(others, start=1):
        _require_same(first, other, rank)
    return first if not others else Saved(_tasks(parts), first.weights, {**first.about, **_notes(parts)})


# ---- tasks ------------------------------------------------------------------------------------------------------


def _tasks(parts: Sequence[Saved]) -> list[RecordedTask]:
    found: dict[Hashable, RecordedTask] = {}
    for use, task in _named(parts):
        found[use] = _sum(found[use], task) if use in found else task
    return [replace(task, id=number) for number, task in enumerate(found.values())]


def _named(parts: Sequence[Saved]) -> Iterator[tuple[Hashable, RecordedTask]]:
    """All tasks, with tasksets numbered across ranks, and a key that is equal for equal tasks.

    The numbers of tasksets mean nothing in other processes. Equal tasks of one rank stay separate.
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
    """Equal for equal tasks that were used in the same way."""
    facts = tuple(_comparable(getattr(task, each.name)) for each in fields(EpisodeFacts))
    return task.key, task.indices, task.fingerprint, facts


def _comparable(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return tuple(value.flatten().tolist())
    if isinstance(value, Loss):
        return value.function, value.settings  # its scale was computed in the precision of the loop
    return repr(value)  # as text, because no two NaN are equal


def _sum(one: RecordedTask, other: RecordedTask) -> RecordedTask:
    latest = one if one.times_trained or not other.times_trained else other
    return replace(
        latest,
        times_seen=one.times_seen + other.times_seen,
        times_trained=one.times_trained + other.times_trained,
        adapted=one.adapted if other.adapted is None else other.adapted,
    )


# ---- notes ------------------------------------------------------------------------------------------------------


def _notes(parts: Sequence[Saved]) -> dict[str, Any]:
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
        yield "Buffers, such as running statistics, differ between the processes; those of process 0 are used."
    if len({part.about["stands_for"] for part in parts}) > 1:
        yield "The processes' tasks are samples, and represent different numbers of draws."


# ---- checks that they are of one run ----------------------------------------------------------------------------


def _require_same(first: Saved, other: Saved, rank: int) -> None:
    for name in adapter_named(first.about.get("rule")).settings_names:
        if first.about.get(name) != other.about.get(name):
            raise RanksDisagreeError(
                f"the learner of process {rank} has {name}={other.about.get(name)}, but that of process 0 has "
                f"{name}={first.about.get(name)}: these are not studies of the same run. Pass the folders of one run"
            )
    if _shapes(first.weights) != _shapes(other.weights):
        raise RanksDisagreeError(
            f"the models of processes 0 and {rank} have different parameters: these are not studies of the same run. "
            "Pass the folders of one run"
        )
    distance, name = _furthest(first, other, first.weights.keys() - set(first.about["buffers"]))
    if not distance <= ROUNDING:
        raise RanksDisagreeError(
            f"the parameters of processes 0 and {rank} differ ({name} by {distance:.1e} of its largest entry): the "
            "processes did not average their gradients until the end, or one of them stopped at another step. Each "
            "process's study can still be loaded by itself"
        )


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: value.shape for name, value in weights.items()}


def _furthest(first: Saved, other: Saved, names: Any) -> tuple[float, str]:
    """The largest difference, relative to the largest entry, and the name of its tensor."""
    return max(((_distance(first.weights[name], other.weights[name]), name) for name in names), default=(0.0, ""))


def _distance(one: Tensor, other: Tensor) -> float:
    if one.numel() == 0 or one.equal(other):
        return 0.0
    difference = float((one.double() - other.double()).abs().max() / one.double().abs().max().clamp(min=1e-30))
    return math.inf if math.isnan(difference) else difference
