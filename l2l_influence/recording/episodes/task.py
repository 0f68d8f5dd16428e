"""What a recording hands out: one `RecordedTask` for each task that the learner was fed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from ...errors import LabelMismatchError, RecordingError
from .losses import Loss
from .normalisation import BatchNorm

Labels = Literal["confirmed", "unseen", "changed"]
"""What the losses told: they saw the labels served, their labels could not be read, or they saw others."""

Rule = Literal["sgd", "meta-sgd", "gbml", "other"]
"""How an inner step moved the parameters: by -lr times the gradient, as MetaSGD or GBML do, or in a way unknown."""


@dataclass(frozen=True, eq=False)
class RecordedTask:
    """A task as the training loop used it.

    Attributes:
        id: number of the task in its recording, in order of first draw; once handed out, it stays.
        taskset: number of the `TaskDataset` it came from.
        key: index in a finite taskset; for an infinite one the number of the draw.
        indices: the data set's sample index for each row served, or None if the taskset does not say.
        classes: the data set's own labels that occur, in the order of the task's labels, or None.
        support_rows, query_rows: row numbers in the batch served, in the order in which they were fed.
        times_seen: number of clones of the learner that were fed this task.
        times_trained: how many of these had a loss whose gradient reached the meta-parameters.
        lr, steps, first_order: of the last draw's ``adapt`` calls.
        rule: how these moved the parameters. If it is not ``"sgd"``, lr is NaN.
        labels: ``"changed"`` when the losses saw other labels than were served.
        loss: the loss given to ``adapt``; None if it is not one of torch's, or made of more than that.
        query_loss: the loss that trained, likewise; None too where the loop did not run inside ``record()``.
        together: whether the features of both sets were computed in one batch, by a body that is not adapted (ANIL).
        batch_norm: what layers with running statistics worked with in the forwards of both sets: the ``"batch"``'s own
            statistics (training mode), ``"running"`` ones (evaluation mode), or ``"mixed"``, not all and always the
            same; None if there are no such layers, or nothing is known.
        adapted: the adapted parameters of the last draw that trained, named as in ``model.named_parameters()``,
            detached, on the CPU; or None (switched off, over the memory cap, or never trained).
        rank: of the process that drew it, in a study merged of several.
        fingerprint: the same for the same inputs and labels, in other processes too.
    """

    id: int
    taskset: int
    key: int
    indices: tuple[int, ...] | None
    classes: tuple[Hashable, ...] | None
    support_rows: tuple[int, ...]
    query_rows: tuple[int, ...]
    times_seen: int
    times_trained: int
    lr: float
    steps: int
    first_order: bool
    labels: Labels
    adapted: dict[str, Tensor] | None = field(repr=False)
    seen_labels: Tensor | None = field(repr=False)
    read: Callable[[], tuple[Tensor, ...]] = field(repr=False)
    fingerprint: str = field(repr=False)
    rule: Rule = "sgd"
    together: bool = False
    batch_norm: BatchNorm | None = None
    rank: int = 0
    loss: Loss | None = None
    query_loss: Loss | None = None
    seen_query_labels: Tensor | None = field(repr=False, default=None)

    @property
    def support(self) -> tuple[Tensor, Tensor]:
        """``(x, y)`` of the support set, on the CPU, ``len(support_rows)`` rows each.

        If the loss saw other labels than were served, these are the labels that it saw.

        Raises:
            LabelMismatchError: the loop changed labels after sampling, and these could not be seen or changed again.
            TaskDataChangedError: the data were not kept, and the taskset no longer gives the same.
        """
        return self._set("support", self.support_rows, self.seen_labels)

    @property
    def query(self) -> tuple[Tensor, Tensor]:
        """``(x, y)`` of the query set, on the CPU, ``len(query_rows)`` rows each; else as `support`."""
        return self._set("query", self.query_rows, self.seen_query_labels)

    def _set(self, name: str, rows: tuple[int, ...], seen: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.labels != "changed":
            return self._rows(rows)
        if seen is None:
            raise self._mismatch(f"the labels of its {name} set")
        return self._rows(rows)[0], seen

    def _mismatch(self, unknown: str) -> LabelMismatchError:
        return LabelMismatchError(
            f"The losses of task {self.id} (key {self.key} of taskset {self.taskset}) saw other labels than the "
            f"taskset served, and {unknown} could not be seen. Run the loop inside record(), which sees the labels of "
            "all losses of torch's, or change labels inside the taskset, not after tasks.sample()."
        )

    def _rows(self, rows: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        tensors = self.read()
        if len(tensors) < 2:
            raise RecordingError(
                f"Task {self.id} (key {self.key} of taskset {self.taskset}) was served without labels; "
                "a taskset has to serve (inputs, labels)."
            )
        picked = list(rows)
        return tensors[0][picked], tensors[1][picked]
