"""Samples of a task with other labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..bilevel.task import Samples
from ..errors import TaskShapeError

Labels = Mapping[int, Any]
"""New labels by position in a support or query set."""


def with_labels(samples: Samples, labels: Labels, outputs: torch.Size) -> Samples:
    """One task's samples with other labels; ``outputs`` is the shape of the model's outputs for one sample.

    Raises:
        TaskShapeError: a label does not fit the task or the model.
    """
    y = samples.y.clone()
    for j, label in labels.items():
        y[0, j] = _fitting(label, y[0, j], outputs)
    return samples._replace(y=y)


def _fitting(label: Any, known: Tensor, outputs: torch.Size) -> Tensor:
    """A label that can replace a known one."""
    new = torch.as_tensor(label, device=known.device)
    if new.is_floating_point() and not known.is_floating_point():
        raise TaskShapeError(f"label {label} is not a whole number: labels of this task are ({known.dtype})")
    if new.shape not in (known.shape, torch.Size()):
        raise TaskShapeError(
            f"label {label} has shape {tuple(new.shape)}: labels have shape {tuple(known.shape)} in this task"
        )
    classes = _classes(known, outputs)
    # A label that stays may be any: the loss may ignore it.
    if classes and bool(((new != known) & ((new < 0) | (new >= classes))).any()):
        raise TaskShapeError(f"label {label} is out of range: the model has {classes} classes (0–{classes - 1})")
    return new


def _classes(label: Tensor, outputs: torch.Size) -> int:
    """The number of classes, if labels are class numbers; else 0."""
    numbered = not label.is_floating_point() and label.dim() == len(outputs) - 1 and outputs[0] > 1
    return outputs[0] if numbered else 0
