"""Whether a recording can be trusted to be the whole story, and what to check if not."""

from __future__ import annotations

from typing import Any

from ...errors import AmbiguousTaskError, NothingRecordedError, RecordingError, UnmatchedInputError
from ..interception.failures import Failures
from ..options import RecordingOptions
from ..tasksets.board import board
from .ledger import Ledger
from .task import RecordedTask

_CHECK_INPUT = (
    "Wrap every taskset that the loop draws from in l2l_influence.TaskDataset, or run the loop inside record(); feed "
    "the learner its rows as they were served (any selection, order and device, but no change of values, dtype or "
    "shape: do that in the data set's transforms), by calling the clone itself (not its .module; DataParallel belongs "
    "inside, learner.module = DataParallel(learner.module)); outside record(), let no DataLoader worker process draw "
    "them (num_workers=0). Inside record(), rows from anywhere will do, if their labels go to a loss of torch's and "
    "nothing that is trained made them. A loop that cannot do so can tell its episodes by Study.add_episode()."
)


def require_complete(ledger: Ledger, failures: Failures, options: RecordingOptions) -> None:
    """Raise if something that trained the meta-parameters is missing from the ledger."""
    for trouble in (failures, board.failures):
        if trouble:
            raise RecordingError(f"The recording may be incomplete: {trouble}\n{trouble.first}")
    if ledger.ambiguous:
        one, other = ledger.ambiguous[0]
        raise AmbiguousTaskError(
            f"{len(ledger.ambiguous)} draw(s) that trained the meta-parameters fit two tasks, for example both {one} "
            f"and {other}: they share all the rows that the learner was fed. Draw tasks that differ in some row."
        )
    if ledger.surplus and not ledger.sampled:
        raise RecordingError(
            f"{ledger.surplus} draw(s) that trained the meta-parameters were of tasks beyond "
            f"max_tasks={options.max_tasks}. Before training, set recording_of(learner).options.overflow = 'reservoir' "
            "to keep a uniform sample of the tasks, or max_tasks higher; or train on a finite taskset (num_tasks=...)."
        )
    if ledger.partial:
        shapes = ", ".join(sorted(ledger.partial))
        raise RecordingError(
            f"{ledger.partial.total()} forward(s) had rows that the loss was not called on (shapes of the input: "
            f"{shapes}), and which ones is not known. Feed the learner the rows that the loss is of, "
            "learner(x[support]); rows that are fed for their batch statistics alone cannot be told from them."
        )
    if ledger.foreign and options.unmatched == "raise":
        shapes = ", ".join(sorted(ledger.foreign))
        raise UnmatchedInputError(
            f"{ledger.foreign.total()} forward(s) of input that belongs to no task served (shapes: {shapes}) had a "
            f"part in training. {_CHECK_INPUT} To leave them out of account, set "
            "recording_of(learner).options.unmatched = 'ignore'."
        )


def require_tasks(trained: list[RecordedTask], ledger: Ledger, tasks: Any) -> None:
    """Raise if there is nothing to hand out, with the likeliest reason."""
    if not trained:
        raise NothingRecordedError(f"No task that the learner trained on was recorded: {_reason(ledger, tasks)}")


def _reason(ledger: Ledger, tasks: Any) -> str:
    if not ledger.episodes:
        return (
            "no clone of this learner was seen. Make the learner with l2l_influence.MAML (MetaSGD, GBML) or run the "
            "loop inside record(), and pass the very object whose clone() the loop calls."
        )
    if not ledger.records:
        return f"its clones were fed nothing that a recorded taskset had served. {_CHECK_INPUT}"
    if not any(record.times_trained for record in ledger.records.values()):
        return (
            f"{len(ledger.records)} task(s) were drawn, but no backward() or autograd.grad() went from the loss of an "
            "adapted clone to the learner's parameters."
        )
    return f"none of the tasks trained on was drawn from {type(tasks).__name__} {tasks!r}."
