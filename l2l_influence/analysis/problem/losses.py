"""The two losses of a recorded run: of the inner steps, and of the training of the meta-parameters."""

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
    """Both losses as weighted sums over samples.

    Attributes:
        inner: of a support set.
        outer: of a query set.
        notes: where the losses come from, if the user did not pass one.
    """

    inner: Parts
    outer: Parts
    notes: tuple[str, ...] = ()

    @classmethod
    def given(cls, loss: Callable[..., Tensor], reduction: Reduction | None) -> Losses:
        """One loss for both, passed by the user."""
        parts = take_apart(loss, reduction)
        return cls(parts, parts)

    @classmethod
    def recorded(cls, tasks: Sequence[RecordedTask], like: Tensor) -> Losses:
        """The losses that the loop called.

        Raises:
            LossStructureError: they are unknown for some tasks, or not the same for all tasks.
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
    """A recorded loss as a sum over samples; its class weights have the dtype and device of ``like``."""
    return take_apart(loss.module().to(like.device, like.dtype))


def _require_labels(tasks: Sequence[RecordedTask]) -> None:
    unseen = [task.id for task in tasks if task.labels == "unseen"]
    if unseen:
        raise LossStructureError(
            f"the losses of {len(unseen)} task(s), for example of task {unseen[0]}, were called with labels of another "
            "form than those served, or with labels that could not be seen: pass loss=, which takes the labels as "
            "served"
        )


def _same(found: Sequence[tuple[int, Loss | None]], what: str, same: Callable[[Loss, Loss], bool]) -> Loss:
    """The loss that all tasks have in common."""
    first: Loss | None = None
    for task, loss in found:
        if loss is None:
            raise LossStructureError(
                f"the loss that task {task} {what} is unknown: it is not a torch loss, combines several losses, has "
                "further terms or unequal weights, or the loop did not run inside record(). Pass the loss of your "
                "training loop, for example loss=nn.CrossEntropyLoss()"
            )
        first = first or loss
        if not same(first, loss):
            raise LossStructureError(
                f"not every task {what} the same loss: task {found[0][0]} has {first}, task {task} has {loss}. Pass "
                "loss= to use one loss for all tasks"
            )
    assert first is not None  # there are tasks
    return first


def _uneven(tasks: Sequence[RecordedTask]) -> list[str]:
    """A note if the loop weighted the query losses of tasks differently."""
    scales = [task.query_loss.scale for task in tasks if task.query_loss is not None]
    if max(scales) - min(scales) <= 0.01 * abs(max(scales)):
        return []
    return [
        f"the loop multiplied the tasks' query losses by {min(scales):.3g} to {max(scales):.3g}; here each draw counts "
        "the same"
    ]
