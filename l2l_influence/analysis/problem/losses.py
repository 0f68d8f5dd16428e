"""The two losses of a recorded run: what tasks adapt to, and what the meta-parameters are trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ...errors import LossStructureError
from ...recording import RecordedTask
from ...recording.episodes.losses import Loss
from .criterion import Parts, Reduction, take_apart


@dataclass(frozen=True)
class Losses:
    """Both, taken apart.

    Attributes:
        inner: on a support set.
        outer: on a query set.
        notes: where they come from, if nobody said what they are.
    """

    inner: Parts
    outer: Parts
    notes: tuple[str, ...] = ()

    @classmethod
    def given(cls, loss: Callable[..., Tensor], reduction: Reduction | None) -> Losses:
        """One loss for both, as a user passes it."""
        parts = take_apart(loss, reduction)
        return cls(parts, parts)

    @classmethod
    def recorded(cls, tasks: Sequence[RecordedTask], like: Tensor) -> Losses:
        """Those that the loop called.

        Raises:
            LossStructureError: what it called is not known of all tasks, or was not the same for all.
        """
        _require_labels(tasks)
        inner = _same([(task.id, task.loss) for task in tasks], "adapts to", Loss.agrees)
        outer = _same([(task.id, task.query_loss) for task in tasks], "is trained on", Loss.same_but_scale)
        parts = replace(_apart(inner, like), scale=inner.scale)
        if inner.same_but_scale(outer):
            note = f"loss: {inner}, as the loop called it"
            return cls(parts, replace(parts, scale=1.0), (note, *_uneven(tasks)))
        note = f"loss: {inner} on support sets, {replace(outer, scale=1.0)} on query sets, as the loop called them"
        return cls(parts, _apart(outer, like), (note, *_uneven(tasks)))


def _apart(loss: Loss, like: Tensor) -> Parts:
    """Taken apart, with weights of classes in the dtype and on the device of ``like``."""
    return take_apart(loss.module().to(like.device, like.dtype))


def _require_labels(tasks: Sequence[RecordedTask]) -> None:
    unseen = [task.id for task in tasks if task.labels == "unseen"]
    if unseen:
        raise LossStructureError(
            f"the losses of {len(unseen)} task(s), for example of task {unseen[0]}, were called with labels of another "
            "form than those served, or with none that could be seen: pass loss=, which takes the labels as served"
        )


def _same(found: Sequence[tuple[int, Loss | None]], what: str, same: Callable[[Loss, Loss], bool]) -> Loss:
    """The one loss of all tasks."""
    first: Loss | None = None
    for task, loss in found:
        if loss is None:
            raise LossStructureError(
                f"the loss that task {task} {what} could not be read off the loop: it is none of torch's, made of more "
                "than one, has further terms or unequal weights, or the loop did not run inside record(). Pass the "
                "loss of your training loop, for example loss=nn.CrossEntropyLoss()"
            )
        first = first or loss
        if not same(first, loss):
            raise LossStructureError(
                f"not every task {what} the same loss: task {found[0][0]} has {first}, task {task} has {loss}. Pass "
                "loss=, the one that all are to be judged by"
            )
    assert first is not None  # there are tasks
    return first


def _uneven(tasks: Sequence[RecordedTask]) -> list[str]:
    """What to know if the loop gave query losses different weights."""
    scales = [task.query_loss.scale for task in tasks if task.query_loss is not None]
    if max(scales) - min(scales) <= 0.01 * abs(max(scales)):
        return []
    return [
        f"the loop multiplied the tasks' query losses by {min(scales):.3g} to {max(scales):.3g}; here each draw counts "
        "the same"
    ]
