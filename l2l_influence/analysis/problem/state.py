"""The state that results depend on: what is cached is only valid while it stays the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...recording import RecordedTask

State = tuple[list[Tensor], list[tuple[Any, ...]]]


def state_of(owner: nn.Module, recorded: Sequence[RecordedTask]) -> State:
    """The learner's tensors; their names, dtypes and flags; and how each recorded task was used."""
    named = [*owner.named_parameters(), *owner.named_buffers()]
    kinds = [(name, value.requires_grad, value.dtype, value.device) for name, value in named]
    uses = [
        (t.id, t.times_trained, t.lr, t.steps, t.first_order, t.batch_norm, t.support_rows, t.query_rows)
        for t in recorded
    ]
    return [value.detach().clone() for _, value in named], [*kinds, *uses]


def same(a: State, b: State) -> bool:
    """Whether two states are equal, tensors bit by bit."""
    return a[1] == b[1] and all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True))
