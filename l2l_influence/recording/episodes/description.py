"""A recording in a few sentences."""

from __future__ import annotations

from collections.abc import Sequence

from ..failures import Failures
from .records import TaskRecords


def describe(records: TaskRecords, failures: Sequence[Failures], held_mib: float) -> str:
    """Counts of what was recorded, what could not be attributed to a task, and the memory used."""
    return " ".join([*_sums(records, held_mib), *_troubles(records), *map(str, filter(None, failures))])


def _sums(records: TaskRecords, held_mib: float) -> list[str]:
    tasks = records.records.values()
    trained = [task for task in tasks if task.times_trained]
    return [
        f"{len(tasks)} tasks in {sum(task.times_seen for task in tasks)} draws;",
        f"{len(trained)} of them trained the meta-parameters, in {sum(task.times_trained for task in trained)} draws;",
        f"{held_mib:.1f} MiB of task data and adapted parameters held.",
    ]


def _troubles(records: TaskRecords) -> list[str]:
    sentences = [f"{count} {text}." for text, count in records.remarks.items()]
    if records.foreign:
        sentences.append(f"{records.foreign.total()} forwards of unknown input were trained on.")
    if records.ambiguous:
        sentences.append(f"{len(records.ambiguous)} draws that trained fit two tasks.")
    if records.surplus:
        sentences.append(f"{records.surplus} draws that trained were of tasks beyond max_tasks.")
    if records.sampled:
        sentences.append(
            f"The tasks that trained are a uniform sample: a recorded draw represents {records.stands_for:.1f} of all."
        )
    return sentences
