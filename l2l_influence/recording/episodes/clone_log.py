"""`CloneLog`: records the rows that one clone was fed, and how its outputs were used.

A log holds no autograd graph. What lives as long as a clone or its graph is the `CloneWatch` (``watch.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...storage.fingerprints import row_digests
from ..learners.base import OTHER, PLAIN
from ..tasksets.served import Served
from .features import BodyCall, Lookup
from .losses import Comparison
from .normalisation import BatchNorm


@dataclass(eq=False, slots=True)
class Forward:
    """One call of a clone: the rows that it was fed, in order, and what became of the output.

    Attributes:
        step: number of adapt calls before.
        shape: of the tensor that was fed; None if there was none.
        data: whether it was computed without anything that can be trained.
        digests: of the rows that a taskset served.
        matched: whether the rows belong to a task that was served.
        rows: the rows themselves, if they are data that no taskset served.
        consumed: whether the loss given to ``adapt`` was computed from the output.
        used: whether a backward outside ``adapt`` passed through the output.
        comparisons: losses called on the output.
        features: the body call that computed the rows, if they are features.
        batch_norm: the statistics that the clone's layers used.
    """

    step: int
    shape: torch.Size | None
    data: bool = True
    digests: tuple[bytes, ...] = ()
    matched: bool = False
    rows: Tensor | None = None
    consumed: bool = False
    used: bool = False
    comparisons: list[Comparison] = field(default_factory=list)
    features: BodyCall | None = None
    batch_norm: BatchNorm | None = None

    @property
    def counted(self) -> list[Comparison]:
        """The losses that contributed to a gradient; all losses, if none did."""
        contributed = [call for call in self.comparisons if call.inner is not None or call.outer is not None]
        return contributed or self.comparisons

    @property
    def labels(self) -> Tensor | None:
        """The labels that the output was compared with, row by row; None if unknown, or if they were not constant."""
        calls = self.counted
        if not calls or not all(call.row_by_row and _same(call.labels, calls[0].labels) for call in calls):
            return None
        return calls[0].labels

    @property
    def partial(self) -> bool:
        """True if the losses used only some of the rows, and it is unknown which."""
        rows = self.shape[0] if self.shape else 0
        return any(not call.row_by_row and len(call.labels) < rows for call in self.counted if call.labels.dim())


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and bool((one == other).all()))


class Adapted(NamedTuple):
    """Adapted parameters and their names; the name is None for a shared parameter that has been named before."""

    names: Sequence[str | None]
    values: Sequence[Tensor]

    @property
    def nbytes(self) -> int:
        """Memory that the values take."""
        return sum([value.nbytes for value in self.values])

    def on_cpu(self) -> dict[str, Tensor]:
        """The values by name."""
        pairs = zip(self.names, self.values, strict=True)
        return {name: value.cpu() for name, value in pairs if name is not None}


@dataclass
class LossReading:
    """The origin of a loss, read from its autograd graph.

    Attributes:
        forwards: those that the loss was computed from.
        whole: whether it consists of torch's losses only, without other terms such as a penalty on parameters.
    """

    forwards: set[Forward] = field(default_factory=set)
    whole: bool = True


@dataclass(eq=False)
class CloneLog:
    """The evidence about one clone. The log of a clone of a clone starts as a copy of its parent's.

    Attributes:
        candidates: the served batches that contain all rows fed until now.
        steps, lr, first_order, rule: of the adapt calls.
        unseen_losses: number of losses given to ``adapt`` that are not known to come from a forward.
        unread_losses: number of losses given to ``adapt`` whose form is unknown.
        trained: whether a gradient reached the learner's parameters.
        tasksets: those that the rows may come from. They are kept alive until the episode is entered, so that class
            names and data can still be read.
    """

    forwards: list[Forward] = field(default_factory=list)
    candidates: list[Served] = field(default_factory=list)
    steps: int = 0
    lr: float = math.nan
    first_order: bool = False
    rule: str = PLAIN
    adapted: Adapted | None = None
    unseen_losses: int = 0
    unread_losses: int = 0
    trained: bool = False
    tasksets: list[Any] = field(default_factory=list)

    def child(self) -> CloneLog:
        """The log of a clone of this clone."""
        return CloneLog(
            list(self.forwards),
            self.candidates,
            self.steps,
            self.lr,
            self.first_order,
            self.rule,
            self.adapted,
            self.unseen_losses,
            self.unread_losses,
        )

    def fed(self, shape: torch.Size | None, data: bool = True) -> Forward:
        """Note a forward."""
        forward = Forward(self.steps, shape, data)
        self.forwards.append(forward)
        return forward

    def identify(self, forward: Forward, rows: Tensor, lookup: Lookup) -> None:
        """Find out which rows ``forward`` was fed, and keep only those candidates that contain them too."""
        digests = row_digests(rows)
        forward.features = lookup.source(digests)
        forward.digests = digests if forward.features is None else forward.features.origin(digests)
        fitting = self._fitting(forward.digests, lookup) if digests else []
        forward.matched = bool(fitting)
        if not fitting and forward.data:
            forward.rows = rows
        self.candidates = fitting or self.candidates
        self.tasksets = [served.taskset() for served in self.candidates]

    def adapted_to(self, reading: LossReading, lr: float, rule: str, first_order: bool) -> None:
        """Note an adapt call that succeeded, on the loss that was read."""
        for forward in self.forwards:
            forward.consumed = forward.consumed or forward in reading.forwards
        self.unseen_losses += not reading.forwards
        self.unread_losses += not reading.whole
        self._stepped(lr, rule)
        self.first_order = first_order

    def updated(self) -> None:
        """Note an update by other means than adapt: its loss is the one that gradients were taken of until now."""
        for forward in self.forwards:
            forward.consumed = forward.consumed or forward.used
        self.unread_losses += 1
        self._stepped(math.nan, OTHER)

    def _stepped(self, lr: float, rule: str) -> None:
        if rule == self.rule or not self.steps:
            self.rule, self.lr = rule, lr
        else:
            self.rule, self.lr = OTHER, math.nan
        self.steps += 1

    def _fitting(self, digests: Sequence[bytes], lookup: Lookup) -> list[Served]:
        if not self.candidates:
            return lookup.holding(digests)
        return [served for served in self.candidates if served.content.contains(digests)]
