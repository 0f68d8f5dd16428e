"""`RecordedTask`: one task as the training loop used it, and `EpisodeFacts`, the part that one episode determines."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from torch import Tensor

from ...errors import LabelMismatchError, RecordingError
from .losses import Loss
from .normalisation import BatchNorm

Labels = Literal["confirmed", "unseen", "changed"]
"""The losses were called with the labels that were served, their labels could not be read, or they got other labels."""


@dataclass(frozen=True, eq=False, kw_only=True)
class EpisodeFacts:
    """Everything that is known of one episode: how its data were split, how the clone adapted, and by which losses.

    The value is made once, when a clone's log is matched with a task, and carried unchanged to `RecordedTask` and to
    the files of a study, field by field. To record one more fact, add a field here, with a default for studies that
    were saved without it, and fill it in ``matching.py``. Values may be numbers, strings, tuples of these, tensors and
    frozen dataclasses; for a dataclass, the field's metadata say how to decode what JSON gives back.

    Attributes:
        support_rows, query_rows: row numbers in the served batch, in the order in which they were fed.
        lr, steps, first_order: of the ``adapt`` calls. If the rule is not ``"sgd"``, lr is NaN.
        rule: name of the step rule in the registry of learners, or ``"other"`` for an unknown rule.
        labels: ``"changed"`` if the losses were called with other labels than were served.
        seen_labels, seen_query_labels: the labels of each set that the losses were called with, if they differ.
        loss: the loss given to ``adapt``; None if it is not one of torch's loss functions, or a sum with other terms.
        query_loss: the same for the loss that trained; also None if the loop did not run inside ``record()``.
        together: whether a body that is not adapted computed the features of both sets in one batch (ANIL).
        batch_norm: statistics used by layers that have running statistics: ``"batch"`` (training mode), ``"running"``
            (evaluation mode) or ``"mixed"``; None if there is no such layer or nothing is known.
    """

    support_rows: tuple[int, ...]
    query_rows: tuple[int, ...]
    labels: Labels
    lr: float
    steps: int
    first_order: bool
    rule: str = "sgd"
    seen_labels: Tensor | None = field(repr=False, default=None)
    seen_query_labels: Tensor | None = field(repr=False, default=None)
    loss: Loss | None = field(default=None, metadata={"decode": Loss.decoded})
    query_loss: Loss | None = field(default=None, metadata={"decode": Loss.decoded})
    together: bool = False
    batch_norm: BatchNorm | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class TaskName:
    """Identifies a task.

    Attributes:
        taskset: number of the taskset in this process.
        key: index in a finite taskset; for an infinite taskset the number of the draw; negative for a task that no
            taskset served.
        indices: the data set's sample index of each served row, or None if unknown.
        classes: the data set's own labels that occur, in the order of the task's labels, or None.
    """

    taskset: int
    key: int
    indices: tuple[int, ...] | None
    classes: tuple[Hashable, ...] | None

    @property
    def where(self) -> str:
        """The task in words."""
        return f"key {self.key} of taskset {self.taskset}"


@dataclass(frozen=True, eq=False, kw_only=True)
class RecordedTask(TaskName, EpisodeFacts):
    """A task as the training loop used it: its name, and the facts of its last episode that trained (if any did).

    Attributes:
        id: number of the task in its recording, in order of first draw; it never changes once it has been given out.
        times_seen: number of clones of the learner that were fed this task.
        times_trained: number of these whose loss had a gradient that reached the meta-parameters.
        adapted: the adapted parameters of the last episode that trained, named as in ``model.named_parameters()``,
            detached, on the CPU; None if switched off, beyond the memory limit, or if the task never trained.
        read: reads the served ``(inputs, labels)``.
        fingerprint: equal for equal inputs and labels, in other processes too.
        rank: the process that drew the task, in a study merged from several.
    """

    id: int
    times_seen: int
    times_trained: int
    adapted: dict[str, Tensor] | None = field(repr=False)
    read: Callable[[], tuple[Tensor, ...]] = field(repr=False)
    fingerprint: str = field(repr=False)
    rank: int = 0

    @property
    def support(self) -> tuple[Tensor, Tensor]:
        """``(x, y)`` of the support set, on the CPU, with ``len(support_rows)`` rows each.

        If the loss was called with other labels than were served, y holds the labels of the loss.

        Raises:
            LabelMismatchError: the loop changed labels after sampling, and the new ones are unknown or not constant.
            TaskDataChangedError: the data were not kept, and the taskset no longer gives the same data.
        """
        return self._set("support", self.support_rows, self.seen_labels)

    @property
    def query(self) -> tuple[Tensor, Tensor]:
        """``(x, y)`` of the query set, on the CPU, with ``len(query_rows)`` rows each; otherwise as `support`."""
        return self._set("query", self.query_rows, self.seen_query_labels)

    def _set(self, name: str, rows: tuple[int, ...], seen: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.labels != "changed":
            return self._rows(rows)
        if seen is None:
            raise self._mismatch(f"the labels of its {name} set")
        return self._rows(rows)[0], seen

    def _mismatch(self, unknown: str) -> LabelMismatchError:
        return LabelMismatchError(
            f"The losses of task {self.id} ({self.where}) were called with other labels than the taskset "
            f"served, and {unknown} could not be read. Run the loop inside record(), which reads the labels of all of "
            "torch's losses, or change labels inside the taskset instead of after tasks.sample()."
        )

    def _rows(self, rows: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        tensors = self.read()
        if len(tensors) < 2:
            raise RecordingError(
                f"Task {self.id} ({self.where}) was served without labels. Make the taskset serve (inputs, labels)."
            )
        picked = list(rows)
        return tensors[0][picked], tensors[1][picked]


def values_of(value: Any) -> dict[str, Any]:
    """The fields of a dataclass by name; the values are not copied."""
    return {each.name: getattr(value, each.name) for each in fields(value)}
