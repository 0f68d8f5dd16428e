"""Splits a user's loss into per-sample losses and their reduction."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...bilevel.loss import Criterion
from ...errors import LossStructureError

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class Parts:
    """A loss as a weighted sum over samples.

    Attributes:
        whole: the loss itself.
        criterion: its value for each sample.
        reduction: how it reduces these values.
        scale: a factor of the sum.
    """

    whole: Callable[..., Tensor]
    criterion: Criterion
    reduction: Reduction
    scale: float = 1.0

    def weights(self, y: Tensor) -> Tensor:
        """The weight of each sample of a set with labels y, ``(n,)``, float64. Removing a sample does not change the
        weights of the others."""
        divisor = _divisor(self.whole, y) if self.reduction == "mean" else 1.0
        return torch.full((len(y),), self.scale / divisor, dtype=torch.float64)


def take_apart(loss: Callable[..., Tensor], reduction: Reduction | None = None) -> Parts:
    """Write a user's loss as a sum over samples.

    Args:
        loss: a torch loss module (``nn.CrossEntropyLoss()``), a function with a ``reduction`` argument
            (``F.cross_entropy``), or any ``loss(outputs, y)`` that returns one value per sample.
        reduction: how training reduced the values; needed for the last form, otherwise read off the loss.

    Raises:
        LossStructureError: the loss cannot be split into samples; the message says what to pass instead.
    """
    own = _own_reduction(loss)
    if own is None and reduction is None:
        raise LossStructureError(
            f"it is unknown how {loss!r} reduces its samples: pass reduction='mean' or reduction='sum', as in "
            "training, and a loss that returns one value per sample"
        )
    reduced_by = reduction or own
    if reduced_by not in ("mean", "sum"):
        raise LossStructureError(f"reduction must be 'mean' or 'sum', not {reduced_by!r}")
    return Parts(loss, _one_value_a_sample(_separate(loss), reduced_by), cast(Reduction, reduced_by))


def _divisor(loss: Callable[..., Tensor], y: Tensor) -> float:
    """The divisor of a mean over samples with labels y. For class labels torch counts a sample by the weight of its
    class, and does not count ignored ones."""
    if not isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)) or y.is_floating_point() or y.dim() != 1:
        return len(y)
    counted = y[y != loss.ignore_index]
    return float(len(counted) if loss.weight is None else loss.weight.to(counted.device)[counted].sum())


def _separate(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The loss without its reduction."""
    if isinstance(loss, nn.NLLLoss):
        # log_softmax leaves log-probabilities as they are, so this is the same loss; but seen as cross-entropy it has
        # the curvature of its softmax, where the likelihood alone, linear in log-probabilities, has none.
        return partial(F.cross_entropy, weight=loss.weight, ignore_index=loss.ignore_index, reduction="none")
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        separate: Any = copy.deepcopy(loss)
        separate.reduction = "none"
        return cast(Callable[..., Tensor], separate)
    if loss is F.nll_loss:
        return partial(F.cross_entropy, reduction="none")
    return partial(loss, reduction="none") if _has_reduction(loss) else loss


def _own_reduction(loss: Any) -> str | None:
    if isinstance(loss, nn.Module):
        return getattr(loss, "reduction", None)
    return str(inspect.signature(loss).parameters["reduction"].default) if _has_reduction(loss) else None


def _has_reduction(loss: Callable[..., Tensor]) -> bool:
    return not isinstance(loss, nn.Module) and "reduction" in inspect.signature(loss).parameters


def _one_value_a_sample(separate: Callable[..., Tensor], reduction: str) -> Criterion:
    def criterion(outputs: Tensor, y: Tensor) -> Tensor:
        values = separate(outputs, y)
        if values.dim() == 0:
            raise LossStructureError("the loss returned one number for all samples; it must return one per sample")
        # Losses such as MSE have a value for each output; a sample's is their mean or sum, as in the whole loss.
        rest = values.flatten(1) if values.dim() > 1 else values.unsqueeze(1)
        return rest.mean(1) if reduction == "mean" else rest.sum(1)

    return criterion
