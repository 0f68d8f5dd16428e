"""Summaries of a recording: a description in a few sentences, and errors that say what is missing and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import AmbiguousTaskError, NothingRecordedError, RecordingError, UnmatchedInputError
from ..failures import Failures
from ..options import RecordingOptions
from .records import TaskRecords
from .task import RecordedTask

_CHECK_INPUT = (
    "Wrap every taskset that the loop draws from in l2l_influence.TaskDataset, or run the loop inside record(). Feed "
    "the learner rows as they were served: any selection, order and device, but no change of values, dtype or shape "
    "(make such changes in the data set's transforms). Call the clone itself, not its .module; DataParallel belongs "
    "inside, learner.module = DataParallel(learner.module). Outside record(), no DataLoader worker process may draw "
    "the tasks (use num_workers=0). Inside record(), any data source works, provided labels go to a torch loss and "
    "inputs do not come from a trained module. For a loop that cannot do so, enter its episodes by hand with "
    "Study.add_episode()."
)


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


def require_complete(records: TaskRecords, failures: Sequence[Failures], options: RecordingOptions) -> None:
    """Raise if something that trained the meta-parameters is missing from the records.

    Args:
        records: of the learner.
        failures: of the recorder, as far as they concern this learner.
        options: of its recording.
    """
    for failed in failures:
        if failed:
            raise RecordingError(f"The recording may be incomplete: {failed}\n{failed.first}")
    if records.ambiguous:
        one, other = records.ambiguous[0]
        raise AmbiguousTaskError(
            f"{len(records.ambiguous)} draw(s) that trained the meta-parameters fit two tasks, for example both {one} "
            f"and {other}, because these share all the rows that the learner was fed. Draw tasks that differ in at "
            "least one of these rows."
        )
    if records.surplus and not records.sampled:
        raise RecordingError(
            f"{records.surplus} draw(s) that trained the meta-parameters were of tasks beyond "
            f"max_tasks={options.max_tasks}. Before training, set recording_of(learner).options.overflow = 'reservoir' "
            "to keep a uniform sample of the tasks, or set max_tasks higher; or train on a finite taskset "
            "(num_tasks=...)."
        )
    if records.partial:
        raise RecordingError(
            f"{records.partial.total()} forward(s) had rows that no loss was computed on (shapes of the input: "
            f"{_shapes(records.partial)}), and it is unknown which rows. Feed the learner only the rows of the loss, "
            "as in learner(x[support]); rows that only contribute batch statistics cannot be told apart from them."
        )
    if records.foreign and options.unmatched == "raise":
        raise UnmatchedInputError(
            f"{records.foreign.total()} forward(s) that contributed to training had input that belongs to no task "
            f"served (shapes: {_shapes(records.foreign)}). {_CHECK_INPUT} To ignore such input, set "
            "recording_of(learner).options.unmatched = 'ignore'."
        )


def require_tasks(trained: list[RecordedTask], records: TaskRecords, tasks: Any) -> None:
    """Raise an error with the likeliest reason if no task trained."""
    if not trained:
        raise NothingRecordedError(f"No task that the learner trained on was recorded: {_reason(records, tasks)}")


def _reason(records: TaskRecords, tasks: Any) -> str:
    if not records.episodes:
        return (
            "no clone of this learner was seen. Make the learner with l2l_influence.MAML (MetaSGD, GBML) or run the "
            "loop inside record(), and pass the very object whose clone() the loop calls."
        )
    if not records.records:
        return f"its clones were fed no input that a recorded taskset had served. {_CHECK_INPUT}"
    if not any(record.times_trained for record in records.records.values()):
        return (
            f"{len(records.records)} task(s) were drawn, but no backward() or autograd.grad() went from the loss of an "
            "adapted clone to the learner's parameters. Call backward() on the query loss, and do not detach it."
        )
    return (
        f"none of the tasks that it trained on was drawn from {type(tasks).__name__} {tasks!r}. Pass the taskset that "
        "the loop draws from, or leave it out for all tasks."
    )


def _shapes(counts: Any) -> str:
    return ", ".join(sorted(counts))
